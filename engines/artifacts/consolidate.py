"""The whole weights of a sharded checkpoint as one safetensors file, with the bytes of a save by one process.

Parts are copied from file to file, so memory does not grow with the model, and without torch.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from engines.artifacts.custody import Parent, custody_of
from engines.artifacts.manifest import ManifestError, read_manifest, verify_manifest, write_manifest
from engines.artifacts.sharded import (
    DTYPES,
    MODEL_PREFIX,
    SHARDS,
    Part,
    ShardedTensor,
    ShardIndex,
    ShardsError,
    is_in_shards,
    read_index,
)
from engines.files import fsync_folder, open_regular, read_into
from engines.json_text import parse_json
from recipes.problems import OperatorError, printable
from recipes.quantities import size as size_words

WEIGHTS = "model.safetensors"
CHUNK_BYTES = 16 * 1024 * 1024
_STATE = "trainer_state.json"
_RANDOM = "rng_state"
"""Files of a checkpoint that belong to the training and not to the model."""
_MAX_HEADER_BYTES = 100_000_000
_RESERVE_BYTES = 1 << 20


def consolidate(checkpoint: Path, out: Path) -> int:
    """Write the model of a sharded checkpoint as a new folder, as a save by one process has it; returns its bytes.

    Raises:
        OperatorError: the checkpoint is damaged or is not in shards, or the folder exists.
        OSError: the disk is full or fails; no partial files were left behind.
    """
    shown = printable(str(checkpoint), 400)
    if not is_in_shards(checkpoint):
        what = "has whole weights" if (checkpoint / WEIGHTS).is_file() else "is not a checkpoint in shards"
        raise OperatorError(f"{shown} {what}; nothing to consolidate", "name the folder of a sharded checkpoint")
    if os.path.lexists(out):
        raise OperatorError(f"--out — {printable(str(out), 400)} exists", "name a new folder")
    problems = verify_manifest(checkpoint)
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise OperatorError(f"{shown} is damaged: {'; '.join(problems[:3])}{more}", "name another checkpoint")
    draft = out.with_name(f".tmp-{out.name}-{os.urandom(4).hex()}")
    try:
        manifest, index = read_manifest(checkpoint), read_index(checkpoint)
        weights = {
            name.removeprefix(MODEL_PREFIX): one for name, one in index.tensors.items() if name.startswith(MODEL_PREFIX)
        }
        _require_room(out.parent, sum(one.bytes for one in weights.values()))
        draft.mkdir()
        _copy_files(checkpoint, draft, [str(entry["path"]) for entry in manifest["files"]])
        _write(checkpoint / SHARDS, draft / WEIGHTS, weights, _places(checkpoint / SHARDS, index))
        custody = custody_of([Parent(checkpoint.name, checkpoint)])
        write_manifest(draft, kind="model", step=manifest["step"], parents=custody["parents"], custody=custody)
        size = sum(entry["bytes"] for entry in read_manifest(draft)["files"])
        draft.rename(out)
        fsync_folder(out.parent)
    except (ShardsError, ManifestError, EOFError) as error:
        raise OperatorError(f"{shown} is damaged: {printable(str(error), 400)}", "name another checkpoint") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return int(size)


def _require_room(folder: Path, needed_bytes: int) -> None:
    if not folder.is_dir():
        raise OperatorError(f"--out — no folder {printable(str(folder), 400)}", "create it, or name another one")
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + _RESERVE_BYTES:
        raise OperatorError(
            f"--out — the weights need {size_words(needed_bytes)}, and {size_words(free)} are free", "make room first"
        )


def _copy_files(checkpoint: Path, draft: Path, names: list[str]) -> None:
    """Copy what belongs to the model: its configuration and its tokenizer."""
    for name in names:
        if name == _STATE or name.startswith((f"{SHARDS}/", _RANDOM)):
            continue
        (draft / name).parent.mkdir(parents=True, exist_ok=True)
        with open_regular(checkpoint / name) as source, (draft / name).open("wb") as target:
            shutil.copyfileobj(source, target)


def _places(folder: Path, index: ShardIndex) -> dict[tuple[str, str], tuple[int, dict[str, Any]]]:
    """Where each file has each tensor: the first byte, and the entry of the file's header.

    Raises:
        ShardsError: a file is not a safetensors file.
    """
    found: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {}
    for file in sorted({part.file for one in index.tensors.values() for part in one.parts}):
        try:
            with open_regular(folder / file) as stream:
                length = int.from_bytes(stream.read(8), "little")
                if length > _MAX_HEADER_BYTES:
                    raise ShardsError(f"{file} is not a safetensors file")
                header = parse_json(stream.read(length))
            found |= {
                (file, name): (8 + length + entry["data_offsets"][0], entry)
                for name, entry in header.items()
                if name != "__metadata__"
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ShardsError(f"{file} cannot be read: {error}") from error
    return found


def _write(
    folder: Path,
    target: Path,
    weights: Mapping[str, ShardedTensor],
    places: Mapping[tuple[str, str], tuple[int, dict[str, Any]]],
) -> None:
    """Write one safetensors file: tensors by their type and name, as the library writes them."""
    kinds = list(DTYPES)
    ordered = sorted(weights.items(), key=lambda item: (kinds.index(item[1].dtype), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at, begins = 0, {}
    for name, one in ordered:
        begins[name] = at
        header[name] = {"dtype": DTYPES[one.dtype][0], "shape": list(one.shape), "data_offsets": [at, at + one.bytes]}
        at += one.bytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = 8 + len(text)
    buffer = bytearray(CHUNK_BYTES)
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.posix_fallocate(fd, 0, first + at)
        _put(fd, len(text).to_bytes(8, "little") + text, 0)
        for name, one in ordered:
            value_bytes = DTYPES[one.dtype][1]
            for part in one.parts:
                start = _start(places, part, f"{MODEL_PREFIX}{name}", one)
                for source, place, count in runs(one.shape, part):
                    _copy(
                        (folder / part.file, start + source * value_bytes),
                        (fd, first + begins[name] + place * value_bytes),
                        count * value_bytes,
                        buffer,
                    )
    finally:
        os.close(fd)


def _start(
    places: Mapping[tuple[str, str], tuple[int, dict[str, Any]]], part: Part, name: str, one: ShardedTensor
) -> int:
    """The first byte of a part in its file, if the file has it as the index says."""
    start, entry = places.get((part.file, name), (0, {}))
    if entry.get("dtype") != DTYPES[one.dtype][0] or entry.get("shape") != list(part.shape):
        raise ShardsError(f"{part.file} does not have {name[:80]!r} as the index says")
    return start


def runs(shape: tuple[int, ...], part: Part) -> Iterator[tuple[int, int, int]]:
    """Stretches of a part that are together in the whole tensor: first value in the part, in the tensor, and number."""
    full = len(shape)
    while full > 0 and part.shape[full - 1] == shape[full - 1]:
        full -= 1
    cut = max(full - 1, 0)
    count = math.prod(part.shape[cut:])
    steps = [math.prod(shape[dimension + 1 :]) for dimension in range(len(shape))]
    base = part.offset[cut] * steps[cut] if shape else 0
    for number, outer in enumerate(product(*(range(length) for length in part.shape[:cut]))):
        before = zip(part.offset, outer, steps, strict=False)  # the dimensions before the cut
        place = base + sum((offset + index) * step for offset, index, step in before)
        yield number * count, place, count


def _copy(source: tuple[Path, int], target: tuple[int, int], count: int, buffer: bytearray) -> None:
    path, at = source
    fd, to = target
    done = 0
    while done < count:
        view = memoryview(buffer)[: min(CHUNK_BYTES, count - done)]
        read_into(path, at + done, view)
        _put(fd, view, to + done)
        done += len(view)


def _put(fd: int, data: bytes | memoryview, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view, at = view[written:], at + written
