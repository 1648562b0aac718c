"""Evaluation batches that are divided where memory does not hold them, so an evaluation ends no training.

An evaluation is a sum over rows, so the division changes its result by the rounding of that sum only.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from engines.exhausted_memory import exhausted_memory

Row = TypeVar("Row")
Result = TypeVar("Result")


class Fitting:
    """Remembers how many rows fit, for all evaluations of one attempt.

    Args:
        warn: takes one sentence each time that fewer rows are used.
    """

    def __init__(self, warn: Callable[[str], None] = lambda _words: None) -> None:
        self._warn = warn
        self._most: int | None = None

    def each(self, rows: Sequence[Row], score: Callable[[Sequence[Row]], Result]) -> Iterator[Result]:
        """The results of `score` for parts of `rows`, in order: all at once if memory holds them.

        Raises:
            Exception: what `score` raises; for exhausted memory only when it has one row.
        """
        done = 0
        while done < len(rows):
            part = rows[done : done + (self._most or len(rows))]
            failure: Exception | None = None
            try:
                result = score(part)
            except Exception as error:
                if len(part) == 1 or not exhausted_memory(error):
                    raise
                failure = error
            if failure is None:
                yield result
                done += len(part)
                continue
            self._halve(len(part), failure)

    def _halve(self, rows: int, failure: Exception) -> None:
        which = exhausted_memory(failure)
        traceback.clear_frames(failure.__traceback__)  # they hold what filled the memory
        self._most = rows // 2
        self._warn(
            f"memory ran out in an evaluation with {rows} rows at once ({which}); it continues with {self._most}, and"
            " the result is the same: per_device_eval_batch_size sets the number of rows"
        )


class Whole(Fitting):
    """Divides nothing: the processes over which a model is divided compute equally many passes."""

    def each(self, rows: Sequence[Row], score: Callable[[Sequence[Row]], Result]) -> Iterator[Result]:
        """The result of `score` for all rows."""
        yield score(rows)
