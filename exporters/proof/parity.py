"""Compares a GGUF file with its model in transformers: the distribution at every position.

The reference is the model itself in float32. KL(reference ‖ file) is in nats, computed in float64 from both logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from recipes import quantities
from recipes.file_types import FILE_TYPES

TIE_GAP = 0.01
"""Types that keep the most likely token may choose another only where the reference's two best logits are closer than
this."""

_SHOWN_DIFFERENCES = 200
_ROWS = 64

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Difference:
    """A position with different most likely tokens. `gap` is the difference of the reference's two best logits."""

    window: int
    position: int
    reference: int
    file: int
    gap: float


@dataclass
class Comparison:
    """The comparison of one file with the reference. `loss` values are nats per next token inside the windows."""

    positions: int = 0
    mean_kl: float = 0.0
    max_kl: float = 0.0
    top1: float = 0.0
    loss: float = 0.0
    reference_loss: float = 0.0
    loss_tokens: int = 0
    differences: list[Difference] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain values, with the differences counted in full and listed up to a bound, widest gap first."""
        values = asdict(self)
        listed = sorted(values.pop("differences"), key=lambda item: -item["gap"])
        return {
            **values,
            "top1_differences": len(listed),
            "widest_gap": listed[0]["gap"] if listed else 0.0,
            "differences": listed[:_SHOWN_DIFFERENCES],
        }


class HasLogits(Protocol):
    """A model in any runtime."""

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token of one sequence, float32 [tokens, vocab_size]."""


class Reference:
    """The model's own logits at every position, in a file instead of in memory."""

    def __init__(self, path: Path, windows: Sequence[Sequence[int]], vocab_size: int) -> None:
        """Create the file of `logits`, float32 [positions, vocab_size]."""
        self.windows = windows
        positions = sum(map(len, windows))
        self.logits: NDArray[np.float32] = np.memmap(path, np.float32, "w+", shape=(positions, vocab_size))

    def compute(self, model: HasLogits, progress: Progress) -> None:
        """Run a model over every window."""
        start = 0
        for window in self.windows:
            self.logits[start : start + len(window)] = model.logits(window)
            start += len(window)
            progress(len(window))


def compare(reference: Reference, other: HasLogits, progress: Progress) -> Comparison:
    """Score every window with a file, or with another model, and compare each position's distribution with the
    reference's."""
    result = Comparison()
    kl_sum, equal, start = 0.0, 0, 0
    for number, window in enumerate(reference.windows):
        expected = reference.logits[start : start + len(window)]
        actual = other.logits(window)
        kl, losses = _distances(expected, actual, window)
        kl_sum += float(kl.sum())
        result.max_kl = max(result.max_kl, float(kl.max()))
        result.reference_loss += losses[0]
        result.loss += losses[1]
        found = _differences(number, expected, actual)
        equal += len(window) - len(found)
        result.differences += found
        result.positions += len(window)
        result.loss_tokens += len(window) - 1
        start += len(window)
        progress(len(window))
    result.mean_kl = kl_sum / result.positions
    result.top1 = equal / result.positions
    result.loss /= result.loss_tokens
    result.reference_loss /= result.loss_tokens
    return result


def _distances(
    expected: NDArray[np.float32], actual: NDArray[np.float32], window: Sequence[int]
) -> tuple[NDArray[np.float64], tuple[float, float]]:
    """KL per position, float64 [tokens], and the summed loss of the window's own next tokens for both.

    `expected` and `actual`: logits, float32 [tokens, vocab_size].
    """
    kl = np.empty(len(window))
    losses = [0.0, 0.0]
    for start in range(0, len(window), _ROWS):
        rows = slice(start, min(start + _ROWS, len(window)))
        p, q = _log_softmax(expected[rows]), _log_softmax(actual[rows])
        kl[rows] = np.sum(np.exp(p) * (p - q), axis=1)
        following = np.asarray(window[rows.start + 1 : rows.stop + 1])
        for side, logs in enumerate((p, q)):
            losses[side] -= float(logs[np.arange(len(following)), following].sum())
    return kl, (losses[0], losses[1])


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """float32 [tokens, vocab_size] → float64 [tokens, vocab_size]."""
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    logs: NDArray[np.float64] = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    return logs


def _differences(number: int, expected: NDArray[np.float32], actual: NDArray[np.float32]) -> list[Difference]:
    """Positions with different most likely tokens; both logits are float32 [tokens, vocab_size]."""
    reference, file = expected.argmax(axis=1), actual.argmax(axis=1)
    found = []
    for position in np.flatnonzero(reference != file).tolist():
        best = np.partition(expected[position], -2)[-2:]
        gap = float(best[1]) - float(best[0])
        found.append(Difference(number, position, int(reference[position]), int(file[position]), gap))
    return found


def limits_of(file_type: str) -> dict[str, Any]:
    """The limits for a file of the type; None for a figure that is only reported."""
    row = FILE_TYPES.get(file_type)
    return {
        "mean_kl": row.kl_limit if row is not None else None,
        "top1_gap": TIE_GAP if row is not None and row.keeps_top1 else None,
    }


def check_limits(file_type: str, comparison: Comparison) -> list[str]:
    """The limits that a file violates, and by how much; empty if it passes or its type has no limits."""
    limits = limits_of(file_type)
    limit, problems = limits["mean_kl"], []
    if not math.isfinite(comparison.mean_kl):
        problems.append(f"{file_type}: mean KL is not finite")
    elif limit is not None and not comparison.mean_kl < limit:
        problems.append(
            f"{file_type}: mean KL is {quantities.number(comparison.mean_kl, 3)} nats, "
            f"{quantities.number(comparison.mean_kl / limit, 3)} times the limit of {quantities.exact(limit)}"
            f" (top-1 {quantities.percent(comparison.top1, 2)} on {comparison.positions} positions)"
        )
    if limits["top1_gap"] is not None:
        wide = [item for item in comparison.differences if not item.gap < TIE_GAP]
        if wide:
            worst = max(wide, key=lambda item: item.gap)
            problems.append(
                f"{file_type}: the file chooses another token at {len(wide)} of {comparison.positions} positions where "
                f"the model's two best logits are {quantities.exact(TIE_GAP)} or more apart (widest "
                f"{quantities.number(worst.gap, 3)}, window {worst.window}, position {worst.position})"
            )
    return problems
