"""Tensors of a checkpoint over several files, one of each rank, with an index in JSON. Nothing in it is a program.

Each rank writes its pieces of the tensors as safetensors, makes the file durable, and leaves a receipt with the file's
SHA-256 beside it. The first rank waits for all receipts, compares them with the files, checks that the pieces make up
every tensor, and writes the index. There is no exchange over the network: a rank that has died leaves no receipt, and
the checkpoint gets no name.

The pieces of a tensor are boxes: an offset and a shape. So other numbers of ranks, or one process, can read them.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engines.files import file_sha256, fsync_file, read_regular_bytes, write_durably
from engines.json_text import parse_json

INDEX = "shards.json"
FORMAT = 1
MAX_INDEX_BYTES = 256 * 1024 * 1024
MAX_RANKS = 65_536
POLL_S = 0.02
_FILE = re.compile(r"shard-\d{5}-of-\d{5}\.safetensors")

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and shape of a piece in its tensor."""


class ShardsError(ValueError):
    """An index that is missing, damaged, or does not describe whole tensors."""


@dataclass(frozen=True)
class Piece:
    """What one rank has of a tensor.

    Attributes:
        data: the values; their shape is that of the piece.
        offset: of the piece in the tensor.
        shape: of the whole tensor.
    """

    data: torch.Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]


def shard_name(rank: int, size: int) -> str:
    """The name of a rank's file; ranks count from 0, names from 1."""
    return f"shard-{rank + 1:05d}-of-{size:05d}.safetensors"


def write_shard(folder: Path, rank: int, size: int, pieces: Mapping[str, Piece]) -> None:
    """Write what a rank has of the tensors, and its receipt; a failed write leaves a receipt that says why.

    Args:
        folder: of the unfinished checkpoint, on a file system that all ranks share.
        rank: of this process.
        size: number of processes.
        pieces: by the names of the tensors; empty pieces are left out.

    Raises:
        OSError: the disk is full or fails.
    """
    path = folder / shard_name(rank, size)
    held = {name: piece for name, piece in pieces.items() if piece.data.numel() or not math.prod(piece.shape)}
    try:
        save_file({name: piece.data.contiguous() for name, piece in held.items()}, path, metadata={"format": "pt"})
        fsync_file(path)
        receipt: dict[str, Any] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "tensors": {
                name: {
                    "dtype": str(piece.data.dtype).removeprefix("torch."),
                    "shape": list(piece.shape),
                    "offset": list(piece.offset),
                    "piece": list(piece.data.shape),
                }
                for name, piece in held.items()
            },
        }
    except Exception as error:
        with suppress(OSError):
            write_durably(_receipt(folder, rank, size), json.dumps({"error": str(error)[:2000]}).encode())
        raise
    write_durably(_receipt(folder, rank, size), json.dumps(receipt).encode())


def collect_shards(folder: Path, size: int, *, keep_waiting: Callable[[], bool], timeout_s: float) -> int:
    """Wait for the shards of all ranks, compare each with its receipt, and write the index.

    Args:
        folder: of the unfinished checkpoint.
        size: number of ranks.
        keep_waiting: False ends the wait: a rank has died, or the attempt ends.
        timeout_s: most seconds to wait for all of them.

    Returns:
        The bytes of all shards.

    Raises:
        OSError: a rank could not write, its file is another one than it wrote, or it has not written in time.
        ShardsError: the pieces do not make up the tensors.
    """
    receipts = _receipts(folder, size, keep_waiting, timeout_s)
    total = 0
    for rank, receipt in enumerate(receipts):
        path = folder / shard_name(rank, size)
        if path.stat().st_size != receipt["bytes"] or file_sha256(path) != receipt["sha256"]:
            raise OSError(f"{path.name} is not what rank {rank} wrote")
        total += receipt["bytes"]
    tensors: dict[str, Any] = {}
    for rank, receipt in enumerate(receipts):
        for name, found in receipt["tensors"].items():
            one = tensors.setdefault(name, {"dtype": found["dtype"], "shape": found["shape"], "pieces": []})
            if (one["dtype"], one["shape"]) != (found["dtype"], found["shape"]):
                raise ShardsError(f"{name} has another type or shape on rank {rank}")
            one["pieces"].append({"file": shard_name(rank, size), "offset": found["offset"], "shape": found["piece"]})
    for name, one in tensors.items():
        _require_whole(name, one["shape"], [_box(piece) for piece in one["pieces"]])
    body = {"format": FORMAT, "ranks": size, "tensors": tensors}
    write_durably(folder / INDEX, json.dumps(body, indent=1).encode() + b"\n")
    for rank in range(size):
        _receipt(folder, rank, size).unlink()
    return total


def _receipts(folder: Path, size: int, keep_waiting: Callable[[], bool], timeout_s: float) -> list[dict[str, Any]]:
    ends_s = time.monotonic() + timeout_s
    receipts: dict[int, dict[str, Any]] = {}
    while len(receipts) < size:
        for rank in range(size):
            path = _receipt(folder, rank, size)
            if rank not in receipts and path.exists():
                found = parse_json(read_regular_bytes(path, MAX_INDEX_BYTES, follow=False))
                if "error" in found:
                    raise OSError(f"rank {rank}: {found['error']}")
                receipts[rank] = found
        if len(receipts) < size:
            missing = ", ".join(str(rank) for rank in range(size) if rank not in receipts)
            if not keep_waiting():
                raise OSError(f"the attempt ends, and rank {missing} has not written its shard")
            if time.monotonic() >= ends_s:
                raise OSError(f"rank {missing} has not written its shard in {timeout_s:g} s")
            time.sleep(POLL_S)
    return [receipts[rank] for rank in range(size)]


