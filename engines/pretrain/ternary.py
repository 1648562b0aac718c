"""Linear layers with ternary weights: the matrices of the decoder's layers compute with -s, 0 and s only.

As in BitNet b1.58 (arXiv 2402.17764): s is the mean magnitude of a matrix, each weight is rounded to the nearest of -s,
0 and s, and its gradient passes through the rounding unchanged. The optimizer changes the weights before the rounding,
which checkpoints keep; the finished model has the rounded ones. Two things differ from the paper, so that a file has
exactly what was trained: s is rounded to float16, as TQ1_0 and TQ2_0 store it, and activations are not quantized,
because every runtime has its own number format for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear

from engines.json_text import read_object
from recipes.problems import OperatorError
from recipes.stages.decoder.model_types import LINEAR, TERNARY

LEAST_SCALE = 1e-5
"""Of a matrix of zeros, as in BitNet; float16 has it with an error of 1 %, and it stays above zero."""


def ternary(weight: torch.Tensor) -> torch.Tensor:
    """The values with which a matrix computes: -s, 0 and s, float32 of the same shape."""
    scale = weight.abs().mean(dtype=torch.float32).clamp(min=LEAST_SCALE, max=torch.finfo(torch.float16).max)
    scale = scale.to(torch.float16).float()
    return (weight / scale).round().clamp(-1, 1) * scale


class _Rounded(torch.autograd.Function):
    """`ternary`, whose gradient is that of the identity."""

    @staticmethod
    def forward(_ctx: Any, weight: torch.Tensor) -> torch.Tensor:
        return ternary(weight)

    @staticmethod
    def backward(_ctx: Any, above: Any) -> Any:
        return above


class TernaryLinear(torch.nn.Linear):
    """A linear layer that computes with the rounded values of its weight; a bias is not rounded."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's own name
        """As a linear layer: [..., inputs] to [..., outputs]."""
        rounded: torch.Tensor = _Rounded.apply(self.weight)
        return linear(input, rounded, self.bias)


def make_ternary(model: Any) -> None:
    """Let the matrices of a decoder's layers compute with ternary values; weights and their names stay."""
    for module in _matrices(model):
        module.__class__ = TernaryLinear
    model.config.update({LINEAR: TERNARY})


def keep_rounded(model: Any) -> None:
    """Replace the weights by the values with which they compute: from here on it is a model like any other."""
    with torch.no_grad():
        for module in _matrices(model):
            module.weight.copy_(ternary(module.weight))
            module.__class__ = torch.nn.Linear
    delattr(model.config, LINEAR)


def check_start(folder: Path | None, wanted: str) -> None:
    """Refuse first weights that would compute something else than where they come from.

    Raises:
        OperatorError: they are weights before the rounding, and the stage does not round.
    """
    if folder is None or not (folder / "config.json").is_file():
        return
    found = read_object(folder / "config.json").get(LINEAR)
    if found == TERNARY and wanted != TERNARY:
        raise OperatorError(
            f"start_from — {folder} has the weights of a training with {LINEAR} = {TERNARY} before their rounding",
            f'set {LINEAR} = "{TERNARY}", or start from the finished model of that stage',
        )


def _matrices(model: Any) -> Iterator[torch.nn.Linear]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            yield module
