"""Estimates the memory of a reference before the work, from the shapes of the tensors."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from exporters.hf_model.tensor_files import CHUNK_BYTES, Weights
from exporters.reference.streamed_model import BATCH_POSITIONS

_LAYER = re.compile(r"\.(\d+)\.")
_FLOAT_BYTES = 4
_PROCESS_BYTES = 512 * 1024 * 1024
"""Python, torch and transformers themselves."""


def reference_bytes(weights: Weights, settings: Mapping[str, Any], positions: int, length: int) -> int:
    """Maximum memory of a reference that reads its weights layer by layer.

    Args:
        weights: the model's tensors.
        settings: of its language part.
        positions: token positions that are compared.
        length: longest window, in tokens.
    """
    layers: dict[str, int] = defaultdict(int)
    largest = 0
    for name, info in weights.tensors.items():
        found = _LAYER.search(name)
        if found is not None:
            layers[found.group()] += info.values
            largest = max(largest, info.values)
    hidden = int(settings["hidden_size"])
    inner = int(settings.get("intermediate_size") or 4 * hidden)
    heads = int(settings.get("num_attention_heads") or 1)
    batch = min(BATCH_POSITIONS, positions + length)
    # Tensors of a layer, and one of them in its stored and its decoded form; a few activations of each width; the
    # scores of attention, their softmax and its input.
    values = max(layers.values(), default=0) + 2 * largest
    values += batch * (6 * hidden + 3 * inner) + 3 * batch * heads * length
    return _PROCESS_BYTES + 2 * CHUNK_BYTES + values * _FLOAT_BYTES
