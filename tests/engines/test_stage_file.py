from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.host import load_context
from engines.run_dir.paths import RunDir
from engines.stage_file import (
    FORMAT,
    StageFile,
    StageInput,
    StageResume,
    first_start_of,
    moment,
    present_moment,
    read_stage_file,
    read_stage_inputs,
    write_stage_file,
)
from recipes.problems import OperatorError

ROOT = Path(__file__).resolve().parents[2]
OLD: dict[str, Any] = {
    "format": 1,
    "run_root": "/runs/20261120-2130-atlas",
    "tag": "finetune",
    "stage": {"name": "atlas", "kind": "finetune", "model": "base", "data": "questions"},
    "attempt": 2,
    "inputs": {
        "model": {"origin": "hub", "name": "org/base", "path": None, "output": None, "manifest_sha256": None},
        "data": {"origin": "stage", "name": "questions", "path": "/runs/q/out", "output": "messages",
        "manifest_sha256": "a"},
    },
    "resume": {"attempt": 1, "step": 40, "path": "/runs/c/step-40", "sha256": "b"},
    "learning_rate_scale": 0.5,
    "fingerprint": "f",
}  # fmt: skip
"""A file as the first version wrote it."""


def content(**fields: Any) -> StageFile:
    values = {"run_root": "/runs/r", "tag": "fake", "stage": {"name": "s", "kind": "fake"}, "attempt": 1}
    return StageFile(**{**values, **fields})


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    given = content(
        inputs={"model": StageInput(origin="hub", name="org/m")},
        resume=StageResume(attempt=1, step=5, path="/c", sha256="d"),
        learning_rate_scale=0.25,
        fingerprint="e",
    )
    write_stage_file(path, given)
    assert read_stage_file(path) == given
    assert json.loads(path.read_text())["format"] == FORMAT


def test_a_file_of_the_first_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    path.write_text(json.dumps(OLD))
    found = read_stage_file(path)
    assert found.inputs["model"] == StageInput(origin="hub", name="org/base")
    assert found.resume == StageResume(attempt=1, step=40, path="/runs/c/step-40", sha256="b")
    assert (found.fingerprint, found.launch, found.expected) == ("f", 0, None)


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    path.write_text(json.dumps({**OLD, "ranks": 8}))
    assert read_stage_file(path).attempt == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps({**OLD, "format": FORMAT + 1, "inputs": "another form"}), f"format — got {FORMAT + 1}"),
        (json.dumps({**OLD, "attempt": "two"}), "attempt"),
        (json.dumps({key: value for key, value in OLD.items() if key != "tag"}), "tag"),
        ("[]", "stage file"),
        ("{", "stage file"),
        ("[" * 100_000, "stage file"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_what_to_do(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "stage.json"
    path.write_text(text)
    with pytest.raises(OperatorError, match=words) as caught:
        read_stage_file(path)
    assert caught.value.hint


def test_the_inputs_of_a_newer_format_are_read_if_their_form_is_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    path.write_text(json.dumps({**OLD, "format": FORMAT + 1}))
    assert read_stage_inputs(path)["data"].path == "/runs/q/out"
    path.write_text(json.dumps({**OLD, "inputs": ["model"]}))
    with pytest.raises(ValueError, match="inputs"):
        read_stage_inputs(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tag": "distill"}, "tag — got distill; allowed prepare-text"),
        ({"stage": {"name": "s", "kind": "fake", "temperature": 2}}, "stage.temperature — "),
    ],
)
def test_a_stage_that_this_version_cannot_run_is_refused_before_anything_is_made(
    tmp_path: Path, fields: dict[str, Any], words: str
) -> None:
    run = RunDir(tmp_path / "run")
    path = run.stage_json("s", 1)
    path.parent.mkdir(parents=True)
    write_stage_file(path, content(run_root=str(run.root), **fields))
    with pytest.raises(OperatorError, match=r"stage\.json") as caught:
        load_context(read_stage_file(path), path)
    assert words in str(caught.value)
    assert "same version" in caught.value.hint
    assert [entry.name for entry in path.parent.iterdir()] == ["stage.json"]


@pytest.mark.slow
def test_a_misspelt_field_of_a_stage_is_a_type_error(tmp_path: Path) -> None:
    code = """
from engines.context import StageContext
from recipes.stages.merge import MergeStage
from recipes.stages.pretrain import PretrainStage

def pretrain(ctx: StageContext[PretrainStage]) -> None:
    print(ctx.stage.rope_theta, ctx.stage.rope_tetha)

def merge(ctx: StageContext[MergeStage]) -> None:
    pretrain(ctx)
"""
    module = tmp_path / "misspelt.py"
    module.write_text(code)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(module)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 1, checked.stdout + checked.stderr
    errors = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, checked.stdout
    assert 'has no attribute "rope_tetha"' in errors[0]
    assert 'expected "StageContext[PretrainStage]"' in errors[1]


def test_the_first_start_of_a_stage_is_that_of_its_first_attempt_that_says_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert first_start_of(run, "s") == ""
    for attempt, said in enumerate(("", "not a time", "2020-02-29T23:59:30", "2021-01-01T00:00:00"), start=1):
        run.attempt_dir("s", attempt).mkdir(parents=True)
        write_stage_file(run.stage_json("s", attempt), content(attempt=attempt, first_start=said))
    run.stage_json("s", 1).write_text("{")
    assert first_start_of(run, "s") == "2020-02-29T23:59:30"
    assert moment(present_moment()) == present_moment()[:19]
    for text in ("", "2020", None, 5, "2020-13-01T00:00:00", "x" * 1000):
        assert moment(text) == "", text
