"""File names in a folder of a PEFT adapter, and in one that a Cockpit stage wrote; training, evaluation and merge use
them."""

from __future__ import annotations

from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_JSON = "base.json"
"""Cockpit's own file beside the adapter: `path` and `manifest_sha256` of the base model that it was trained on.
`method` says whether that SHA-256 is of its manifest or of its contents; older versions wrote none."""
OUTPUT_HEADS = ("lm_head", "embed_out")
"""What transformers calls the output head of a model, which stays unquantized where the base is in 4 bits."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder contains an adapter, not a full model."""
    return (folder / ADAPTER_CONFIG).is_file()
