"""Compares a GGUF file with its model in transformers: the distribution at every position.

The reference is the model itself in float32. KL(reference ‖ file) is in nats, computed in float64 from both logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_SHOWN_DIFFERENCES = 200
TIPPED = 0.01
"""The share of the positions that `Comparison.settled_kl` leaves out."""
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
    """The comparison of one file with the reference. `loss` values are nats per next token inside the windows;
    `settled_kl` is the mean KL without the `TIPPED` share of positions that differ most."""

    positions: int = 0
    mean_kl: float = 0.0
    settled_kl: float = 0.0
    max_kl: float = 0.0
    top1: float = 0.0
    loss: float = 0.0
    reference_loss: float = 0.0
    loss_tokens: int = 0
    differences: list[Difference] = field(default_factory=list)

    @property
    def perplexity_ratio(self) -> float:
        """The file's perplexity divided by the reference's, on the windows' own next tokens."""
        return math.exp(min(self.loss - self.reference_loss, 700.0))

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


class FillsLogits(Protocol):
    """A model that computes all windows at once."""

    def logits_into(self, windows: Sequence[Sequence[int]], out: NDArray[np.float32], progress: Progress) -> None:
        """Logits after each token of every window, into float32 [positions, vocab_size]."""


class HasLogits(Protocol):
    """A model in any runtime."""

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Logits after each token of one sequence, float32 [tokens, vocab_size]."""


class Reference:
    """The model's own logits at every position, in a file instead of in memory."""

    def __init__(self, path: Path, windows: Sequence[Sequence[int]], vocab_size: int) -> None:
        """Create the file of `logits`, float32 [positions, vocab_size]."""
        self.windows = windows
        self.positions = sum(map(len, windows))
        self.logits: NDArray[np.float32] = np.memmap(path, np.float32, "w+", shape=(self.positions, vocab_size))

    def compute(self, model: FillsLogits, progress: Progress) -> None:
        """Run a model over every window."""
        model.logits_into(self.windows, self.logits, progress)

    def compare(self, other: Reference) -> Comparison:
        """Compare another reference of the same windows with this one."""
        total, start = _Total(), 0
        for number, window in enumerate(self.windows):
            rows = slice(start, start + len(window))
            total.add(number, self.logits[rows], other.logits[rows], window)
            start += len(window)
        return total.mean()

    def mean_kl(self, other: Reference) -> float:
        """Mean KL, nats, of another reference of the same windows from this one."""
        return 0.0 if other is self else mean_kl(self.logits, other.logits)


def compare(reference: Reference, other: HasLogits, progress: Progress) -> Comparison:
    """Score every window with a file, or with another model, and compare each position's distribution with the
    reference's."""
    return compare_each([reference], other, progress)[0]


def compare_each(references: Sequence[Reference], other: HasLogits, progress: Progress) -> list[Comparison]:
    """Compare with several references of the same windows; the file scores each window once."""
    totals = [_Total() for _ in references]
    start = 0
    for number, window in enumerate(references[0].windows):
        actual = other.logits(window)
        for total, reference in zip(totals, references, strict=True):
            total.add(number, reference.logits[start : start + len(window)], actual, window)
        start += len(window)
        progress(len(window))
    return [total.mean() for total in totals]


class _Total:
    """Sums over windows."""

    def __init__(self) -> None:
        self._kls: list[NDArray[np.float64]] = []
        self._equal, self._sums = 0, Comparison()

    def add(
        self, number: int, expected: NDArray[np.float32], actual: NDArray[np.float32], window: Sequence[int]
    ) -> None:
        """Add a window; both logits are float32 [tokens, vocab_size]."""
        sums = self._sums
        kl, losses = _distances(expected, actual, window)
        self._kls.append(kl)
        sums.max_kl = max(sums.max_kl, float(kl.max()))
        sums.reference_loss += losses[0]
        sums.loss += losses[1]
        found = _differences(number, expected, actual)
        self._equal += len(window) - len(found)
        sums.differences += found
        sums.positions += len(window)
        sums.loss_tokens += len(window) - 1

    def mean(self) -> Comparison:
        sums, kls = self._sums, np.sort(np.concatenate(self._kls))
        return replace(
            sums,
            mean_kl=float(kls.mean()),
            settled_kl=float(kls[: len(kls) - int(len(kls) * TIPPED)].mean()),
            top1=self._equal / sums.positions,
            loss=sums.loss / sums.loss_tokens,
            reference_loss=sums.reference_loss / sums.loss_tokens,
        )


def mean_kl(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """Mean KL, nats, of two computations of the same positions; both logits are float32 [positions, vocab_size]."""
    total = 0.0
    for start in range(0, len(expected), _ROWS):
        p, q = _log_softmax(expected[start : start + _ROWS]), _log_softmax(actual[start : start + _ROWS])
        total += float(np.sum(np.exp(p) * (p - q)))
    return total / len(expected)


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
        following = np.asarray(window[rows.start + 1 : rows.stop + 1], np.int64)  # may be empty
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
