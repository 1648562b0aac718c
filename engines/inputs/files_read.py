"""Which files of an input an engine reads: they, and no other file beside them, are the input's content.

A recipe names folders. A file that lies in one and that no engine opens (notes, a download's cache, checkpoints of
another tool) is not part of the input, so its change changes nothing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from engines.artifacts.adapter_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE_JSON
from engines.artifacts.data_folder import METADATA, TOKENS_JSON
from engines.artifacts.manifest import MANIFEST
from engines.inputs.code_or_rows import asks_about_code, has_documents
from engines.inputs.code_tree import CodeRules, code_files
from engines.inputs.command import files_of_command
from engines.inputs.data_place import UNSPLIT, data_files
from engines.inputs.source_tree import STANDARD_LIBRARY, patterns_of, walk_sources
from engines.json_text import read_json
from recipes.fields import inputs_of
from recipes.problems import OperatorError
from recipes.stages.data_fields import ReadFields
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneFields
from recipes.stages.label_fields import LabelFields
from recipes.stages.prepare import PrepareMessages, PrepareText, PrepareTokens
from recipes.stages.registry import tag_of_stage

SPLITS = ("train", "val", "test")
_METADATA = (METADATA, TOKENS_JSON)
_MODEL_FILES = (
    "config.json", "generation_config.json", ADAPTER_CONFIG, BASE_JSON, "added_tokens.json",
    "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "chat_template.json", "merges.txt",
    "vocab.*", "*.model", "*.jinja", "*.tiktoken", "*.index.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Patterns of what transformers, PEFT and the exporters open in the folder of a model, an adapter or a tokenizer,
beside the weights."""
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.json",
    "merges.txt", "vocab.json", "vocab.txt", "tokenizer.model", "chat_template.jinja",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Patterns of what a stage that only tokenizes opens or copies: a model's weights are no input of it."""
_SAFE_WEIGHTS = "*.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED_WEIGHTS = ("*.bin", "*.pt", "*.pth")
_TRAINING_STATE = ("training_args.*", "optimizer.*", "scheduler.*", "rng_state*", "scaler.*")
"""Files beside the weights that belong to the Trainer of another tool; no engine opens them."""


def files_read(stage: StageFields, field: str, path: Path) -> list[tuple[str, Path]]:
    """The files of an input, as (path relative to the input, absolute path), ordered by name.

    Args:
        stage: the stage that reads them.
        field: the input's field; `adapters[0]` for one of a list.
        path: a file, which is its own only content, or a folder.
    """
    if path.is_file():
        return [(path.name, path)]
    return sorted(set(_of_folder(stage, field, path)))


def _of_folder(stage: StageFields, field: str, folder: Path) -> Iterator[tuple[str, Path]]:
    if isinstance(stage, PrepareText) and field.partition("[")[0] == "source":
        one = dict(named_sources(stage))[field]
        return walk_sources(folder, patterns_of(one.path, one.include), one.exclude, Counter())
    if isinstance(stage, PrepareTokens) and field == "tokenizer":
        named = (name for name, _ in _all_files(folder, depth=1))
        return ((name, folder / name) for name in named if _matches(name, _TOKENIZER_FILES))
    if isinstance(stage, PrepareMessages) and field == "source":
        return iter(files_of_command(stage.command, folder))
    kinds = accepted_by(stage, field)
    if kinds <= {"model", "adapter", "tokenizer"}:
        return _model_files(folder)
    splits = _splits_of(stage)
    about_code = isinstance(stage, PrepareMessages) and asks_about_code(stage, folder)
    if isinstance(stage, ReadFields) and field == "data" and not about_code and not (folder / TOKENS_JSON).is_file():
        return _files_of_rows(folder, splits)
    if isinstance(stage, PrepareMessages) and not has_documents(folder):
        return ((one.path, one.file) for one in code_files(folder, CodeRules.of(stage), Counter()))
    if any((folder / name).is_file() for name in (*_METADATA, *(f"{split}.jsonl" for split in SPLITS))):
        return _prepared_files(folder, splits)
    return _all_files(folder)


@dataclass(frozen=True)
class NamedSource:
    """A source of a text stage: what the recipe says about it, with what it leaves to the stage."""

    path: str
    include: Sequence[str]
    exclude: Sequence[str]


