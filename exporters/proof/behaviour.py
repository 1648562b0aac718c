"""The third proof: llama.cpp on a file against transformers in float32 with that file's own decoded weights.

What is left is the arithmetic of two programs and the meaning of the file's keys. How much the arithmetic may cost is
measured on the model itself: transformers once more, with the inputs of its matrix products rounded as llama.cpp's
kernels round them. A model that amplifies rounding gets a wider limit than one that does not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.llama.gguf_file import read_gguf
from exporters.gguf.write import Model
from exporters.proof.parity import TIPPED, Comparison, Reference, mean_kl
from exporters.reference.file_weights import FileWeights, equal_values
from exporters.reference.streamed_model import Rounding, StreamedModel
from recipes import quantities
from recipes.file_types import ARITHMETIC_LIMIT, FILE_TYPES

MARGIN = 6.0
"""How many times the measured cost of rounding a correct file may differ; bench/behaviour.md has the measurements."""
_PARTLY_ROUNDED = 4.0
"""The measured cost is multiplied by this if the model has products whose inputs could not be rounded."""
ROUNDED_POSITIONS = 256
"""Positions at which the cost of rounding is measured."""
TIE_GAP = 0.01
"""Types that keep the most likely token may choose another only where the reference's two best logits are closer than
this, or than the rounding's own changes."""
_TIES = 10.0
"""Changes of a logit by rounding are this many times smaller than a gap that it never closes; a change of d in one
logit costs up to d squared / 2 nats."""

_ROUTER = ".ffn_gate_inp."
"""In the name of the tensor that chooses the experts of a layer."""

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Expected:
    """What a file's distributions are compared with.

    Attributes:
        reference: the distributions.
        weights: whose weights they were computed with: the file's own, or the trained model's, because the file's
            tensors cannot be assigned to the model's.
        rounding_kl: mean KL, nats, that rounding the inputs of matrix products costs; None if it was not measured.
        routed: whether the model chooses experts for each token.
    """

    reference: Reference
    weights: Literal["file", "model"]
    rounding_kl: float | None
    routed: bool = False


@dataclass(frozen=True)
class Limits:
    """The limits of one comparison; None for a figure that is only reported.

    With `routed`, the `TIPPED` share of the positions, those that differ most, is not judged: where two experts are
    almost equally good, the last bit of a float decides between them, and the answer is another one.
    """

    mean_kl: float | None
    top1_gap: float | None
    routed: bool = False


def expect(path: Path, model: Model, trained: Reference, scratch: Path, threads: int, progress: Progress) -> Expected:
    """Compute the distributions that a file must give.

    Args:
        path: the file.
        model: the model that it was made from, with its own weights.
        trained: that model's distributions.
        scratch: where to keep the file's own distributions.
        threads: CPU threads.
        progress: called with numbers of positions; their sum is the number of all positions.
    """
    windows, routed = trained.windows, any(_ROUTER in name for name in read_gguf(path).tensors)
    try:
        weights = FileWeights(path, model)
    except KeyError:
        progress(trained.positions)
        return Expected(trained, "model", None, routed)
    kinds = {name: weights.type_of(name) for name in weights.tensors}
    again = first_windows(windows)
    positions, vocabulary = sum(map(len, windows[:again])), trained.logits.shape[1]
    rounding = Rounding(kinds, np.empty((positions, vocabulary), np.float32), again)
    if equal_values(weights, model.weights):
        exact = np.empty((positions, vocabulary), np.float32)
        network = StreamedModel(model.folder, model.weights, threads)
        network.logits_into(windows[:again], exact, progress, rounding)
        progress(trained.positions - positions)
        return Expected(trained, "file", _cost(rounding, exact), routed)
    own = Reference(scratch, windows, vocabulary)
    StreamedModel(model.folder, weights, threads).logits_into(windows, own.logits, progress, rounding)
    return Expected(own, "file", _cost(rounding, own.logits[:positions]), routed)


def first_windows(windows: Sequence[Sequence[int]]) -> int:
    """How many windows have `ROUNDED_POSITIONS`; all if they have fewer."""
    positions = 0
    for number, window in enumerate(windows, start=1):
        positions += len(window)
        if positions >= ROUNDED_POSITIONS:
            return number
    return len(windows)


def _cost(rounding: Rounding, exact: Any) -> float:
    return mean_kl(exact, rounding.logits) * (1.0 if rounding.complete else _PARTLY_ROUNDED)


def limits_of(file_type: str, expected: Expected) -> Limits:
    """The limits for a file of the type.

    A file whose own weights are unknown is judged only if its type stores the model's weights nearly exactly.
    """
    row = FILE_TYPES.get(file_type)
    if expected.weights == "model" and (row is None or row.quantized):
        return Limits(None, None, expected.routed)
    least = row.arithmetic_limit if row is not None else ARITHMETIC_LIMIT
    rounding = expected.rounding_kl or 0.0
    gap = max(TIE_GAP, _TIES * math.sqrt(2 * rounding))
    keeps = row is not None and row.keeps_top1 and expected.weights == "file"
    return Limits(max(least, MARGIN * rounding), gap if keeps else None, expected.routed)


def adapter_limits(behaviour: Mapping[str, Any], weights_kl: float | None) -> Limits:
    """The limits for an adapter over a file, compared with the adapter over the trained model.

    Args:
        behaviour: the proof of the file without the adapter.
        weights_kl: mean KL, nats, that the file's weights cost; the adapted file may cost `MARGIN` times as much.
    """
    limits = behaviour["limits"]
    if weights_kl is None or limits["mean_kl"] is None:
        return Limits(None, None)
    return Limits(limits["mean_kl"] + MARGIN * weights_kl, None, limits["routed"])


def check_behaviour(
    comparison: Comparison,
    limits: Limits,
    what: str = "llama.cpp's answers",
    reference: str = "the file's own weights",
) -> list[str]:
    """The limits that `what` exceeds, compared with `reference`, and by how much; empty if it passes."""
    limit, problems = limits.mean_kl, []
    found = comparison.settled_kl if limits.routed else comparison.mean_kl
    if not math.isfinite(comparison.mean_kl):
        problems.append("mean KL is not finite")
    elif limit is not None and not found < limit:
        problems.append(
            f"mean KL of {what} is {quantities.number(found, 3)} nats from {reference}, "
            f"{quantities.number(found / limit, 3)} times the limit of "
            f"{quantities.number(limit, 3)} (top-1 {quantities.percent(comparison.top1, 2)} on {comparison.positions} "
            "positions)"
        )
    if limits.top1_gap is not None:
        wide = [item for item in comparison.differences if not item.gap < limits.top1_gap]
        if len(wide) > (comparison.positions * TIPPED if limits.routed else 0):
            worst = max(wide, key=lambda item: item.gap)
            problems.append(
                f"{what} choose another token at {len(wide)} of {comparison.positions} positions where the two best "
                f"logits of {reference} are {quantities.number(limits.top1_gap, 3)} or more apart (widest "
                f"{quantities.number(worst.gap, 3)}, window {worst.window}, position {worst.position})"
            )
    return problems


def behaviour_record(comparison: Comparison, expected: Expected, limits: Limits, problems: list[str]) -> dict[str, Any]:
    """The proof as plain values."""
    return {
        **comparison.record(),
        "weights": expected.weights,
        "rounding_mean_kl": expected.rounding_kl,
        "limits": {"mean_kl": limits.mean_kl, "top1_gap": limits.top1_gap, "routed": limits.routed},
        "judged": limits.mean_kl is not None,
        "problems": problems,
    }
