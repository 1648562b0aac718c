"""Qwen2, Qwen2.5 and Qwen3 with dense layers."""

from __future__ import annotations

from exporters.hf_model.family import HEAD_NORMS, KEYS, PROJECTIONS, Architecture, layer_of

QWEN2 = Architecture("qwen2", layer_of(biased=PROJECTIONS), KEYS, free_head_width=False, seventy_b_layers=80)
QWEN3 = Architecture("qwen3", layer_of(*HEAD_NORMS, biased=PROJECTIONS), KEYS)
