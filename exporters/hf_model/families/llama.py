"""Llama 2 and 3, and Mistral in Hugging Face's format."""

from __future__ import annotations

from dataclasses import replace

from exporters.hf_model.family import KEYS, PROJECTIONS, Architecture, layer_of

LLAMA = Architecture(
    "llama",
    layer_of(biased=PROJECTIONS),
    KEYS,
    permuted=True,
    rope_kinds=("default", "linear", "yarn", "llama3"),
    seventy_b_layers=80,
)
MISTRAL = replace(LLAMA, layer=layer_of())
