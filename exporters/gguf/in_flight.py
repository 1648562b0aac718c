"""Rows on their way into a file, in order: some are being quantized while the next are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.llama.quantizer import NotFiniteError
from recipes.problems import OperatorError, printable


def done(data: NDArray[Any]) -> Future[memoryview]:
    """Rows that are ready."""
    future: Future[memoryview] = Future()
    future.set_result(np.ascontiguousarray(data).data.cast("B"))
    return future


class InFlight:
    """Writes what it is given in the order in which it is given."""

    def __init__(self, write: Callable[[memoryview | bytes], object]) -> None:
        """`write` appends bytes to the file."""
        self._write = write
        self._waiting: deque[tuple[Future[memoryview], str, int, int]] = deque()

    def add(self, rows: Future[memoryview], name: str, expected: int, padding: int = 0) -> None:
        """Rows of a tensor, how many bytes they must be, and how many zeros follow them.

        Raises:
            OperatorError: a value of earlier rows is not finite; names the tensor.
        """
        self._waiting.append((rows, name, expected, padding))
        while len(self._waiting) > 1:
            self._write_first()

    def finish(self) -> None:
        """Write what is still on its way."""
        while self._waiting:
            self._write_first()

    def _write_first(self) -> None:
        rows, name, expected, padding = self._waiting.popleft()
        try:
            data = rows.result()
        except NotFiniteError as error:
            raise not_finite(name) from error
        if len(data) != expected:
            raise AssertionError(f"{name}: {len(data)} bytes; expected {expected}")
        self._write(data)
        if padding:
            self._write(bytes(padding))


def not_finite(name: str) -> OperatorError:
    """A tensor that holds infinities or worse."""
    return OperatorError(f"{printable(name, 200)} holds a value that is not finite: the model is damaged")