class Shards:
    """The tensors of a sharded checkpoint. Its index is not trusted: names, boxes and sizes are checked first.

    Raises:
        ShardsError: the index is missing, damaged, or does not describe whole tensors.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            body = parse_json(read_regular_bytes(folder / INDEX, MAX_INDEX_BYTES, follow=False))
        except (OSError, ValueError) as error:
            raise ShardsError(f"{INDEX} cannot be read: {error}") from error
        if not isinstance(body, dict) or body.get("format") != FORMAT or not isinstance(body.get("tensors"), dict):
            raise ShardsError(f"{INDEX} is not an index of format {FORMAT}")
        ranks = body.get("ranks")
        if not isinstance(ranks, int) or isinstance(ranks, bool) or not 1 <= ranks <= MAX_RANKS:
            raise ShardsError(f"{INDEX} has no number of ranks")
        self.ranks = ranks
        self._tensors = {str(name): _checked(str(name), one) for name, one in body["tensors"].items()}

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        return tuple(self._tensors[name]["shape"])

    def read(self, name: str, box: Box | None = None) -> torch.Tensor:
        """A tensor, or the box of it that a rank needs.

        Raises:
            KeyError: there is no tensor of this name.
            ShardsError: a file is damaged or missing.
        """
        one = self._tensors[name]
        offset, shape = box or ((0,) * len(one["shape"]), tuple(one["shape"]))
        result: torch.Tensor | None = None
        for piece in one["pieces"]:
            at, size = _box(piece)
            begin = tuple(map(max, offset, at)) if shape else ()
            end = tuple(min(o + n, a + m) for o, n, a, m in zip(offset, shape, at, size, strict=True))
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            part = self._part(
                piece["file"], name, size, [slice(b - a, e - a) for b, e, a in zip(begin, end, at, strict=True)]
            )
            if result is None:
                result = torch.empty(shape, dtype=part.dtype)
            result[tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, offset, strict=True))] = part
        if result is None:
            return torch.empty(shape, dtype=getattr(torch, one["dtype"]))
        return result

    def _part(self, file: str, name: str, size: tuple[int, ...], where: list[slice]) -> torch.Tensor:
        try:
            with safe_open(self._folder / file, framework="pt") as opened:
                if not where:
                    return opened.get_tensor(name)
                found = opened.get_slice(name)
                if tuple(found.get_shape()) != size:
                    raise ShardsError(f"{file}: {name} has the shape {found.get_shape()}, the index says {list(size)}")
                part: torch.Tensor = found[tuple(where)]
                return part
        except ShardsError:
            raise
        except Exception as error:
            raise ShardsError(f"{file}: {name} cannot be read: {error}") from error


def _checked(name: str, one: Any) -> dict[str, Any]:
    """One tensor of an index, if it is described wholly."""
    shape, pieces = (one.get("shape"), one.get("pieces")) if isinstance(one, dict) else (None, None)
    if not isinstance(shape, list) or not _numbers(shape) or not isinstance(pieces, list):
        raise ShardsError(f"{INDEX}: {name[:80]!r} has no shape or no pieces")
    if not isinstance(getattr(torch, str(one.get("dtype")), None), torch.dtype):
        raise ShardsError(f"{INDEX}: {name[:80]!r} has no known dtype")
    for piece in pieces:
        known = isinstance(piece, dict) and _numbers(piece.get("offset")) and _numbers(piece.get("shape"))
        if not known or not _FILE.fullmatch(str(piece.get("file"))):
            raise ShardsError(f"{INDEX}: {name[:80]!r} has a piece without file, offset or shape")
        if len(piece["offset"]) != len(shape) or len(piece["shape"]) != len(shape):
            raise ShardsError(f"{INDEX}: {name[:80]!r} has a piece with other dimensions")
    _require_whole(name, shape, [_box(piece) for piece in pieces])
    return dict(one)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in value)


def _box(piece: Mapping[str, Any]) -> Box:
    return tuple(piece["offset"]), tuple(piece["shape"])


def _require_whole(name: str, shape: Iterable[int], boxes: list[Box]) -> None:
    """Refuse boxes that leave a gap, overlap, or leave the tensor."""
    sizes = tuple(shape)
    inside = all(o + n <= m for offset, size in boxes for o, n, m in zip(offset, size, sizes, strict=True))
    apart = not any(_overlap(one, other) for one, other in combinations(boxes, 2))
    filled = sum(math.prod(size) for _, size in boxes) == math.prod(sizes)
    if not (inside and apart and filled and boxes):
        raise ShardsError(f"the pieces of {name[:80]!r} are not the whole tensor")


def _overlap(one: Box, other: Box) -> bool:
    return all(a < b + m and b < a + n for a, n, b, m in zip(*one, *other, strict=True))


def _receipt(folder: Path, rank: int, size: int) -> Path:
    return (folder / shard_name(rank, size)).with_suffix(".json")
