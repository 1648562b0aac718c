"""Whole code bases: their examples, their splits, what is left out, and the same bytes twice."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engines.data.code.scan import CodePolicy
from engines.data.door import DataSource, read_conversations
from engines.data.messages import CodeOptions, prepare_messages
from engines.data.readers.row import MessageRow
from engines.data.split import SPLITS
from engines.data.stage import run
from engines.events.writers import Warned
from engines.inputs.code_or_rows import asks_about_code
from engines.inputs.code_tree import CodeRules
from engines.inputs.files_read import files_read
from recipes.problems import OperatorError
from tests.engines.data.code.test_left_out import KEY_LINE, SECRETS
from tests.engines.small_corpora import fresh, stdlib_text, write_tree
from tests.stage_context import make_context

HEADER = """\
namespace img {{
/** Works with {name}s. */
class {name} : public Base {{
 public:
  void load(int depth);
  int size() const {{ return 1; }}
}};
}}
"""
NAMES = [
    "Reader",
    "Writer",
    "Cache",
    "Index",
    "Codec",
    "Manager",
    "Scanner",
    "Filter",
    "Layer",
    "Canvas",
    "Brush",
    "Palette",
]


def cpp_tree(folder: Path) -> Path:
    """A C++ project with CMake: a header and a source for each class, and files that must be left out."""
    files: dict[str, str | bytes] = {
        "CMakeLists.txt": "project(Imager)\nadd_library(imager a.cpp)\nfind_package(ZLIB)\nenable_testing()\n",
        "LICENSE": "Permission is hereby granted, free of charge, to any person obtaining a copy",
        "third_party/z.cpp": "class Zip { void run(); };",
        "src/main.cpp": "int main() {\n  return 0;\n}\n",
        "tools/main.cpp": "int main(int argc, char** argv) { return 1; }\n",
    }
    for name in NAMES:
        files[f"src/{name.lower()}.h"] = HEADER.format(name=name)
        files[f"src/{name.lower()}.cpp"] = f"namespace img {{ void {name}::load(int depth) {{ }} }}\n"
    return write_tree(folder, files)


def prepared(data: Path, out: Path, **fields: Any) -> tuple[dict[str, list[MessageRow]], dict[str, Any]]:
    fresh(out)
    work = fresh(out.with_name(f"{out.name}-work"))
    given = {name: fields.pop(name) for name in ("val_fraction", "test_fraction", "seed") if name in fields}
    metadata = prepare_messages(data, out, work, CodeOptions(**fields), **given)
    return {split: list(read_conversations(DataSource(out), split)) for split in SPLITS}, metadata


@pytest.fixture(scope="module")
def cpp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cpp_tree(tmp_path_factory.mktemp("cpp") / "tree")


def test_a_cpp_project_gives_facts_of_every_kind(tmp_path: Path, cpp: Path) -> None:
    rows, metadata = prepared(cpp, tmp_path / "out", val_fraction=0.2, test_fraction=0.2)
    answers = {row.prompt: row.answer for part in rows.values() for row in part}
    found = {(row.category, row.answer) for part in rows.values() for row in part}
    at = "`src/reader.h`"
    assert {
        ("docstring", "Works with Readers."),
        ("bases", "`Reader` inherits from `Base`."),
        ("methods", "`Reader` defines 2 methods: `load` and `size`."),
        ("location", f"The class `img::Reader` is defined in {at}, lines 3 to 7."),
        ("signature", "`void Reader::load(int depth)`"),
        (
            "overview",
            f"`Reader` is a class in {at} that inherits from `Base`. `Reader` defines 2 methods: `load` and `size`."
            " Works with Readers.",
        ),
        ("build", "The project uses CMake (`CMakeLists.txt`)."),
    } <= found
    assert "ctest --test-dir build" in answers["How do I run the tests of this project?"]
    assert answers["Under which licence is this project published?"].endswith("MIT.")
    assert metadata["languages"] == {"cpp": {"files": 26, "files_with_errors": 0, "definitions": 3 * len(NAMES) + 2}}
    assert metadata["licenses"] == {"MIT": 26}
    assert metadata["build_systems"][0]["name"] == "CMake"
    assert metadata["dropped"]["third_party_folder"] == 1


def test_a_name_with_two_definitions_has_no_answer_in_any_split(tmp_path: Path, cpp: Path) -> None:
    rows, metadata = prepared(cpp, tmp_path / "out")
    assert not [row for part in rows.values() for row in part if "`main`" in row.prompt]
    assert metadata["dropped"]["defined_twice"] == 2


def test_a_header_and_its_source_are_in_one_split_and_the_project_is_learned_not_held_out(
    tmp_path: Path, cpp: Path
) -> None:
    rows, _ = prepared(cpp, tmp_path / "out", val_fraction=0.3, test_fraction=0.3)
    groups = {split: {row.group for row in part} for split, part in rows.items()}
    assert all(groups.values())
    assert sum(map(len, groups.values())) == len(set.union(*groups.values()))
    assert "src/reader" in set.union(*groups.values())
    assert {row.category for split in ("val", "test") for row in rows[split]}.isdisjoint({"build", "stack"})


def test_questions_about_the_build_are_repeated_after_the_split_and_counted_once(tmp_path: Path, cpp: Path) -> None:
    once, plain = prepared(cpp, tmp_path / "once")
    rows, metadata = prepared(cpp, tmp_path / "often", repeat={"build": 5, "stack": 2})
    kinds = [row.category for row in once["train"]]
    assert [row.category for row in rows["train"]].count("build") == 5 * kinds.count("build")
    assert [row.category for row in rows["train"]].count("stack") == 2 * kinds.count("stack")
    assert [rows[split] for split in ("val", "test")] == [once[split] for split in ("val", "test")]
    assert metadata["repeat"] == {"build": 5, "stack": 2}
    assert metadata["splits"]["train"]["examples"] == plain["splits"]["train"]["examples"] == len(once["train"])
    assert metadata["splits"]["train"]["rows"] == len(rows["train"])


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path, cpp: Path) -> None:
    fields: dict[str, Any] = {"max_examples": 40, "keywords": ["reader"]}
    prepared(cpp, tmp_path / "a", **fields)
    prepared(cpp_tree(tmp_path / "elsewhere"), tmp_path / "b", **fields)
    made = [[(tmp_path / name / f"{split}.jsonl").read_bytes() for split in SPLITS] for name in "ab"]
    assert made[0] == made[1]
    prepared(cpp, tmp_path / "c", **fields, seed=7)
    assert (tmp_path / "c" / "train.jsonl").read_bytes() != made[0][0]


def test_files_by_keyword_are_shown_whole_or_by_their_first_lines(tmp_path: Path, cpp: Path) -> None:
    rows, _ = prepared(cpp, tmp_path / "out", keywords=["READER.h", "main"], max_file_chars=120)
    shown = {row.prompt: row.answer for part in rows.values() for row in part if row.category == "file"}
    assert len(shown) == 3
    whole = next(answer for prompt, answer in shown.items() if "src/main.cpp" in prompt)
    assert whole == "```cpp\nint main() {\n  return 0;\n}\n```"
    prompt, start = next((prompt, answer) for prompt, answer in shown.items() if "reader.h" in prompt)
    count = int(re.findall(r"\d+", prompt)[0])
    text = (cpp / "src/reader.h").read_text().splitlines()
    assert start == "```cpp\n" + "\n".join(text[:count]) + "\n```"
    assert len(start) <= 120 < len("\n".join(text))


def test_no_planted_secret_reaches_an_example(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {"good.py": 'def fine(a=1):\n    "Works."\n'}
    for rule, value in SECRETS.items():
        text = f'def connect_{rule}(value="""{value}""", other=1):\n    """Uses {value}."""\n'
        files[f"service_{rule}.py"] = text
        files[f"service_{rule}.cpp"] = f"/** Uses {value.splitlines()[0]}. */\nclass C_{rule} {{}};\n// {value!r}\n"
    files["part.py"] = f'KEY = """{SECRETS["private_key"]}"""\ndef tail():\n    "Ends {KEY_LINE}."\n'
    tree = write_tree(tmp_path / "tree", files)
    rows, metadata = prepared(tree, tmp_path / "out", keywords=["service"], val_fraction=0.2, test_fraction=0.2)
    text = "".join((tmp_path / "out" / f"{split}.jsonl").read_text() for split in SPLITS)
    text += (tmp_path / "out" / "metadata.json").read_text()
    for value in (*SECRETS.values(), KEY_LINE):
        inside = json.dumps(value)[1:-1]
        assert inside not in text
        assert value.splitlines()[0] not in text
    assert set(SECRETS) <= set(metadata["secrets"])
    assert metadata["dropped"]["secret"] >= 2 * len(SECRETS)
    assert any(row.answer == "Works." for part in rows.values() for row in part)


def test_a_code_base_with_a_metadata_json_of_its_own_is_read_and_identified_as_code(tmp_path: Path) -> None:
    files = {f"m{n}.py": f"def f{n}(): 'Does {n}.'\n" for n in range(4)}
    tree = write_tree(tmp_path / "tree", files | {"metadata.json": '{"kind": "plugin"}', "package.json": "{}"})
    context = make_context(tmp_path / "run", STAGE, inputs={"data": tree})
    assert run(context).metrics["examples"] > 4
    assert [path for path, _ in files_read(context.stage, "data", tree)] == [*sorted(files), "package.json"]


@pytest.mark.parametrize(
    ("files", "is_code"),
    [
        (["a.cpp", "CMakeLists.txt", "data/table.csv"], True),
        (["a.py", "settings.json"], True),
        (["load.py", "data/train-00000-of-00001.parquet", "README.md"], False),
        (["train.jsonl", "make.py"], False),
        (["CMakeLists.txt", "table.csv"], False),
    ],
)
def test_a_project_is_code_and_data_with_a_script_beside_it_is_not(
    tmp_path: Path, files: list[str], is_code: bool
) -> None:
    tree = write_tree(tmp_path / "tree", dict.fromkeys(files, "x"))
    stage = make_context(tmp_path / "run", STAGE, inputs={"data": tree}).stage
    assert asks_about_code(stage, tree) is is_code


def test_a_secret_in_the_sources_is_said_without_its_text(tmp_path: Path) -> None:
    files = {f"m{n}.py": f"def f{n}(): 'Does {n}.'\n" for n in range(4)}
    tree = write_tree(tmp_path / "tree", files | {"key.py": f'KEY = "{SECRETS["github_token"]}"\n'})
    context = make_context(tmp_path / "run", STAGE, inputs={"data": tree})
    assert run(context).metrics["secrets"] == 1
    said = [event.message for event in context.events() if isinstance(event, Warned)]
    assert "the sources contain secrets (github_token); examples with one are left out" in said
    assert SECRETS["github_token"] not in str(said)


def test_a_language_without_a_parser_stops_the_stage_with_two_ways_out(
    tmp_path: Path, cpp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.data.code.extract.is_installed", lambda _grammar: False)
    write_tree(tmp_path / "tree", {"a.cpp": "class A { void f(); };", "b.py": "def b(): 'B.'", "c.py": "def c(): 'C.'"})
    with pytest.raises(OperatorError, match="no parser is installed for cpp") as raised:
        prepared(tmp_path / "tree", tmp_path / "out")
    assert "training-cockpit[code]" in (raised.value.hint or "")
    assert 'languages = ["python"' in (raised.value.hint or "")
    _, metadata = prepared(
        tmp_path / "tree", tmp_path / "python", policy=CodePolicy(CodeRules(languages=("python",))),
        val_fraction=0.0, test_fraction=0.0,
    )  # fmt: skip
    assert metadata["languages"] == {"python": {"files": 2, "files_with_errors": 0, "definitions": 2}}


STAGE = {"name": "questions", "kind": "prepare", "output": "messages", "data": "tree"}


@pytest.mark.parametrize(
    "fields",
    [
        {"questions": ["location", "build"]},
        {"keywords": ["main"]},
        {"keywords": ["reader"], "max_file_chars": 100},
        {"repeat_build": 3},
        {"repeat_stack": 3},
        {"languages": ["cpp"]},
        {"exclude_sources": ["src/r*"]},
        {"max_source_bytes": 100},
        {"vendored": "keep"},
        {"generated": "keep"},
        {"licenses": ["MIT"]},
        {"licenses": ["MIT"], "unknown_license": "drop"},
    ],
)
def test_every_field_reaches_the_examples_and_the_identity_of_the_input(tmp_path: Path, fields: dict[str, Any]) -> None:
    tree = cpp_tree(tmp_path / "tree")
    write_tree(tree, {"tool.py": "def tool(): 'Helps.'", "gen.pb.h": "class Gen { void g(); };",
                      "own.c": "// SPDX-License-Identifier: Apache-2.0\nint own(void) { return 1; }",
                      "odd/LICENSE": "All rights reserved.", "odd/x.c": "int odd(void) { return 1; }"})  # fmt: skip
    base = {"keywords": ["reader"]} if "max_file_chars" in fields else {}
    made = []
    for name, given in (("default", base), ("changed", fields)):
        context = make_context(tmp_path / name, STAGE | given, inputs={"data": tree})
        result = run(context)
        assert result.metrics["rows"] >= result.metrics["examples"] > 0
        made.append([(context.out / f"{split}.jsonl").read_bytes() for split in SPLITS])
        read = {path for path, _ in files_read(context.stage, "data", tree)}
        assert {"CMakeLists.txt", "LICENSE"} <= read
        assert ("tool.py" in read) == ("languages" not in given)
        assert ("third_party/z.cpp" in read) == ("vendored" in given)
    assert made[0] != made[1]


def test_facts_about_python_are_those_of_the_imported_packages(tmp_path: Path) -> None:
    """The truth is that of the import system and of `inspect`, which read no syntax tree of ours."""
    stdlib_text(tmp_path, "json", "email")
    kinds = ("bases", "methods", "location")
    rows, _ = prepared(tmp_path / "source", tmp_path / "out", questions=kinds, val_fraction=0.0, test_fraction=0.0)
    checked = Counter[str]()
    for row in rows["train"]:
        module, _, name = re.findall(r"`([\w.]+)`", row.prompt)[0].rpartition(".")
        if "idna" in module or not hasattr(importlib.import_module(module), name):
            continue
        found = getattr(importlib.import_module(module), name)
        answered = re.findall(r"`([\w.]+)`", row.answer)[1:]
        if row.category == "methods":
            own = [key for key, value in vars(found).items() if inspect.isroutine(value) or isinstance(value, property)]
            assert set(answered) == {key for key in own if _written_in(found, key)}, row
        elif row.category == "bases":
            assert [one.rpartition(".")[2] for one in answered] == [base.__name__ for base in found.__bases__], row
        elif checked["location"] < 12:
            assert f"line {inspect.getsourcelines(found)[1]} " in row.answer.replace("lines", "line"), row
        checked[row.category] += 1
    assert all(checked[kind] > 12 for kind in kinds)


def _written_in(owner: type, name: str) -> bool:
    """Whether a `def` in the body of a class made the attribute."""
    value = vars(owner)[name]
    function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
    return getattr(function, "__qualname__", "") == f"{owner.__qualname__}.{name}"
