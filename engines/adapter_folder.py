"""The names in a folder of a PEFT adapter, and in one that a stage of ours made: who trains, evaluates and merges knows
them."""

from __future__ import annotations

from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_JSON = "base.json"
"""Written by us beside the adapter: `path` and `manifest_sha256` of the base that it was trained on."""


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()
