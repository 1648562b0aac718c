"""File names by GGUF's naming convention: BaseName-SizeLabel-FineTune-Version-Encoding-Type-Shard.gguf.

The convention is in ggml's docs/gguf.md, the reading of model names in gguf-py's `Metadata.get_model_id_components`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LORA = "LoRA"
"""The convention's type of a file that contains an adapter."""
MAX_STEM = 120
"""Longest name before the encoding: file systems allow 255 bytes, and temporary names add some."""
_SIZE = re.compile(r"(?:\d+x)?\d+(?:\.\d+)?[KMBT]", re.IGNORECASE)
_ACTIVE = re.compile(r"A\d+(?:\.\d+)?[KMB]", re.IGNORECASE)
"""After the size of a mixture of experts: the weights that one token uses."""
_VERSION = re.compile(r"v\d+(?:\.\d+)*", re.IGNORECASE)
_TUNED = re.compile(r"chat|instruct|it|base|vision|think(?:ing)?|reasoning|sft|dpo", re.IGNORECASE)
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})")
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


@dataclass(frozen=True)
class ModelName:
    """The parts of a model's name, and its licence; an unknown one is empty."""

    base: str
    size: str = ""
    finetune: str = ""
    version: str = ""
    license: str = ""

    @property
    def stem(self) -> str:
        """The beginning of every file name of the model."""
        parts = (self.base, self.size, self.finetune, self.version)
        return "-".join(filter(None, parts))[:MAX_STEM].rstrip("-.")

    def file(self, encoding: str, kind: str = "") -> str:
        """The name of a file of this encoding, a file type; `kind` is `LORA` for an adapter, else empty."""
        return f"{'-'.join(filter(None, (self.stem, encoding, kind)))}.gguf"


def name_of(text: str, parameters: int, trained: Iterable[str] = (), license_id: str = "") -> ModelName:
    """Read a model's name in its parts, as model hubs and folders spell it.

    Args:
        text: such as `SmolLM2-135M-Instruct`.
        parameters: the model's number of weights: it becomes the size where the text has none, and a part of the text
            that has another order of magnitude is not the size (`Phi-3-mini-4k-instruct`).
        trained: what the model was trained into since; further parts of the fine-tune's name.
        license_id: the licence, as model cards name it.
    """
    parts = [part for part in file_part(text).split("-") if part] or ["model"]
    version = next((part for part in parts[1:] if _VERSION.fullmatch(part)), "")
    parts = [part for n, part in enumerate(parts) if n == 0 or part != version]
    at = next((n for n, part in enumerate(parts) if n and _is_size(part, parameters)), None)
    if at is not None:
        size, tuned = _upper_unit(parts[at]), at + 1
        if tuned < len(parts) and _ACTIVE.fullmatch(parts[tuned]):
            size, tuned = f"{size}-{parts[tuned].upper()}", tuned + 1
    else:
        at = tuned = next((n for n, part in enumerate(parts) if n and _TUNED.fullmatch(part)), len(parts))
        size = size_label(parameters)
    known = {part.lower() for part in parts}
    more = [part for part in dict.fromkeys(map(file_part, trained)) if part.lower() not in known]
    finetune = "-".join([*parts[tuned:], *more])
    return ModelName("-".join(parts[:at]), size, finetune, version, license_id)


def size_label(parameters: int) -> str:
    """The number of weights as model names spell it: 3.8M, 135M, 14B; empty for none."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if parameters >= scale:
            value = parameters / scale
            return f"{value:.0f}{unit}" if value >= 9.95 else f"{value:.1f}{unit}"
    return ""


def shard_name(name: str, number: int, count: int) -> str:
    """The name of one of several files of a model, numbered from 1: `m-Q8_0-00002-of-00003.gguf`."""
    return f"{name.removesuffix('.gguf')}-{number:05d}-of-{count:05d}.gguf"


def without_shard(stem: str) -> str:
    """A file's name without its suffix and its number among several files."""
    found = _SHARD.fullmatch(stem)
    return found[1] if found else stem


def file_part(text: str) -> str:
    """A text as part of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", Path(text).name).lstrip("-.")[:MAX_STEM]


def _is_size(part: str, parameters: int) -> bool:
    """Whether a part of a name is the model's size, by gguf-py's rule: between an eighth of it and 15 eighths."""
    if not _SIZE.fullmatch(part):
        return False
    if "x" in part.lower() or not parameters:
        return True
    return abs(float(part[:-1]) * _UNITS[part[-1].upper()] - parameters) <= 7 * parameters / 8


def _upper_unit(part: str) -> str:
    return part[:-1] + part[-1].upper()
