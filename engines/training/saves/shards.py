"""The tensors of a sharded checkpoint: each rank writes its parts, the first one collects them, any number reads them.

Each rank writes its parts of the tensors as safetensors, makes the file durable, and leaves a receipt with the file's
SHA-256 beside it. The first rank waits for all receipts, compares them with the files, checks that the parts make up
every tensor, and writes the index. There is no exchange over the network: a rank that has died leaves no receipt, and
the checkpoint gets no name.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from engines.artifacts.sharded import (
    DTYPES,
    FORMAT,
    INDEX,
    MAX_INDEX_BYTES,
    SHARDS,
    Box,
    ShardsError,
    read_index,
    require_whole,
    shard_name,
)
from engines.files import file_sha256, fsync_file, read_regular_bytes, write_durably
from engines.json_text import parse_json
from recipes import quantities

POLL_S = 0.02


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


@dataclass(frozen=True)
class Collected:
    """The shards of all ranks.

    Attributes:
        finite: every rank's values are finite.
        sha256: of each file, by its path in the checkpoint; compared with the file.
    """

    finite: bool
    sha256: Mapping[str, str]


def write_shard(checkpoint: Path, rank: int, size: int, pieces: Mapping[str, Piece], *, finite: bool = True) -> None:
    """Write what a rank has of the tensors, and its receipt; a failed write leaves a receipt that says why.

    Args:
        checkpoint: the unfinished folder, with a folder for the shards, on a file system that all ranks share.
        rank: of this process.
        size: number of processes.
        pieces: by the names of the tensors; empty pieces are left out.
        finite: whether all values are finite.

    Raises:
        OSError: the disk is full or fails.
    """
    path = checkpoint / SHARDS / shard_name(rank, size)
    held = {name: piece for name, piece in pieces.items() if piece.data.numel() or not math.prod(piece.shape)}
    try:
        save_file({name: piece.data.contiguous() for name, piece in held.items()}, path, metadata={"format": "pt"})
        fsync_file(path)
        receipt: dict[str, Any] = {
            "bytes": path.stat().st_size,
            "sha256": file_sha256(path),
            "finite": finite,
            "tensors": {
                name: {
                    "dtype": str(piece.data.dtype).removeprefix("torch."),
                    "shape": list(piece.shape),
                    "offset": list(piece.offset),
                    "part": list(piece.data.shape),
                }
                for name, piece in held.items()
            },
        }
        write_durably(_receipt(checkpoint, rank, size), json.dumps(receipt).encode())
    except Exception as error:
        with suppress(OSError):
            path.unlink()  # it may be what fills the disk
        leave_failure(checkpoint, rank, size, error)
        raise


def leave_failure(checkpoint: Path, rank: int, size: int, error: Exception) -> None:
    """Say in place of a receipt why a rank writes no shard, so that the first one waits no longer; at most an attempt.

    Args:
        checkpoint: the unfinished folder.
        rank: of this process.
        size: number of processes.
        error: why.
    """
    words = str(error)[:2000] or type(error).__name__
    with suppress(OSError):
        write_durably(_receipt(checkpoint, rank, size), json.dumps({"error": words}).encode())


def collect_shards(checkpoint: Path, size: int, *, why_stop: Callable[[], str], timeout_s: float) -> Collected:
    """Wait for the shards of all ranks, compare each with its receipt, and write the index.

    Args:
        checkpoint: the unfinished folder.
        size: number of ranks.
        why_stop: why not to wait any longer; empty while there is no reason.
        timeout_s: most seconds to wait for all of them.

    Raises:
        OSError: a rank could not write, its file is another one than it wrote, or it has not written in time.
        ShardsError: the pieces do not make up the tensors.
    """
    receipts = _receipts(checkpoint, size, why_stop, timeout_s)
    sha256 = {}
    for rank, receipt in enumerate(receipts):
        path = checkpoint / SHARDS / shard_name(rank, size)
        found = file_sha256(path)
        if path.stat().st_size != receipt["bytes"] or found != receipt["sha256"]:
            raise OSError(f"{path.name} is not what rank {rank} wrote")
        sha256[f"{SHARDS}/{path.name}"] = found
    body = {"format": FORMAT, "ranks": size, "tensors": _tensors(receipts)}
    write_durably(checkpoint / SHARDS / INDEX, json.dumps(body, indent=1).encode() + b"\n")
    for rank in range(size):
        _receipt(checkpoint, rank, size).unlink()
    return Collected(all(receipt["finite"] is True for receipt in receipts), sha256)


def _tensors(receipts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The tensors that the pieces of all ranks make up, in the form of the index."""
    tensors: dict[str, Any] = {}
    for rank, receipt in enumerate(receipts):
        for name, found in receipt["tensors"].items():
            one = tensors.setdefault(name, {"dtype": found["dtype"], "shape": found["shape"], "parts": []})
            if (one["dtype"], one["shape"]) != (found["dtype"], found["shape"]) or one["dtype"] not in DTYPES:
                raise ShardsError(f"{name} has another type or shape on rank {rank}, or no known type")
            file = shard_name(rank, len(receipts))
            one["parts"].append({"file": file, "offset": found["offset"], "shape": found["part"]})
    for name, one in tensors.items():
        require_whole(name, one["shape"], [(tuple(part["offset"]), tuple(part["shape"])) for part in one["parts"]])
    return tensors


