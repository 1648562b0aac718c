"""An adapter over a part of its base model (PiSSA, OLoRA), written as a plain LoRA adapter over the whole base model.

PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) take scale * B0 A0 out of a weight W before training and start
from B0 and A0. The trained weight is W - scale * B0 A0 + scale * B A, which is W plus an adapter of twice the rank:
B' = [B, -B0] and A' = [A; A0]. PEFT's save_pretrained does the same with path_initial_model_for_weight_conversion.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from engines.json_text import read_object

_A, _B = ".lora_A.weight", ".lora_B.weight"


def first_matrices(adapted: Any) -> dict[str, torch.Tensor]:
    """A0 and B0 of every layer, float32, by their names in an adapter's file; call it before training."""
    from peft import get_peft_model_state_dict

    state: Mapping[str, torch.Tensor] = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return {name: tensor.detach().cpu().clone() for name, tensor in state.items() if name.endswith((_A, _B))}


def make_plain(folder: Path, first: Mapping[str, torch.Tensor]) -> None:
    """Rewrite an adapter folder as a plain adapter over the whole base model; `first` is from `first_matrices`."""
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    for name, start in first.items():
        joined = [tensors[name], start] if name.endswith(_A) else [tensors[name], -start]
        tensors[name] = torch.cat(joined, dim=0 if name.endswith(_A) else 1).contiguous()
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = read_object(folder / ADAPTER_CONFIG)
    # The scale stays: alpha / r with both doubled, or alpha / sqrt(r).
    factor = math.sqrt(2.0) if config.get("use_rslora") else 2
    config |= {"r": 2 * config["r"], "lora_alpha": config["lora_alpha"] * factor, "init_lora_weights": True}
    config["rank_pattern"] = {name: 2 * rank for name, rank in (config.get("rank_pattern") or {}).items()}
    config["alpha_pattern"] = {name: alpha * factor for name, alpha in (config.get("alpha_pattern") or {}).items()}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
