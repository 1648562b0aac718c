"""How large a model folder is and what work on it takes, from its safetensors headers alone: no tensor is read."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

MAX_HEADER_BYTES = 100 * 1024 * 1024
BITS_PER_WEIGHT = {
    "F32": 32.0,
    "F16": 16.0,
    "BF16": 16.0,
    "Q8_0": 8.5,
    "Q6_K": 6.5625,
    "Q5_K_M": 5.69,
    "Q4_K_M": 4.85,
    "Q4_K_S": 4.58,
}
"""Of llama.cpp's file types; the mixed ones as measured on Llama 3.1 8B in its quantize README."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ENGINE_BYTES = 600 * 1024**2
"""Resident memory of an exporter process before it touches a model: torch and the interpreter."""


@dataclass(frozen=True)
class ModelFacts:
    """A model folder: its number of parameters and the bytes of its weights."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Need:
    """What a run will take and what there is, in bytes; None is not known."""

    disk_bytes: int | None
    disk_free_bytes: int | None
    ram_bytes: int | None
    ram_available_bytes: int | None

    @property
    def short_of(self) -> list[str]:
        """What is known not to suffice: disk, memory."""
        short = []
        if self.disk_bytes and self.disk_free_bytes is not None and self.disk_bytes > self.disk_free_bytes:
            short.append("disk")
        if self.ram_bytes and self.ram_available_bytes is not None and self.ram_bytes > self.ram_available_bytes:
            short.append("memory")
        return short


def model_facts(folder: Path) -> ModelFacts | None:
    """Parameters and bytes of a folder's safetensors; None when there are none, or one cannot be read."""
    try:
        files = sorted(folder.glob("*.safetensors"))
        sizes = [(_count_parameters(file), file.stat().st_size) for file in files]
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if not sizes:
        return None
    return ModelFacts(sum(count for count, _ in sizes), sum(size for _, size in sizes))


def merge_need(runs_root: Path, base: Path | None, dtype: str) -> Need:
    """A merge writes the base once more, in the merged type, and streams it tensor by tensor."""
    facts = model_facts(base) if base is not None else None
    disk = None
    if facts is not None:
        disk = facts.bytes if dtype == "base" else facts.parameters * DTYPE_BYTES[dtype]
    return Need(disk, disk_free(runs_root), ENGINE_BYTES, psutil.virtual_memory().available)


def export_need(runs_root: Path, model: Path, file_types: Sequence[str], parity: bool = True) -> Need:
    """An export writes every file, and F16 or F32 on the way; the parity check holds the model in float32."""
    facts = model_facts(model)
    if facts is None:
        return Need(None, disk_free(runs_root), None, psutil.virtual_memory().available)
    types = set(file_types) | {"F16"}
    disk = sum(math.ceil(facts.parameters * BITS_PER_WEIGHT[name] / 8) for name in types)
    ram = ENGINE_BYTES + (facts.parameters * 4 if parity else 0)
    return Need(disk, disk_free(runs_root), ram, psutil.virtual_memory().available)


def file_type_bytes(model: Path, file_type: str) -> int | None:
    """Expected size of a GGUF file of the type."""
    facts = model_facts(model)
    return None if facts is None else math.ceil(facts.parameters * BITS_PER_WEIGHT[file_type] / 8)


def disk_free(folder: Path) -> int | None:
    """Bytes free on the folder's file system, or that of its nearest parent that exists."""
    for place in (folder, *folder.parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _count_parameters(file: Path) -> int:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(size, MAX_HEADER_BYTES):
            raise ValueError("the header is larger than the file")
        header = json.loads(stream.read(length))
    tensors = (entry for name, entry in header.items() if name != "__metadata__")
    return sum(math.prod(int(n) for n in entry["shape"]) for entry in tensors)
