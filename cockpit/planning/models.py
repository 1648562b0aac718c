"""Sizes of a model folder and the disk and memory that work on it takes; reads only config and safetensors headers."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from engines.files import open_regular
from engines.json_text import parse_json, read_json
from exporters.gguf.quant_types import FilePlan, Shape, model_shapes, plan_file
from exporters.hf_model.architectures import known_architecture, language_settings
from exporters.hf_model.families.llama import LLAMA
from recipes.file_types import FILE_TYPES
from recipes.problems import OperatorError

MAX_HEADER_BYTES = 100 * 1024 * 1024
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MAX_CONFIG_BYTES = 1024 * 1024
PARITY_POSITIONS, PARITY_LENGTH = 2048, 256
"""Defaults of an export stage: token positions, and tokens per sequence."""
ENGINE_BYTES = 600 * 1024**2
"""Resident memory of an exporter process before it loads a model: torch and the interpreter."""

OUTPUT_HEAD = "lm_head"
_EMBEDDINGS = re.compile(r"(^|[._])(embed_tokens|embed_positions|word_embeddings|embed_in|wte|wpe)$")
_EXPERT = re.compile(r"\.experts\.\d+\.")
_ROUTERS = ("gate", "router")


@dataclass(frozen=True)
class ModelFacts:
    """A model folder's number of parameters and bytes of weights."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class Need:
    """Bytes that a run needs and bytes that are free; None if unknown."""

    disk_bytes: int | None
    disk_free_bytes: int | None
    ram_bytes: int | None
    ram_available_bytes: int | None

    @property
    def short_of(self) -> list[str]:
        """The resources of which a run needs more than is free: disk, memory."""
        short = []
        if self.disk_bytes and self.disk_free_bytes is not None and self.disk_bytes > self.disk_free_bytes:
            short.append("disk")
        if self.ram_bytes and self.ram_available_bytes is not None and self.ram_bytes > self.ram_available_bytes:
            short.append("memory")
        return short