def _receipts(folder: Path, size: int, why_stop: Callable[[], str], timeout_s: float) -> list[dict[str, Any]]:
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
            reason = why_stop()
            if reason:
                raise OSError(reason)
            if time.monotonic() >= ends_s:
                raise OSError(f"rank {missing} has not written its shard in {quantities.duration(timeout_s)}")
            time.sleep(POLL_S)
    return [receipts[rank] for rank in range(size)]


class Shards:
    """The tensors of a sharded checkpoint. Its index is not trusted: names, boxes and sizes are checked first.

    Raises:
        ShardsError: the index is missing, damaged, or does not describe whole tensors.
    """

    def __init__(self, checkpoint: Path) -> None:
        self._folder = checkpoint / SHARDS
        index = read_index(checkpoint)
        self.ranks, self._tensors = index.ranks, index.tensors

    @property
    def names(self) -> list[str]:
        """The names of the tensors."""
        return list(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a whole tensor."""
        return self._tensors[name].shape

    def read(self, name: str, box: Box | None = None) -> torch.Tensor:
        """A tensor, or the box of it that a rank needs.

        Raises:
            KeyError: there is no tensor of this name.
            ShardsError: a file is damaged or missing.
        """
        one = self._tensors[name]
        offset, shape = box or ((0,) * len(one.shape), one.shape)
        result = torch.empty(shape, dtype=getattr(torch, one.dtype))
        for part in one.parts:
            begin = tuple(map(max, offset, part.offset))
            end = tuple(min(o + n, a + m) for o, n, a, m in zip(offset, shape, part.offset, part.shape, strict=True))
            if any(b >= e for b, e in zip(begin, end, strict=True)):
                continue
            inside = [slice(b - a, e - a) for b, e, a in zip(begin, end, part.offset, strict=True)]
            found = self._part(part.file, name, part.shape, inside)
            if found.dtype != result.dtype:
                raise ShardsError(f"{part.file}: {name} has the type {found.dtype}, the index says {one.dtype}")
            result[tuple(slice(b - o, e - o) for b, e, o in zip(begin, end, offset, strict=True))] = found
        return result

    def _part(self, file: str, name: str, size: tuple[int, ...], where: list[slice]) -> torch.Tensor:
        try:
            with safe_open(self._folder / file, framework="pt") as opened:
                found = opened.get_slice(name)
                if tuple(found.get_shape()) != size:
                    raise ShardsError(f"{file}: {name} has the shape {found.get_shape()}, the index says {list(size)}")
                part: torch.Tensor = found[tuple(where)] if where else opened.get_tensor(name)
                return part
        except ShardsError:
            raise
        except Exception as error:
            raise ShardsError(f"{file}: {name} cannot be read: {error}") from error


def _receipt(checkpoint: Path, rank: int, size: int) -> Path:
    return (checkpoint / SHARDS / shard_name(rank, size)).with_suffix(".json")
