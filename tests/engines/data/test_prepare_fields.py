"""Every field of a prepare stage takes effect: changed alone, the stage writes or says something else.

And with the passage of the field removed, so that whoever reads it gets the unchanged value, it writes the same as
without the change, as in `tests/engines/training/test_fields.py`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engines.data.text import prepare_text
from engines.events.writers import Warned
from recipes.problems import OperatorError
from recipes.stages.kind import StageKind
from recipes.stages.registry import STAGE_TYPES, row_of
from tests.engines.small_corpora import fresh, tokenizer_of, write_tree
from tests.engines.training.observed import read_as
from tests.stage_context import make_context


@dataclass(frozen=True)
class Change:
    """Another value of a field; `given` are fields that both stages have, `place` the input of both."""

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)
    place: str = "texts"


def _says(prompt: str) -> list[str]:
    """A command that writes nine rows."""
    row = f"print(json.dumps({{'prompt': f{prompt!r}, 'completion': 'x'}}))"
    return [sys.executable, "-c", f"import json, os\nfor n in range(9): {row}"]


SPLIT: dict[str, Change] = {"val_fraction": Change(0.4), "test_fraction": Change(0.4), "seed": Change(7)}
SAME = "the same words in the same order, again and again, one two three four five six seven eight nine ten "
NEAR = {"near_duplicates": "drop"}
TEXT: dict[str, Change] = {
    **SPLIT,
    "source": Change("more"),
    "mixture_temperature": Change(
        3.0,
        {"source": [{"path": "texts", "weight": 9}, {"path": "more", "weight": 1}]},
    ),
    "include": Change(["*.md"]),
    "exclude": Change(["a*"]),
    "format": Change("raw", place="pages"),
    "clean": Change(["trailing-spaces"]),
    "columns": Change({"text": "content"}, place="rows"),
    "on_bad_row": Change("skip", place="bad rows"),
    "encoding": Change("latin-1", place="latin"),
    "max_file_bytes": Change(40),
    "max_document_bytes": Change(64),
    "max_bytes": Change(150),
    "split_by": Change("folder", {"max_document_bytes": 64}, place="folders"),
    "near_duplicates": Change("drop", place="alike"),
    "near_duplicate_similarity": Change(0.5, NEAR, place="alike"),
}
ROWS: dict[str, Change] = {
    "val_fraction": Change(0.4, place="talks"),
    "test_fraction": Change(0.4, place="talks"),
    "seed": Change(7, place="talks"),
    "data": Change("other talks", place="talks"),
    "format": Change("alpaca", place="talks"),
    "columns": Change({"user": "task", "assistant": "result"}, place="objects"),
    "ignore_keys": Change(["audio"], place="odd key"),
    "where": Change(['prompt = "q1?"'], place="pairs"),
    "on_bad_row": Change("skip", place="bad pairs"),
    "encoding": Change("latin-1", place="latin pairs"),
    "command": Change(_says("b{n}?"), {"command": _says("a{n}?")}, place=""),
    "command_folder": Change("talks", {"command": _says("{n} {os.listdir('.')}")}, place=""),
    "val_rows": Change(3, place="talks"),
    "test_rows": Change(3, place="talks"),
    "group_by": Change(["category"], place="talks"),
    "duplicates": Change("drop", place="twice"),
    "near_duplicates": Change("drop", place="near"),
    "near_duplicate_similarity": Change(0.5, NEAR, place="near"),
}  # fmt: skip
CODE: dict[str, Change] = {
    "questions": Change(["location"], place="code"),
    "max_examples": Change(3, place="code"),
    "max_answer_chars": Change(30, place="code"),
    "keywords": Change(["alpha"], place="code"),
    "max_file_chars": Change(20, {"keywords": ["alpha"]}, place="code"),
    "repeat_build": Change(3, place="code"),
    "repeat_stack": Change(3, place="code"),
    "probe_rows": Change(4, place="code"),
    "languages": Change(["c"], place="code"),
    "exclude_sources": Change(["pkg1/*"], place="code"),
    "max_source_bytes": Change(120, place="code"),
    "vendored": Change("keep", place="code"),
    "generated": Change("keep", place="code"),
    "licenses": Change(["MIT"], {"unknown_license": "drop"}, place="code"),
    "unknown_license": Change("drop", {"licenses": ["MIT"]}, place="code"),
}
TOKENS: dict[str, Change] = {
    "data": Change("other text", place="text"),
    "tokenizer": Change("other words", place="text"),
    "eos_token": Change("<unk>", place="text"),
    "shard_tokens": Change(2048, place="text"),
}
CHANGES: dict[str, dict[str, Change]] = {
    "prepare-text": TEXT,
    "prepare-messages": {**ROWS, **CODE},
    "prepare-tokens": TOKENS,
}
INPUTS = ("data", "tokenizer")
"""Fields whose passage is the stage's input itself."""
ELSEWHERE = {"name", "python", "threads", "gate", "retry", "kind", "output"}
"""Fields of the process, of what follows a stage and of its type, which `engines.host` and the supervisor read."""
PLACES = ("source", "command_folder")
"""Fields that are paths."""
QUICK = {"seed", "source", "data", "command", "clean", "where", "group_by", "keywords", "val_rows"}
"""Fields that the short run has."""


