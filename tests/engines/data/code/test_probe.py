"""The fact probe asks about files and symbols that no row of the training names, and each right choice is true."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.data.messages import CodeOptions, prepare_messages
from engines.data.stage import run
from engines.inputs.files_read import files_read
from engines.judging.checks import Judges
from engines.judging.test_file import read_tests
from recipes.problems import OperatorError
from recipes.stages.evaluate import EvaluateStage
from tests.engines.small_corpora import fresh, write_tree
from tests.stage_context import make_context

FILES = {
    f"pkg/part{n}.py": (
        f'class Kind{n}(Base{n}):\n    """Keeps number {n} of the store."""\n'
        f"    def open{n}(self, size{n}): pass\n    def close{n}(self): pass\n"
    )
    for n in range(24)
}


def probe_of(tmp_path: Path, files: dict[str, str], rows: int = 30, test_fraction: float = 0.4) -> list[dict[str, Any]]:
    out = fresh(tmp_path / "out")
    tree = write_tree(tmp_path, files)
    options = CodeOptions(probe_rows=rows)
    prepare_messages(tree, out, fresh(tmp_path / "work"), options, test_fraction=test_fraction)
    return [json.loads(line) for line in (out / "probe.jsonl").read_text().splitlines()]


def test_no_file_and_no_symbol_of_the_probe_is_named_in_training(tmp_path: Path) -> None:
    rows = probe_of(tmp_path, FILES)
    trained = (tmp_path / "out" / "train.jsonl").read_text() + (tmp_path / "out" / "val.jsonl").read_text()
    assert len(rows) == 30
    for row in rows:
        assert row["group"] not in trained
        assert row["id"].partition("/")[2] not in trained
        assert len(set(row["choices"])) == 4
    assert {row["id"].partition("/")[0] for row in rows} == {"location", "methods", "bases", "signature", "docstring"}


def test_the_right_choice_is_what_the_source_says(tmp_path: Path) -> None:
    for row in probe_of(tmp_path, FILES):
        kind, _, name = row["id"].partition("/")
        number = row["group"].removeprefix("pkg/part").removesuffix(".py")
        right = row["choices"]["ABCD".index(row["answer"])]
        truth = {
            "location": f"`pkg/part{number}.py`",
            "methods": f"`open{number}` and `close{number}`",
            "bases": f"`Base{number}`",
            "docstring": f"Keeps number {number} of the store.",
        }
        if kind == "signature":
            assert right in (f"`def …(self, size{number})`", "`def …(self)`"), name
        else:
            assert right == truth[kind], name


def test_a_symbol_that_a_training_row_names_is_not_asked_about(tmp_path: Path) -> None:
    held_out = sorted({row["group"] for row in probe_of(tmp_path / "before", FILES)})
    number = held_out[0].removeprefix("pkg/part").removesuffix(".py")
    trained = (tmp_path / "before" / "out" / "train.jsonl").read_text()
    user = next(name for name in FILES if f"`{name}`" in trained)
    files = {
        **FILES,
        user: FILES[user] + f'\ndef helper():\n    """Wraps `pkg.part{number}.Kind{number}` for users."""\n',
    }
    rows = probe_of(tmp_path / "after", files)
    assert f"pkg.part{number}.Kind{number}" in (tmp_path / "after" / "out" / "train.jsonl").read_text()
    assert not [row for row in rows if row["id"].endswith(f"/pkg.part{number}.Kind{number}")]


def test_the_probe_is_a_test_file_and_the_same_each_time(tmp_path: Path) -> None:
    assert probe_of(tmp_path / "a", FILES) == probe_of(tmp_path / "b", FILES)
    judges = Judges()
    tasks = read_tests(tmp_path / "a" / "out" / "probe.jsonl", [], judges)
    assert [task.checks[0].kind for task in tasks] == ["choice"] * 30
    judges.close()


def test_letters_are_right_about_equally_often(tmp_path: Path) -> None:
    letters = [row["answer"] for row in probe_of(tmp_path, FILES, rows=200)]
    assert len(letters) > 30
    assert all(letters.count(letter) / len(letters) < 0.45 for letter in "ABCD")


def test_a_code_base_without_such_facts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="probe_rows — the test split has no fact"):
        probe_of(tmp_path, {"one.py": FILES["pkg/part0.py"], "two.py": FILES["pkg/part1.py"], "three.py": "x = 1\n"})


def test_the_stage_counts_the_rows_and_says_when_there_are_fewer(tmp_path: Path) -> None:
    stage = {"name": "q", "kind": "prepare", "output": "messages", "data": "./tree", "format": "code"}
    ctx = make_context(
        tmp_path,
        {**stage, "probe_rows": 500, "test_fraction": 0.4},
        inputs={"data": write_tree(tmp_path, FILES)},
    )
    rows = run(ctx).metrics["probe_rows"]
    assert rows == len((ctx.out / "probe.jsonl").read_text().splitlines()) < 500
    assert any("the fact probe has" in str(getattr(event, "message", "")) for event in ctx.events())
    # An evaluation of the probe reads it from the folder, so its content is part of what the stage recorded.
    fields = {"name": "e", "kind": "evaluate", "model": "m", "data": "q", "test_data": "q"}
    for tests, expected in (("probe", True), ("rows", False)):
        read = files_read(EvaluateStage.model_validate({**fields, "tests": tests}), "test_data", ctx.out)
        assert ("probe.jsonl" in {name for name, _ in read}) is expected
