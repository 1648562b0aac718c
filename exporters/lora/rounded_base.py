"""A base model with linear layers rounded to NF4 and back, as an adapter sees it in training over a 4-bit copy.

QLoRA (arXiv 2305.14314) trains against such weights. The merge uses the 16-bit base model by default, because an export
would round NF4's values once more. Which values suit an adapter better must be evaluated, so both can be chosen; the
rounding is bitsandbytes' own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from exporters.hf_model.empty_model import build_empty, names_in_text_model
from exporters.hf_model.tensor_files import SafetensorsFolder

BaseRounding = Literal["none", "nf4", "nf4-double"]
BLOCK = 64


class RoundedBase:
    """Rows of a base model's linear layers after NF4. Rounds one whole tensor at a time and keeps it in memory."""

    def __init__(
        self, base: SafetensorsFolder, *, double: bool, quant_type: str = "nf4", skipped: tuple[str, ...] = ()
    ) -> None:
        """Open the base model.

        Args:
            base: its tensors.
            double: the blocks' scales are rounded to 8 bits as well, as `bnb_4bit_use_double_quant` does.
            quant_type: nf4 or fp4.
            skipped: ends of the names of layers that are not rounded.
        """
        self._base = base
        self._linear = linear_weights(base)
        self._double = double
        self._type = quant_type
        self._skipped = skipped
        self._cached: tuple[str, torch.Tensor] = ("", torch.empty(0))

    def rounds(self, name: str) -> bool:
        """Whether a 4-bit copy rounds this tensor: the layers' linear weights; not embeddings, head, norms or
        biases."""
        layer = name.removesuffix(".weight")
        if any(f".{layer}".endswith(f".{skipped}") for skipped in self._skipped):
            return False
        return name in self._linear

    def read_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows, float32 [stop - start, columns]."""
        if self._cached[0] != name:
            self._cached = (name, self._rounded(name))
        return self._cached[1][start:stop].clone()

    def _rounded(self, name: str) -> torch.Tensor:
        """The whole tensor, float32 [rows, columns]."""
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit

        weight = torch.from_numpy(self._base.read(name).copy())
        if self._linear[name]:  # bitsandbytes rounds blocks of the matrix as a linear layer has it
            weight = weight.t().contiguous()
        packed, state = quantize_4bit(weight, blocksize=BLOCK, compress_statistics=self._double, quant_type=self._type)
        found = dequantize_4bit(packed, state).float().reshape(weight.shape)
        return found.t().contiguous() if self._linear[name] else found


def linear_weights(base: SafetensorsFolder) -> dict[str, bool]:
    """The tensors that a 4-bit copy rounds, by the classes of the layers that transformers makes of them, and whether
    each is stored transposed (GPT-2's Conv1D). Experts that transformers joins are parameters, and stay as they are."""
    from transformers.pytorch_utils import Conv1D

    folder = Path(base.folder)
    model = build_empty(folder)
    head = model.get_output_embeddings()
    layers = {
        f"{name}.weight": isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if module is not head and (type(module) is torch.nn.Linear or isinstance(module, Conv1D))
    }
    inside, prefix = names_in_text_model(folder, base), model.base_model_prefix
    found = {}
    for tensor in base.tensors:
        name = inside.get(tensor, tensor)
        known = name if name in layers else f"{prefix}.{name}"  # files of a model without its head have no prefix
        if known in layers:
            found[tensor] = layers[known]
    return found
