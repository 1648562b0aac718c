"""Undo and redo of a text, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

RowKey = tuple[int, str]
"""A row: the stage's position and the field's key."""
MAX_STEPS = 500


@dataclass(frozen=True)
class Step:
    """A text, and the row whose edit changed it; None for a change of the whole text."""

    text: str
    row: RowKey | None


class History:
    """The texts before and after the current text. All edits during one visit of a row are one step."""

    def __init__(self) -> None:
        self._past: list[Step] = []
        self._future: list[Step] = []
        self._visited: RowKey | None = None

    def text_before(self, row: RowKey, text: str) -> str:
        """The text to which an edit of a row is applied: during a visit, the text before the row was entered.

        A value that is cleared and typed again thus keeps its position and its comment.
        """
        return self._past[-1].text if self._visited == row and self._past else text

    def remember(self, text: str, row: RowKey | None) -> None:
        """Store the text before an edit of a row, or of the whole text for `row=None`, changes it."""
        self._future.clear()
        if row is None or row != self._visited:
            self._past.append(Step(text, row))
            del self._past[:-MAX_STEPS]
        self._visited = row

    def leave_row(self, text: str) -> None:
        """End the visit of a row: its next edit is a new step. A visit that did not change the text adds no step."""
        if self._visited is not None and self._past and self._past[-1].text == text:
            self._past.pop()
        self._visited = None

    def undo(self, text: str) -> Step | None:
        """The text before the last edit; None if there is nothing to undo."""
        return self._travel(text, self._past, self._future)

    def redo(self, text: str) -> Step | None:
        """The text after the last undone edit; None if there is nothing to redo."""
        return self._travel(text, self._future, self._past)

    def _travel(self, text: str, source: list[Step], target: list[Step]) -> Step | None:
        if not source:
            return None
        step = source.pop()
        target.append(Step(text, step.row))
        self._visited = None
        return step
