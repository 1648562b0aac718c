"""A row that cannot be used: what is wrong with it, and what to do."""

from __future__ import annotations


class BadRowError(ValueError):
    """One row, or one line, cannot be used; other rows of its file can.

    Attributes:
        what: what is wrong, with the value.
        reason: the kind of mistake in a few words without values, by which skipped rows are counted.
        hint: what to do; empty if only the data can be changed.
    """

    def __init__(self, what: str, reason: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.reason = reason or what
        self.hint = hint
