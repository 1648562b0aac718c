"""First weights of an adapter over a 4-bit base that make up for the rounding: LoftQ (arXiv 2310.08659).

A weight W is rounded to Q. The adapter begins with the part of W - Q that its rank can express best, by singular
values: scale * B A is the nearest matrix of rank r to W - Q. PEFT's `replace_lora_weights_loftq` does the same on a GPU
only, and without the scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.pytorch_utils import Conv1D

from engines.json_text import read_object
from recipes.problems import OperatorError, printable

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_ADAPTER = "default"


@torch.no_grad()
def initialize(adapted: Any, base: Path) -> None:
    """Set the adapters over 4-bit layers to what the rounding lost, from the weights in the base model's folder.

    Draws no random numbers that anything else would draw: the adapters have their first weights already.

    Raises:
        OperatorError: the folder has no weight of a layer under the layer's own name.
    """
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in adapted.named_modules()
        if hasattr(module, "lora_A") and hasattr(getattr(module, "base_layer", None), "quant_state")
    }
    for name, weight in _weights(base, [f"{layer}.weight" for layer in layers]):
        _set(layers[name.removesuffix(".weight")], weight)


def _set(layer: Any, weight: torch.Tensor) -> None:
    """Set one layer's A, [r, inputs], and B, [outputs, r]."""
    from bitsandbytes.functional import dequantize_4bit

    rounded = layer.base_layer.weight
    a, b = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
    there = dequantize_4bit(rounded.data, rounded.quant_state).float()
    if issubclass(getattr(layer.base_layer, "source_cls", torch.nn.Linear), Conv1D):
        weight = weight.t()  # GPT-2's files have it transposed, the 4-bit layer does not
    lost = weight.to(there.device).float() - there.reshape(weight.shape)
    left, values, right = torch.linalg.svd(lost, full_matrices=False)
    rank = min(a.shape[0], values.numel())
    root = (values[:rank] / layer.scaling[_ADAPTER]).sqrt()
    a.zero_()
    b.zero_()
    a[:rank] = root[:, None] * right[:rank]
    b[:, :rank] = left[:, :rank] * root


def _weights(base: Path, names: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    places = _places(base, names)
    with ExitStack() as files:
        opened: dict[Path, Any] = {}
        for name in names:
            file = base / places[name]
            try:
                if file not in opened:
                    opened[file] = files.enter_context(safe_open(str(file), framework="pt"))
                yield name, opened[file].get_tensor(name)
            except (OSError, SafetensorError) as error:
                raise OperatorError(
                    f"init_lora_weights — loftq needs {printable(name, 200)} of {base}: {printable(str(error), 200)}",
                    'set init_lora_weights = "true"',
                ) from error


def _places(base: Path, names: list[str]) -> Mapping[str, str]:
    """The file of each tensor."""
    if not (base / _INDEX).is_file():
        return dict.fromkeys(names, _SINGLE)
    found = read_object(base / _INDEX).get("weight_map")
    known = found if isinstance(found, dict) else {}
    return {name: Path(str(known.get(name, _SINGLE))).name for name in names}