def model_facts(folder: Path) -> ModelFacts | None:
    """Parameters and bytes of a folder's safetensors files; None if there are no files or a file cannot be read."""
    try:
        files = sorted(folder.glob("*.safetensors"))
        sizes = [(_count_parameters(file), file.stat().st_size) for file in files]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not sizes:
        return None
    return ModelFacts(sum(count for count, _ in sizes), sum(size for _, size in sizes))


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a folder's safetensors files by name; empty if a file cannot be read."""
    found: dict[str, tuple[int, ...]] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            for name, entry in safetensors_header(file).items():
                found[name] = tuple(int(size) for size in entry["shape"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found


def linear_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of the linear layers in a folder's safetensors files, by dotted name, without the output head.

    Matrices of experts and of their router do not count: transformers joins them, or computes them itself.
    """
    shapes = tensor_shapes(folder)
    routers = {f"{block}.{name}.weight" for block in blocks_of_experts(shapes) for name in _ROUTERS}
    return {
        name.removesuffix(".weight"): (shape[1], shape[0])
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and name not in routers and _is_linear(name)
    }


def blocks_of_experts(tensors: Iterable[str]) -> list[str]:
    """Dotted names of the modules that have experts, by the names of their tensors."""
    return list(dict.fromkeys(name[: found.start()] for name in tensors if (found := _EXPERT.search(name))))


def is_of_experts(tensor: str) -> bool:
    """Whether a tensor is that of one expert."""
    return _EXPERT.search(tensor) is not None


def _is_linear(name: str) -> bool:
    layer = name.removesuffix(".weight")
    return not (is_of_experts(name) or _EMBEDDINGS.search(layer) or layer.rpartition(".")[2] == OUTPUT_HEAD)


def tensor_types(folder: Path) -> dict[str, str]:
    """Types of the tensors in a folder's safetensors files by name; empty if a file cannot be read."""
    found: dict[str, str] = {}
    try:
        for file in sorted(folder.glob("*.safetensors")):
            found |= {name: str(entry["dtype"]) for name, entry in safetensors_header(file).items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}
    return found


def merge_need(runs_root: Path, base: Path | None, dtype: str) -> Need:
    """The need of a merge: it writes the weights once, in the merged type, and holds one tensor at a time."""
    facts = model_facts(base) if base is not None else None
    disk = None
    if facts is not None:
        disk = facts.bytes if dtype == "base" else facts.parameters * DTYPE_BYTES[dtype]
    return Need(disk, disk_free(runs_root), ENGINE_BYTES, psutil.virtual_memory().available)


def export_need(runs_root: Path, model: Path, file_types: Sequence[str], parity: bool = True) -> Need:
    """The need of an export: its files, and for the comparison the model in float32 and the logits on disk."""
    facts = model_facts(model)
    if facts is None:
        return Need(None, disk_free(runs_root), None, psutil.virtual_memory().available)
    disk = sum(_file_bytes(model, facts, name) for name in dict.fromkeys(file_types))
    ram = ENGINE_BYTES
    if parity:
        disk += (PARITY_POSITIONS + PARITY_LENGTH) * _vocab_size(model) * 4
        ram += facts.parameters * 4
    return Need(disk, disk_free(runs_root), ram, psutil.virtual_memory().available)


def file_plans(model: Path, file_types: Sequence[str], importance: bool = False) -> dict[str, FilePlan]:
    """The tensor types in a GGUF file of each file type; empty if the folder's config.json does not give the shapes.

    `importance`: use an importance matrix also for file types that do not need one.
    """
    try:
        config = _config(model)
        family = known_architecture(config) or LLAMA
        shapes = model_shapes(family, config)
        layers = int(config["num_hidden_layers"])
        gqa = int(config["num_attention_heads"]) // int(config["num_key_value_heads"])
        return {
            name: file_plan(
                name, shapes, layers=layers, gqa=gqa, importance=importance, seventy_b=family.is_seventy_b(layers)
            )
            for name in file_types
        }
    except (OSError, ValueError, TypeError, KeyError, RecursionError, ZeroDivisionError, OverflowError, OperatorError):
        return {}


def file_plan(
    file_type: str, shapes: list[Shape], *, layers: int, gqa: int, importance: bool, seventy_b: bool
) -> FilePlan:
    """The tensor types in one file, as an export plans it: with an importance matrix if the file type needs one.

    `importance`: use one also for file types that do not need it. The other arguments are those of `plan_file`.
    """
    plan = plan_file(file_type, shapes, layers=layers, gqa=gqa, seventy_b=seventy_b)
    if plan.needs_importance or (importance and FILE_TYPES[file_type].importance != "ignored"):
        return plan_file(file_type, shapes, layers=layers, gqa=gqa, importance=True, seventy_b=seventy_b)
    return plan


def _file_bytes(model: Path, facts: ModelFacts, file_type: str) -> int:
    plan = file_plans(model, [file_type]).get(file_type)
    if plan is not None:
        return plan.bytes
    return math.ceil(facts.parameters * FILE_TYPES[file_type].bits_per_weight / 8)


def _vocab_size(model: Path) -> int:
    try:
        return int(_config(model)["vocab_size"])
    except (OSError, ValueError, TypeError, KeyError):
        return 0


def _config(model: Path) -> dict[str, Any]:
    config = read_json(model / "config.json", MAX_CONFIG_BYTES)
    if isinstance(config, dict):
        config = language_settings(config)
    if not isinstance(config, dict) or not 0 < int(config.get("num_hidden_layers", 1)) <= 10_000:
        raise ValueError("config.json is not a model's config")
    return {
        **config,
        "num_key_value_heads": config.get("num_key_value_heads") or config["num_attention_heads"],
    }


def disk_free(folder: Path) -> int | None:
    """Free bytes on the file system of the folder, or of its nearest existing parent."""
    for place in (folder, *folder.parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def _count_parameters(file: Path) -> int:
    return sum(math.prod(int(n) for n in entry["shape"]) for entry in safetensors_header(file).values())


def safetensors_header(file: Path) -> dict[str, Any]:
    """The entries of a safetensors file's tensors by name."""
    size = file.stat().st_size
    with open_regular(file) as stream:
        length = int.from_bytes(stream.read(8), "little")
        if length > min(size, MAX_HEADER_BYTES):
            raise ValueError("the header is larger than the file")
        header = parse_json(stream.read(length))
    return {name: entry for name, entry in header.items() if name != "__metadata__"}
