"""Writes GGUF files: the header, then each tensor piece by piece, padded. One piece is quantized while the next is
read."""

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
    """Some rows of a tensor in stored form: a future of their bytes, the number of bytes and the number of values."""

    data: Future[memoryview]
    bytes: int
    values: int


def ready(data: NDArray[Any], values: int) -> Piece:
    """A piece whose bytes are already computed: an array of any type, [rows, columns] or [rows, bytes of a row]."""
    future: Future[memoryview] = Future()
    future.set_result(np.ascontiguousarray(data).data.cast("B"))
    return Piece(future, data.nbytes, values)


def new_tensor(shape: Shape, type_id: int, size: int) -> NewTensor:
    """A tensor of `size` bytes for the header."""
    return NewTensor(shape.name, shape.sizes, type_id, size)


def write_file(
    file: BinaryIO,
    keys: Mapping[str, Value],
    tensors: Sequence[tuple[NewTensor, Iterable[Piece]]],
    progress: Progress = lambda _values: None,
) -> None:
    """Write a complete GGUF file to an open file. The caller syncs and renames it.

    Args:
        file: an empty file.
        keys: in file order.
        tensors: each with its pieces from the first row to the last; they are computed one after another.
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
    """The error for a tensor with infinities or NaN."""
    return OperatorError(f"{printable(name, 200)} contains a value that is not finite: the model is damaged")
