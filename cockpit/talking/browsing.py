"""The rows of an evaluation that a filter chooses, each with what a baseline answered."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from cockpit.talking.answers_target import AnswersTarget
from cockpit.talking.results_index import ResultRow, ResultsIndex

ALL, FAILED, PASSED, CHANGED, WON, LOST = "all", "failed", "passed", "changed", "won", "lost"
WITHOUT_BASELINE = (ALL, FAILED, PASSED)
WITH_BASELINE = (*WITHOUT_BASELINE, CHANGED, WON, LOST)
MOST_WORDS = 3000
"""Words of each text that are compared: more would take seconds."""


@dataclass(frozen=True)
class Shown:
    """One row, with the baseline's answer to the same prompt."""

    row: ResultRow
    baseline: ResultRow | None


class Browsing:
    """An opened results file.

    Attributes:
        index: its rows.
        baseline: the baseline's rows; None without one.
        filters: the filters that there are.
    """

    def __init__(self, target: AnswersTarget, progress: Callable[[int], None] = lambda _rows: None) -> None:
        """Read both files once; see `ResultsIndex`."""
        self.index = ResultsIndex(target.file, progress)
        self.baseline = None if target.baseline is None else ResultsIndex(target.baseline, progress)
        self.filters = WITHOUT_BASELINE if self.baseline is None else WITH_BASELINE
        theirs = {} if self.baseline is None else {key: at for at, key in enumerate(self.baseline.keys)}
        self._chosen: dict[str, list[int]] = {}
        self._theirs = [theirs.get(key, -1) for key in self.index.keys]

    def rows(self, chosen: str) -> list[int]:
        """The numbers of the rows of a filter, in the order of the file."""
        if chosen not in self._chosen:
            self._chosen[chosen] = [at for at in range(len(self.index)) if self._fits(at, chosen)]
        return self._chosen[chosen]

    def shown(self, at: int) -> Shown:
        """A row."""
        theirs = self._theirs[at]
        other = self.baseline.row(theirs) if self.baseline is not None and theirs >= 0 else None
        return Shown(self.index.row(at), other)

    def find(self, rows: list[int], start: int, text: str, by: int, stopped: Callable[[], bool]) -> int | None:
        """The place in `rows`, from `start` on, of a row that contains a text, in any case; None if no row does."""
        wanted = text.casefold()
        places = range(start, len(rows)) if by > 0 else range(start, -1, -1)
        for place in places:
            if stopped():
                return None
            row = self.index.row(rows[place])
            if any(wanted in part.casefold() for part in (row.name, row.prompt, row.answer, row.expected)):
                return place
        return None

    def _fits(self, at: int, chosen: str) -> bool:
        passed = bool(self.index.passed[at])
        if chosen in {PASSED, FAILED}:
            return passed == (chosen == PASSED)
        if chosen == ALL:
            return True
        theirs = self._theirs[at]
        if self.baseline is None or theirs < 0 or bool(self.baseline.passed[theirs]) == passed:
            return False
        return chosen == CHANGED or passed == (chosen == WON)


def differences(before: str, after: str) -> str:
    """The second text with what it adds as {+…+}, and what it lacks of the first as [-…-], word by word."""
    old, new = before.split()[:MOST_WORDS], after.split()[:MOST_WORDS]
    parts = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        if kind == "equal":
            parts += new[k:m]
            continue
        parts += [f"[-{' '.join(old[i:j])}-]"] if i < j else []
        parts += [f"{{+{' '.join(new[k:m])}+}}"] if k < m else []
    cut = max(len(before.split()), len(after.split())) > MOST_WORDS
    return " ".join(parts) + (" …" if cut else "")
