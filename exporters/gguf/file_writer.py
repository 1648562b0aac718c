"""The one writer of GGUF files: header, then each tensor piece by piece, padded; pieces are quantized while the next
are read."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from engines.llama.gguf_file import Value, padded
from engines.llama.gguf_write import NewTensor, write_header
from engines.llama.quantizer import NotFiniteError
from exporters.gguf.quant_types import Shape
from recipes.problems import OperatorError, printable

Progress = Callable[[int], None]
"""Called with the number of values written since the last call."""


@dataclass(frozen=True)
class Piece:
    """Some rows of a tensor as they are stored: the bytes to come, how many they are, and of how many values."""

    data: Future[memoryview]
    bytes: int
    values: int


def ready(data: NDArray[Any], values: int) -> Piece:
    """A piece whose bytes are there: an array of any type, [rows, columns] or [rows, bytes of a row], row after row."""
    future: Future[memoryview] = Future()
    future.set_result(np.ascontiguousarray(data).data.cast("B"))
    return Piece(future, data.nbytes, values)


def new_tensor(shape: Shape, type_id: int, size: int) -> NewTensor:
    """A tensor of `size` bytes for the header: dimensions are columns first, and a vector has one."""
    return NewTensor(shape.name, (shape.columns, shape.rows)[: shape.dimensions], type_id, size)


def write_file(
    file: BinaryIO,
    keys: Mapping[str, Value],
    tensors: Sequence[tuple[NewTensor, Iterable[Piece]]],
    progress: Progress = lambda _values: None,
) -> None:
    """Write a whole GGUF file to an open one; making it durable and giving it its name is the caller's.

    Args:
        file: an empty file.
        keys: in the order in which they are written.
        tensors: each with its pieces from the first row to the last, which are asked for one after another.
        progress: see `Progress`.

    Raises:
        OperatorError: a value is not finite; names the tensor.
    """
    write_header(file, keys, [tensor for tensor, _ in tensors])
    waiting: deque[tuple[NewTensor, Piece, int]] = deque()
    for tensor, pieces in tensors:
        left = tensor.bytes
        for piece in pieces:
            left -= piece.bytes
            waiting.append((tensor, piece, padded(tensor.bytes) - tensor.bytes if left == 0 else 0))
            while len(waiting) > 1:
                _write(file, *waiting.popleft())
            progress(piece.values)
        if left:
            raise AssertionError(f"{tensor.name}: {tensor.bytes - left} bytes; expected {tensor.bytes}")
    while waiting:
        _write(file, *waiting.popleft())


def _write(file: BinaryIO, tensor: NewTensor, piece: Piece, padding: int) -> None:
    try:
        data = piece.data.result()
    except NotFiniteError as error:
        raise not_finite(tensor.name) from error
    if len(data) != piece.bytes:
        raise AssertionError(f"{tensor.name}: {len(data)} bytes; expected {piece.bytes}")
    file.write(data)
    if padding:
        file.write(bytes(padding))


def not_finite(name: str) -> OperatorError:
    """A tensor that holds infinities or worse."""
    return OperatorError(f"{printable(name, 200)} holds a value that is not finite: the model is damaged")