def named_sources(stage: PrepareText) -> list[tuple[str, NamedSource]]:
    """The sources of a text stage by field: `source`, or `source[0]` and so on for several."""
    if isinstance(stage.source, str):
        return [("source", NamedSource(stage.source, stage.include, stage.exclude))]
    return [
        (
            f"source[{number}]",
            NamedSource(
                one.path,
                stage.include if one.include is None else one.include,
                stage.exclude if one.exclude is None else one.exclude,
            ),
        )
        for number, one in enumerate(stage.source)
    ]


def sources_of(stage: StageFields) -> dict[str, Path]:
    """The files and folders outside the recipe's graph that a stage reads, by field: the sources of `prepare`, or the
    folder of its command. A name is no path, and an optional source may not exist."""
    if isinstance(stage, PrepareMessages) and stage.command:
        return {"source": Path(stage.command_folder or ".").absolute()}
    if not isinstance(stage, PrepareText):
        return {}
    found = {
        field: Path(one.path).expanduser().absolute()
        for field, one in named_sources(stage)
        if one.path != STANDARD_LIBRARY
    }
    optional = () if isinstance(stage.source, str) else stage.source
    left_out = {f"source[{number}]" for number, one in enumerate(optional) if one.optional}
    return {field: path for field, path in found.items() if field not in left_out or path.exists()}


def template_of(stage: StageFields) -> Path | None:
    """The file of a chat template that a stage names; None for a template by its name, or the model's own."""
    if not isinstance(stage, LabelFields) or "/" not in stage.chat_template:
        return None
    return Path(stage.chat_template).expanduser().absolute()


def accepted_by(stage: StageFields, field: str) -> set[str]:
    """The words of `accepts` of a field; `adapters[0]` is one of a list."""
    name = field.partition("[")[0]
    return {word for spec in inputs_of(tag_of_stage(stage)) if spec.path == name for word in spec.accepts}


def _splits_of(stage: StageFields) -> tuple[str, ...]:
    if isinstance(stage, FinetuneFields):
        return ("train", "val")
    if isinstance(stage, EvaluateStage):
        return (stage.split, stage.tests) if stage.tests == "probe" else (stage.split,)
    return SPLITS


def _model_files(folder: Path) -> Iterator[tuple[str, Path]]:
    names = [name for name, _ in _all_files(folder, depth=1)]
    weights = _weights(folder, [name for name in names if _matches(name, (_SAFE_WEIGHTS,))])
    if not weights:
        weights = [name for name in names if _matches(name, _PICKLED_WEIGHTS) and not _matches(name, _TRAINING_STATE)]
    known = [name for name in names if _matches(name, _MODEL_FILES)]
    return ((name, folder / name) for name in {*known, *weights})


def _weights(folder: Path, names: list[str]) -> list[str]:
    """The weights that are loaded: one file, or the shards of its index; a second copy beside them is not read."""
    one = [name for name in names if name in {"model.safetensors", ADAPTER_WEIGHTS}]
    if "model.safetensors" in one or not (folder / _INDEX).is_file():
        return one or names
    try:
        shards = read_json(folder / _INDEX)["weight_map"].values()
        return [*one, *(name for name in names if name in set(shards))] or names
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return names


def _files_of_rows(folder: Path, splits: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """The files of the splits that a stage reads, by the same rule as the reader's, and what describes them.

    None where that rule refuses the folder: the stage then says why.
    """
    try:
        found = data_files(folder).splits
    except OperatorError:
        return
    for split in (UNSPLIT, *splits):
        yield from ((file.relative_to(folder).as_posix(), file) for file in found.get(split, []))
    if (folder / METADATA).is_file():
        yield METADATA, folder / METADATA


def _prepared_files(folder: Path, splits: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """The files of a folder of splits; all files of token shards, which `tokens.json` ties together."""
    if (folder / TOKENS_JSON).is_file():
        return _all_files(folder)
    wanted = {*_METADATA, *(f"{split}.jsonl" for split in splits)}
    return ((name, path) for name, path in _all_files(folder, depth=0) if name in wanted)


def _all_files(folder: Path, depth: int = 100) -> Iterator[tuple[str, Path]]:
    """Regular files down to a depth, without hidden ones and without Cockpit's own manifest; links are followed once,
    because models of a hub's cache are links."""
    for place, folders, names in os.walk(folder):
        inside = Path(place).relative_to(folder)
        shown = [] if len(inside.parts) >= depth else [name for name in folders if not name.startswith(".")]
        folders[:] = sorted(shown)
        for name in names:
            relative = (inside / name).as_posix()
            if not name.startswith(".") and relative != MANIFEST and (Path(place) / name).is_file():
                yield relative, Path(place) / name


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) and name.count("/") == pattern.count("/") for pattern in patterns)
