"""Undo and redo of a text: what it was before each edit, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

RowKey = tuple[int, str]
"""A row: the stage's place and the field's key."""
MAX_STEPS = 500


@dataclass(frozen=True)
class Step:
    """A text, and the row that was edited then; None for a change of the whole text."""

    text: str
    row: RowKey | None


class History:
    """Texts before and after the present one. All edits of one visit of a row are one step."""

    def __init__(self) -> None:
        self._past: list[Step] = []
        self._future: list[Step] = []
        self._visited: RowKey | None = None

    def text_before(self, row: RowKey, text: str) -> str:
        """The text that an edit of a row starts from: the one before the row was entered, while it is visited.

        So a value that is cleared and typed again keeps its place and its comment.
        """
        return self._past[-1].text if self._visited == row and self._past else text

    def remember(self, text: str, row: RowKey | None) -> None:
        """An edit of a row (or of the whole text) is about to change this text."""
        self._future.clear()
        if row is None or row != self._visited:
            self._past.append(Step(text, row))
            del self._past[:-MAX_STEPS]
        self._visited = row

    def leave_row(self, text: str) -> None:
        """The row was left: the next edit of it is a step of its own. An edit that was taken back by hand is no
        step."""
        if self._visited is not None and self._past and self._past[-1].text == text:
            self._past.pop()
        self._visited = None

    def undo(self, text: str) -> Step | None:
        """The text before the last edit; None when there is nothing to undo."""
        return self._travel(text, self._past, self._future)

    def redo(self, text: str) -> Step | None:
        """The text after the edit that was undone last; None when there is none."""
        return self._travel(text, self._future, self._past)

    def _travel(self, text: str, source: list[Step], target: list[Step]) -> Step | None:
        if not source:
            return None
        step = source.pop()
        target.append(Step(text, step.row))
        self._visited = None
        return step
