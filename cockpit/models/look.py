"""What a folder or a GGUF file is, from small files and headers alone: nothing is loaded and nothing runs.

A folder may have been written by anyone. Each file is read up to a bound, and a folder that cannot be read is listed
with the reason.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from cockpit.models.uses import uses_of_adapter, uses_of_file, uses_of_folder
from cockpit.planning.base_check import quantization_of
from cockpit.planning.models import MAX_CONFIG_BYTES, model_facts, safetensors_header
from engines.artifacts.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter
from engines.files import read_regular_text
from engines.json_text import read_json
from engines.llama.gguf_file import GgufFile, part_paths, read_gguf
from recipes.file_types import file_type_of_id
from recipes.problems import OperatorError, printable

MODEL, ADAPTER, GGUF = "model", "adapter", "gguf"
_CARD = "README.md"
_MAX_CARD_BYTES = 1024 * 1024
_LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE")
_MAX_FILES = 10_000
"""Files of a folder whose sizes are added."""
_MOST_PARAMETERS = 10**14
_TEMPLATE = "chat_template.jinja"
_SHOWN = 60


@dataclass(frozen=True)
class FoundModel:
    """One model, adapter or GGUF file.

    Attributes:
        name: how a recipe and the commands name it: a path, or the id in the hub's cache.
        place: where it is.
        kind: model, adapter or gguf.
        revision: the commit of a model in the hub's cache; empty for others.
        family: the class of the model, or the architecture of a file; the base model of an adapter.
        parameters: number of weights; None if unknown.
        dtype: type of most weights, or the file type.
        size_bytes: of its files; None if they cannot be read.
        template: whether it has a chat template; None where that does not apply.
        licence: as its card or header says it; empty if it says none.
        uses: what can be done with it, each with the reason against it, or an empty one if it can.
        problem: why it could not be read whole; empty if it was.
    """

    name: str
    place: Path
    kind: str
    revision: str = ""
    family: str = ""
    parameters: int | None = None
    dtype: str = ""
    size_bytes: int | None = None
    template: bool | None = None
    licence: str = ""
    uses: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "name": self.name,
            "path": str(self.place),
            "kind": self.kind,
            "revision": self.revision,
            "family": self.family,
            "parameters": self.parameters,
            "dtype": self.dtype,
            "size_bytes": self.size_bytes,
            "chat_template": self.template,
            "licence": self.licence,
            "uses": {use: not reason for use, reason in self.uses.items()},
            "reasons": {use: reason for use, reason in self.uses.items() if reason},
            "problem": self.problem,
        }


def kind_of(place: Path) -> str:
    """model, adapter or gguf, by the names of files alone; empty for anything else."""
    try:
        if place.suffix == ".gguf" and place.is_file():
            return GGUF
        if not place.is_dir():
            return ""
        if is_adapter(place):
            return ADAPTER
        weights = any(next(place.glob(pattern), None) for pattern in ("*.safetensors", "*.bin"))
        return MODEL if weights and (place / "config.json").is_file() else ""
    except OSError:
        return ""


def look(name: str, place: Path, revision: str = "") -> FoundModel:
    """What is known of a place of a known kind; what cannot be read is its `problem`."""
    kind = kind_of(place)
    try:
        return {MODEL: _folder, ADAPTER: _adapter, GGUF: _file}[kind](name, place, revision)
    except (
        OperatorError,
        OSError,
        ArithmeticError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
    ) as error:
        said = error.message if isinstance(error, OperatorError) else str(error) or type(error).__name__
        return FoundModel(name, place, kind, revision, problem=printable(said.splitlines()[0], 300))


def _folder(name: str, place: Path, revision: str) -> FoundModel:
    config = read_json(place / "config.json", MAX_CONFIG_BYTES)
    if not isinstance(config, dict):
        raise OperatorError(f"{place}/config.json is not a JSON object")
    facts = model_facts(place)
    return FoundModel(
        name,
        place,
        MODEL,
        revision,
        family=_family(config),
        parameters=_plausible(facts.parameters) if facts else None,
        dtype=quantization_of(config) or _dtype(place, config),
        size_bytes=_size(place),
        template=_has_template(place),
        licence=_licence(place),
        uses=uses_of_folder(place, config),
    )


def _adapter(name: str, place: Path, revision: str) -> FoundModel:
    config = read_json(place / ADAPTER_CONFIG, MAX_CONFIG_BYTES)
    base = config.get("base_model_name_or_path")
    weights = place / ADAPTER_WEIGHTS
    header = safetensors_header(weights) if weights.is_file() else {}
    return FoundModel(
        name,
        place,
        ADAPTER,
        revision,
        family=f"over {printable(str(base), _SHOWN)}" if isinstance(base, str) and base else "",
        parameters=_plausible(sum(math.prod(entry["shape"]) for entry in header.values())),
        dtype=_most(header),
        size_bytes=_size(place),
        template=None,
        licence=_licence(place),
        uses=uses_of_adapter(place, config),
    )


def _file(name: str, place: Path, revision: str) -> FoundModel:
    found = read_gguf(place)
    kind = file_type_of_id(int(found.scalar("general.file_type", -1)))
    adapter = found.scalar("general.type", "model") == "adapter"
    return FoundModel(
        name,
        place,
        GGUF,
        revision,
        family=printable(str(found.scalar("general.architecture", "")), _SHOWN),
        parameters=_plausible(_values(found)),
        dtype="adapter" if adapter else "unknown type" if kind is None else kind.name,
        size_bytes=sum(part.stat().st_size for part in part_paths(place)),
        template=None if adapter else bool(found.scalar("tokenizer.chat_template", "")),
        licence=printable(str(found.scalar("general.license", "") or ""), _SHOWN),
        uses=uses_of_file(found, adapter=adapter),
    )


def _values(file: GgufFile) -> int:
    return sum(math.prod(tensor.dimensions) for tensor in file.tensors.values())


def _plausible(count: int) -> int | None:
    """A number of weights, unless a file claims one that no model has."""
    return count if 0 < count < _MOST_PARAMETERS else None


def _family(config: Mapping[str, Any]) -> str:
    names = config.get("architectures")
    named = names[0] if isinstance(names, list) and names else config.get("model_type", "")
    return printable(str(named), _SHOWN)


def _dtype(place: Path, config: Mapping[str, Any]) -> str:
    said = config.get("dtype") or config.get("torch_dtype")
    if isinstance(said, str) and said:
        return printable(said, 20)
    first = next(iter(sorted(place.glob("*.safetensors"))), None)
    return _most(safetensors_header(first)) if first else ""


def _most(header: Mapping[str, Any]) -> str:
    """The type that most values of a safetensors file have."""
    counts: dict[str, int] = {}
    for entry in header.values():
        counts[str(entry["dtype"])] = counts.get(str(entry["dtype"]), 0) + math.prod(entry["shape"])
    return printable(max(counts, key=lambda kind: counts[kind]), 20) if counts else ""


def _size(place: Path) -> int:
    """Bytes of the files that lie in a folder, up to a number of files; a link into the hub's cache counts as its
    file."""
    with os.scandir(place) as entries:
        return sum(one.stat().st_size for one in islice(entries, _MAX_FILES) if one.is_file())


def _has_template(place: Path) -> bool:
    if (place / _TEMPLATE).is_file():
        return True
    settings = place / "tokenizer_config.json"
    return settings.is_file() and bool(read_json(settings).get("chat_template"))


def _licence(place: Path) -> str:
    """The licence that the head of the model's card names, else that a licence file exists."""
    card = place / _CARD
    try:
        text = read_regular_text(card, _MAX_CARD_BYTES, errors="replace") if card.is_file() else ""
    except OSError:
        text = ""
    if text.startswith("---"):
        for line in text[3:].partition("\n---")[0].splitlines():
            key, colon, value = line.partition(":")
            if colon and key.strip() == "license" and value.strip():
                return printable(value.strip().strip("'\""), _SHOWN)
    return "see its file" if any((place / name).is_file() for name in _LICENCE_FILES) else ""
