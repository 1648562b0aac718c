"""Splits a GGUF file into several, as llama.cpp's gguf-split does: the first has the model's keys, each has its number.

llama.cpp loads all of them when it is given the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from engines.files import atomic_file
from engines.llama.gguf_file import (
    MAX_PARTS,
    SPLIT_COUNT,
    SPLIT_NO,
    SPLIT_TENSORS,
    GgufFile,
    Tensor,
    Value,
    part_paths,
    read_gguf,
)
from engines.llama.gguf_write import NewTensor, int32_value, uint16_value
from exporters.gguf.file_names import shard_name
from exporters.gguf.file_writer import Piece, Progress, ready, write_file
from exporters.hf_model.tensor_files import row_chunks
from recipes.problems import OperatorError, printable


def split_larger(path: Path, limit: int, progress: Progress = lambda _values: None) -> list[Path]:
    """Split a complete file of more than `limit` bytes of tensors; it is removed when its parts are durable.

    Args:
        path: the file.
        limit: most bytes of tensors in one part; a larger tensor has a part of its own.
        progress: called with the number of values copied since the last call.

    Returns:
        The parts, the first one first; the file itself if it is not larger.

    Raises:
        OperatorError: it would have too many parts, or has a tensor of an unknown type.
    """
    if path.stat().st_size <= limit:
        return [path]
    file = read_gguf(path)
    parts = _divided(file, limit)
    if len(parts) > MAX_PARTS:
        raise OperatorError(f"max_shard_size — {path.name} would have {len(parts)} parts; allowed up to {MAX_PARTS}")
    if len(parts) == 1:
        return [path]
    made = [path.with_name(shard_name(path.name, number + 1, len(parts))) for number in range(len(parts))]
    for number, (target, tensors) in enumerate(zip(made, parts, strict=True)):
        keys = {name: value for name, value in file.keys.items() if name != "general.alignment"} if number == 0 else {}
        with atomic_file(target) as new:
            write_file(
                new, {**keys, **_split_keys(number, len(parts), len(file.tensors))}, _copies(file, tensors), progress
            )
    path.unlink()
    return made


def written_parts(path: Path) -> list[Path]:
    """The files that a model was written to under this name: the file, or its parts; the name alone before that."""
    if path.exists():
        return [path]
    firsts = sorted(path.parent.glob(f"{path.stem}-00001-of-?????.gguf"))
    return part_paths(firsts[0]) if firsts else [path]


def _divided(file: GgufFile, limit: int) -> list[list[Tensor]]:
    """The tensors of each part, in the file's order."""
    parts: list[list[Tensor]] = [[]]
    size = 0
    for tensor in file.tensors.values():
        if parts[-1] and size + _bytes(tensor) > limit:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += _bytes(tensor)
    return parts


def _split_keys(number: int, count: int, tensors: int) -> Mapping[str, Value]:
    return {SPLIT_NO: uint16_value(number), SPLIT_COUNT: uint16_value(count), SPLIT_TENSORS: int32_value(tensors)}


def _copies(file: GgufFile, tensors: Sequence[Tensor]) -> list[tuple[NewTensor, Iterator[Piece]]]:
    return [(NewTensor(t.name, t.dimensions, t.type_id, _bytes(t)), _pieces(file, t)) for t in tensors]


def _pieces(file: GgufFile, tensor: Tensor) -> Iterator[Piece]:
    for start, stop in row_chunks(tensor.rows, tensor.columns):
        data = np.frombuffer(file.read(tensor, start, stop - start), np.uint8)
        yield ready(data, (stop - start) * tensor.columns)


def _bytes(tensor: Tensor) -> int:
    if tensor.kind is None:
        raise OperatorError(f"tensor {printable(tensor.name, 200)} has the unknown type {tensor.type_id}")
    return tensor.rows * tensor.kind.row_bytes(tensor.columns)
