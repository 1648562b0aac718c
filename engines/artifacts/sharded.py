"""A sharded checkpoint's index: which file has which part of a tensor. Read without torch, and not trusted.

The folder `shards` of a checkpoint has one safetensors file of each process that trained, and `shards.json`. A part of
a tensor is a box: an offset and a shape. No file there has the name of a model's weights, so that no program takes a
part for the whole.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from engines.files import read_regular_bytes
from engines.json_text import parse_json
from recipes.problems import OperatorError, printable

SHARDS = "shards"
INDEX = "shards.json"
TRAINING = "training.json"
"""In the folder of the shards: the settings of the optimizer's groups of weights, and the state of the schedule."""
MODEL_PREFIX, OPTIMIZER_PREFIX = "model/", "optimizer/"
"""In the names of the tensors: a weight by its name in the model, a state by its weight's number and its own name."""
FORMAT = 1
MAX_INDEX_BYTES = 256 * 1024 * 1024
MAX_RANKS = 65_536
MAX_BESIDE = 2_048
"""Most parts of a tensor that have rows in common."""
DTYPES = {
    "int64": ("I64", 8), "float64": ("F64", 8), "float32": ("F32", 4), "int32": ("I32", 4), "bfloat16": ("BF16", 2),
    "float16": ("F16", 2), "int16": ("I16", 2), "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1),
}  # fmt: skip
"""Types by torch's names: safetensors' names, and bytes of a value; in the order in which safetensors sorts them."""
_FILE = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and shape of a part in its tensor."""


class ShardsError(ValueError):
    """An index or a shard that is missing, damaged, or does not describe whole tensors."""


@dataclass(frozen=True)
class Part:
    """A part of a tensor, and the name of the file that has it."""

    file: str
    offset: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ShardedTensor:
    """A whole tensor: its type by torch's name, its shape, and the parts that make it up."""

    dtype: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def bytes(self) -> int:
        """Size of the whole tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype][1]


@dataclass(frozen=True)
class ShardIndex:
    """The tensors of a sharded checkpoint by name, and the number of processes that wrote it."""

    ranks: int
    tensors: Mapping[str, ShardedTensor]


def is_in_shards(checkpoint: Path) -> bool:
    """Whether a folder is a sharded checkpoint."""
    return (checkpoint / SHARDS / INDEX).is_file()


def refuse_shards(folder: Path) -> None:
    """Refuse a sharded checkpoint where a folder with whole weights is needed.

    Raises:
        OperatorError: it is one; the hint is the command that writes its whole weights.
    """
    if is_in_shards(folder):
        shown = printable(str(folder), 400)
        raise OperatorError(f"{shown} is a checkpoint in shards, without whole weights", how_to_consolidate(folder))


def how_to_consolidate(folder: Path) -> str:
    """What to do about a sharded checkpoint where whole weights are needed."""
    return f"write them first: cockpit consolidate {printable(str(folder), 400)} --out FOLDER; then use that folder"


def shard_name(rank: int, size: int) -> str:
    """The name of a rank's file; ranks count from 0, names from 1."""
    return f"shard-{rank + 1:05d}-of-{size:05d}.safetensors"


def read_index(checkpoint: Path) -> ShardIndex:
    """The index of a sharded checkpoint.

    Raises:
        ShardsError: it is missing, damaged, or does not describe whole tensors.
    """
    try:
        body = parse_json(read_regular_bytes(checkpoint / SHARDS / INDEX, MAX_INDEX_BYTES, follow=False))
    except (OSError, ValueError) as error:
        raise ShardsError(f"{INDEX} cannot be read: {error}") from error
    if not isinstance(body, dict) or body.get("format") != FORMAT or not isinstance(body.get("tensors"), dict):
        raise ShardsError(f"{INDEX} is not an index of format {FORMAT}")
    ranks = body.get("ranks")
    if not isinstance(ranks, int) or isinstance(ranks, bool) or not 1 <= ranks <= MAX_RANKS:
        raise ShardsError(f"{INDEX} has no number of ranks")
    return ShardIndex(ranks, {str(name): _tensor(str(name), one) for name, one in body["tensors"].items()})


def require_whole(name: str, shape: Iterable[int], boxes: list[Box]) -> None:
    """Refuse boxes that leave a gap, overlap, or leave the tensor.

    Raises:
        ShardsError: they do.
    """
    sizes = tuple(shape)
    inside = all(o + n <= m for offset, size in boxes for o, n, m in zip(offset, size, sizes, strict=True))
    filled = sum(math.prod(size) for _, size in boxes) == math.prod(sizes)
    if not (boxes and inside and filled and _are_apart(boxes)):
        raise ShardsError(f"the parts of {name[:80]!r} are not the whole tensor")


def _are_apart(boxes: list[Box]) -> bool:
    """Whether no two boxes have a value in common. Boxes that begin in different rows and end before the next begins
    need no comparison in pairs, which a hostile index of many parts would make endless."""
    groups: list[list[Box]] = []
    group: list[Box] = []
    ends = -1
    for box in sorted(boxes):
        first, rows = (box[0][0], box[1][0]) if box[0] else (0, 1)
        if first >= ends and group:
            groups.append(group)
            group = []
        group.append(box)
        ends = max(ends, first + rows)
    groups.append(group)
    if any(len(group) > MAX_BESIDE for group in groups):
        return False
    return not any(_overlap(one, other) for group in groups for one, other in combinations(group, 2))


def _tensor(name: str, one: Any) -> ShardedTensor:
    """One tensor of an index, if it is described wholly."""
    shape, parts = (one.get("shape"), one.get("parts")) if isinstance(one, dict) else (None, None)
    if not isinstance(shape, list) or not _numbers(shape) or not isinstance(parts, list):
        raise ShardsError(f"{INDEX}: {name[:80]!r} has no shape or no parts")
    if one.get("dtype") not in DTYPES:
        raise ShardsError(f"{INDEX}: {name[:80]!r} has no known dtype")
    for part in parts:
        known = isinstance(part, dict) and _numbers(part.get("offset")) and _numbers(part.get("shape"))
        if not known or not _FILE.fullmatch(str(part.get("file"))):
            raise ShardsError(f"{INDEX}: {name[:80]!r} has a part without file, offset or shape")
        if len(part["offset"]) != len(shape) or len(part["shape"]) != len(shape):
            raise ShardsError(f"{INDEX}: {name[:80]!r} has a part with other dimensions")
    found = tuple(Part(str(part["file"]), tuple(part["offset"]), tuple(part["shape"])) for part in parts)
    require_whole(name, shape, [(part.offset, part.shape) for part in found])
    return ShardedTensor(str(one["dtype"]), tuple(shape), found)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)


def _overlap(one: Box, other: Box) -> bool:
    return all(a < b + m and b < a + n for a, n, b, m in zip(*one, *other, strict=True))
