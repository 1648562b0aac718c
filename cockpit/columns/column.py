"""Columns of numbers: in memory, or mapped from a side index with what was added since.

A mapped column costs memory only for the parts that were just used, so that a screen on a run of a million steps stays
small.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Literal, TypeAlias, overload


class MappedColumn(Sequence[float]):
    """A column of an index file, and the numbers that were added since.

    Args:
        stored: the file's numbers, of type `d` or `f`.
    """

    def __init__(self, stored: memoryview[float]) -> None:
        self._stored = stored
        self._size = len(stored)
        self._kind: Literal["d", "f"] = "f" if stored.format == "f" else "d"
        self._added: array[float] = array(self._kind)

    def append(self, value: float, /) -> None:
        """Add a number."""
        self._added.append(value)

    def extend(self, values: Iterable[float], /) -> None:
        """Add numbers."""
        self._added.extend(values)

    def to_array(self) -> array[float]:
        """All numbers, in memory."""
        whole: array[float] = array(self._kind)
        whole.frombytes(self._stored.cast("B"))
        whole.extend(self._added)
        return whole

    def tobytes(self) -> bytes:
        """The bytes of all numbers."""
        return self._stored.tobytes() + self._added.tobytes()

    def __len__(self) -> int:
        return self._size + len(self._added)

    def __iter__(self) -> Iterator[float]:
        return chain(self._stored, self._added)

    @overload
    def __getitem__(self, index: int, /) -> float: ...

    @overload
    def __getitem__(self, index: slice, /) -> Sequence[float]: ...

    def __getitem__(self, index: int | slice, /) -> float | Sequence[float]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            found = span(self, start, stop)
            return found if step == 1 else found[::step]
        at = index + len(self) if index < 0 else index
        if at < self._size:
            if at < 0:
                raise IndexError(index)
            return self._stored[at]
        return self._added[at - self._size]

    def span(self, start: int, stop: int) -> Sequence[float]:
        """The numbers from `start` to before `stop`; without a copy where they are all of the file, or all added."""
        if stop <= self._size:
            return self._stored[start:stop]
        if start >= self._size:
            return memoryview(self._added)[start - self._size : stop - self._size]
        part: array[float] = array(self._kind)
        part.frombytes(self._stored[start:].cast("B"))
        part.extend(self._added[: stop - self._size])
        return part


Column: TypeAlias = "array[float] | MappedColumn"


def span(column: Column, start: int, stop: int) -> Sequence[float]:
    """A part of a column, without a copy where possible; for use before anything else is added."""
    return column.span(start, stop) if isinstance(column, MappedColumn) else memoryview(column)[start:stop]


def in_memory(column: Column) -> array[float]:
    """A copy of a column, in memory."""
    return column.to_array() if isinstance(column, MappedColumn) else column[:]
