"""Check that the folders of sources in a recipe contain what their stages read; at launch and for `cockpit check`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from engines.data.tokenizer_settings import tokenizer_problems
from engines.data.tokens_manifest import read_tokens_manifest, tokens_problems
from engines.inputs.code_or_rows import asks_about_code, has_documents
from engines.inputs.code_tree import CodeRules, code_files
from engines.inputs.data_place import suffix_of
from engines.inputs.files_read import files_read, named_sources, sources_of
from engines.inputs.source_tree import STANDARD_LIBRARY
from recipes.load import LoadedRecipe
from recipes.problems import Problem, printable
from recipes.stages.fields import StageFields
from recipes.stages.prepare import PrepareMessages, PrepareText, PrepareTokens
from recipes.stages.pretrain import PretrainStage

MOST_FILES = 20_000
"""Files of a code base whose languages are examined for their parsers."""


def source_problems(loaded: LoadedRecipe) -> list[Problem]:
    """The folders of sources that give nothing, and the languages without a parser, each at its line."""
    problems = []
    for stage in loaded.recipe.stage:
        inputs = loaded.graph.inputs[stage.name]
        data = inputs.get("tokenizer" if isinstance(stage, PrepareTokens) else "data")
        for field, message, hint in _found(stage, None if data is None else data.path):
            line = loaded.line_of(stage.name, field)
            problems.append(Problem(loaded.path, line, f"{stage.name}.{field}", message, hint=hint))
    return problems


def _found(stage: StageFields, data: Path | None) -> Iterator[tuple[str, str, str]]:
    """Field, message and hint of each problem of a stage."""
    if isinstance(stage, PrepareText):
        yield from _of_text(stage)
    elif isinstance(stage, PrepareMessages) and data is not None and data.is_dir() and not has_documents(data):
        yield from _of_code(stage, data)
    elif isinstance(stage, PrepareTokens) and data is not None and data.is_dir():
        for error in tokenizer_problems(data, stage.eos_token):
            yield "tokenizer", error.message, error.hint or ""
    elif isinstance(stage, PretrainStage) and data is not None and data.is_dir():
        wrong = list(tokens_problems(data))
        for error in wrong:
            yield "data", error.message, error.hint or ""
        if not wrong:
            yield from _of_windows(stage, data)


def _of_windows(stage: PretrainStage, data: Path) -> Iterator[tuple[str, str, str]]:
    """A window that is longer than all tokens of the train split."""
    splits = read_tokens_manifest(data).splits
    tokens = splits["train"].tokens if "train" in splits else 0
    if tokens < stage.max_length:
        folder = printable(str(data), 400)
        message = f"{folder}: the train split has {tokens} tokens, fewer than one window of {stage.max_length}"
        yield "max_length", message, "set a smaller max_length, or prepare more text"


def _of_text(stage: PrepareText) -> Iterator[tuple[str, str, str]]:
    for field, source in sources_of(stage).items():
        if source.is_dir() and not files_read(stage, field, source):
            folder = printable(str(source), 400)
            yield field, f"{folder} has no file that include matches", "check include and exclude"
    if not sources_of(stage) and all(one.path != STANDARD_LIBRARY for _, one in named_sources(stage)):
        yield "source", "no source exists", "install what the recipe names, or give a source"


def _of_code(stage: PrepareMessages, folder: Path) -> Iterator[tuple[str, str, str]]:
    if not asks_about_code(stage, folder):
        if stage.format == "auto" and not stage.columns and not _has_rows(folder):
            allowed = ", ".join(stage.languages)
            message = f"{printable(str(folder), 400)} has neither data files nor sources"
            yield "data", message, f"languages of sources: {allowed}; ignored and third-party files do not count"
        return
    present: Counter[str] = Counter()
    for number, one in enumerate(code_files(folder, CodeRules.of(stage), Counter())):
        present.update([one.language] if one.role == "source" else [])
        if number >= MOST_FILES:
            break
    if not present:
        allowed = ", ".join(stage.languages)
        yield "data", f"{printable(str(folder), 400)} has no sources", f"languages of sources: {allowed}"
    missing = sorted(present.keys() - {"python"})
    if missing and stage.python is None and find_spec("tree_sitter") is None:
        hint = "install them: pip install 'training-cockpit[code]'; or leave the languages out of languages"
        yield "languages", f"no parser is installed for {', '.join(missing)}", hint


def _has_rows(folder: Path) -> bool:
    return any(suffix_of(name) for _, _, names in os.walk(folder) for name in names)