def _cases() -> list[Any]:
    return [
        pytest.param(tag, name, id=f"{tag}-{name}", marks=[] if (tag, name) in short else [pytest.mark.thorough])
        for short in [{(tag, name) for tag in ("prepare-text", "prepare-messages") for name in QUICK}]
        for tag, changes in CHANGES.items()
        for name in changes
    ]


def _lines(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _pair(number: int, answer: str = "", **more: Any) -> dict[str, Any]:
    return {"prompt": f"q{number}?", "completion": answer or f"answer {number}", **more}


WORDS = SAME.split()
MODULE = '''"""The {name} module."""


class {title}(Exception):
    """Say {name} of things."""

    def {name}_more(self, value):
        """Return more of the {name}."""
        return value
'''
DEEP = {f"pkg{n}/{name}.py": MODULE.format(name=name, title=name.title())
        for n, name in enumerate(("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"))}  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small inputs, by name."""
    folder = tmp_path_factory.mktemp("places")
    texts = {
        f"{letter}{n}.txt": f"text {letter} {n}.  \nIt has lines.\n" * (1 + n) for letter in "abc" for n in range(5)
    }
    write_tree(folder / "texts", {**texts, "notes.md": "# Notes\n\nSome notes.\n"})
    write_tree(folder / "more", {f"m{n}.txt": f"more text {n}\n" * 3 for n in range(12)})
    write_tree(folder / "pages", {f"p{n}.html": f"<html><body><p>Page {n}</p></body></html>" for n in range(6)})
    write_tree(folder / "rows", {"r.jsonl": _lines(*({"text": f"t{n}", "content": f"c{n}"} for n in range(9)))})
    write_tree(folder / "bad rows", {"r.jsonl": _lines(*({"text": f"t{n}"} for n in range(9)), {"text": 3})})
    write_tree(folder / "latin", {f"l{n}.txt": f"caf\xe9 {n}\n".encode("latin-1") for n in range(6)})
    long = {f"{a}/{n}.txt": f"{a} {n} " + "word " * 60 for a in "pqrs" for n in range(4)}
    write_tree(folder / "folders", long)
    alike = [" ".join(WORDS[: 12 + n] + [f"end{n}"] * (2 if n % 2 else 6)) for n in range(8)]
    write_tree(folder / "alike", {f"w{n}.txt": text + "\n" for n, text in enumerate(alike)})
    talks = [_pair(n, category=f"c{n % 3}", group=f"g{n % 7}") for n in range(24)]
    _files(folder, "talks", *talks)
    _files(folder, "other talks", *talks[:20])
    _files(folder, "objects", *({"task": f"q{n}?", "result": f"a{n}"} for n in range(9)))
    _files(folder, "odd key", *(_pair(n, audio="x.wav") for n in range(9)))
    _files(folder, "pairs", *(_pair(n % 3, f"a{n}") for n in range(9)))
    _files(folder, "bad pairs", *(_pair(n) for n in range(9)), {"prompt": 3, "completion": "b"})
    write_tree(folder / "latin pairs", {"r.jsonl": _lines(*(_pair(n, "caf\xe9") for n in range(9))).encode("latin-1")})
    _files(folder, "twice", *(_pair(n) for n in range(9)), _pair(1), _pair(2))
    _files(folder, "near", *(_pair(n, text) for n, text in enumerate(alike)))
    write_tree(
        folder / "code",
        {
            **DEEP,
            "vendor/other.py": MODULE.format(name="other", title="Other"),
            "made.py": "# Code generated by a program. DO NOT EDIT.\n" + MODULE.format(name="made", title="Made"),
            "pyproject.toml": '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n[project]\n'
            'name = "small"\nversion = "1"\nrequires-python = ">=3.11"\ndependencies = ["numpy"]\n',
            "mit/one.py": "# SPDX-License-Identifier: MIT\n" + MODULE.format(name="free", title="Free"),
            "c/one.c": "/* Adds. */\nint add(int a, int b) { return a + b; }\n",
        },
    )
    return folder


def _with_texts(folder: Path) -> Path:
    """The places, with text folders and tokenizers too, which take a while."""
    for name, source, words in (("text", "texts", "words"), ("other text", "more", "other words")):
        if not (folder / words).exists():
            prepare_text(str(folder / source), fresh(folder / name), val_fraction=0.2, test_fraction=0.2)
            tokenizer_of(folder / name, folder / words, vocab_size=284)
    return folder


def _files(folder: Path, name: str, *rows: Any) -> None:
    write_tree(folder / name, {"r.jsonl": _lines(*rows)})


def _written(
    tmp_path: Path, values: Mapping[str, Any], places: Path, place: str, others: Mapping[str, Path] = {}
) -> Any:
    """What a stage writes, measures and says; or why it refuses. `others`: inputs in place of its own."""
    given = {name: _placed(value, places) if name in PLACES else value for name, value in values.items()}
    inputs: dict[str, Path | str] = {}
    if given["output"] != "text" and "command" not in given:
        inputs, given["data"] = {"data": places / place}, "d"
    if given["output"] == "tokens":
        inputs["tokenizer"] = _with_texts(places) / "words"
    inputs |= others
    ctx = make_context(tmp_path, given, inputs=inputs)
    kind: StageKind[Any] = row_of(ctx.stage)
    try:
        result = importlib.import_module(kind.module).run(ctx)
    except OperatorError as error:
        return {"refused": error.message.replace(str(tmp_path), "")}
    files = {
        path.relative_to(ctx.out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(ctx.out.rglob("*"))
        if path.is_file() and path.suffix in (".jsonl", ".bin", ".txt", ".idx")
    }
    said = sorted(e.message.replace(str(tmp_path), "") for e in ctx.events() if isinstance(e, Warned))
    return {"files": files, "metrics": result.metrics, "said": said}


def _placed(value: Any, places: Path) -> Any:
    if isinstance(value, str):
        return str(places / value)
    return [{**table, "path": str(places / table["path"])} for table in value]


def _base(tag: str, change: Change) -> dict[str, Any]:
    base: dict[str, Any] = {"name": "made", "kind": "prepare", "output": tag.partition("-")[2]}
    if tag == "prepare-tokens":
        return {**base, "tokenizer": "t", **change.given}
    base |= {"val_fraction": 0.2, "test_fraction": 0.2}
    return {**base, **({"source": change.place} if tag == "prepare-text" else {}), **change.given}


@pytest.mark.parametrize(("tag", "name"), _cases())
def test_a_field_changed_alone_changes_what_is_written_and_only_by_its_own_passage(
    tag: str, name: str, tmp_path: Path, places: Path
) -> None:
    change, fields = CHANGES[tag][name], STAGE_TYPES[tag]
    first = _base(tag, change)
    one = _written(tmp_path / "one", first, places, change.place)
    if name in INPUTS:
        assert _written(tmp_path / "two", first, places, change.place, {name: places / change.value}) != one
        return
    changed = {**first, name: change.value}
    assert _written(tmp_path / "two", changed, places, change.place) != one
    with read_as(fields, name, _value(tag, first, name, places)):
        assert _written(tmp_path / "three", changed, places, change.place) == one


def _value(tag: str, given: Mapping[str, Any], name: str, places: Path) -> Any:
    """The value of the field where it is not changed."""
    values = {key: _placed(value, places) if key in PLACES else value for key, value in given.items()}
    if tag != "prepare-text" and "command" not in given:
        values["data"] = "d"
    return getattr(STAGE_TYPES[tag].model_validate(values), name)


@pytest.mark.parametrize("tag", CHANGES)
def test_every_field_has_its_proof(tag: str) -> None:
    names = set(STAGE_TYPES[tag].model_fields)
    assert names - set(CHANGES[tag]) - ELSEWHERE == set()
    assert set(CHANGES[tag]) <= names
