"""What a prepare stage will write is known before it runs: the same files, byte for byte."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from engines.data.preparing.stage import run_rows
from engines.events.writers import Warned
from engines.look import prepared
from engines.look.answer import Job
from engines.look.prepared import prepared_rows
from engines.look.stage_look import look_at
from recipes.problems import OperatorError
from tests.engines.look.looked_at import TABLE, row, write_data, write_model
from tests.stage_context import make_context

PREPARE = {"name": "rows", "kind": "prepare", "output": "messages", "data": "./data", "val_fraction": 0.2}


def test_the_files_are_those_that_the_stage_writes(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [row(f"q{n}", f"a{n % 7}") for n in range(40)]) / "train.jsonl"
    ctx = make_context(tmp_path / "run", PREPARE, inputs={"data": data})
    run_rows(ctx)
    (tmp_path / "scratch").mkdir()
    made = prepared_rows(PREPARE, str(data), tmp_path / "scratch")
    for name in ("train", "val", "test"):
        assert (made / f"{name}.jsonl").read_bytes() == (ctx.out / f"{name}.jsonl").read_bytes()
    assert prepared_rows(PREPARE, str(data), tmp_path / "scratch") == made


def test_a_stage_that_reads_them_is_looked_at_and_large_data_is_left_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path / "model")
    data = write_data(tmp_path / "data", [row(f"q{n}", f"a{n}") for n in range(20)]) / "train.jsonl"
    job = Job({**TABLE, "data": "rows"}, str(data), str(tmp_path / "model"), PREPARE)
    (tmp_path / "scratch").mkdir()
    found = look_at(job, label_s=60, read_s=60, scratch=tmp_path / "scratch")
    assert [(one.split, one.rows) for one in found.splits] == [("train", 15), ("val", 4)]
    assert (found.examples, found.steps) == (15, 4)
    monkeypatch.setattr(prepared, "MAX_BYTES", 10)
    (tmp_path / "other").mkdir()
    unknown = look_at(job, label_s=60, read_s=60, scratch=tmp_path / "other")
    assert "not divided" in unknown.unlabelled
    assert (unknown.examples, unknown.defects) == (None, [])


def test_code_is_not_read_as_rows(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("def f():\n    pass\n")
    for kind in ("auto", "code"):
        found = look_at(Job({**PREPARE, "format": kind}, str(tmp_path / "code")), label_s=60, read_s=60)
        assert (found.defects, found.splits) == ([], [])


@pytest.mark.parametrize(
    ("fields", "rows", "field", "words"),
    [
        ({}, [row("q", "a")], "val_fraction", "cannot divide 1 row(s) into train, val"),
        ({"val_rows": 30}, [row(f"q{n}", "a") for n in range(20)], "val_rows", "with 30 for val"),
        ({}, [row("one", f"a{n}") for n in range(20)], "group_by", "cannot divide 1 group(s)"),
        ({"val_rows": 2}, None, "val_rows", "gives a val split of its own"),
        ({"on_bad_row": "skip"}, ["{"], "data", "no rows"),
    ],
)
def test_a_division_that_the_stage_would_refuse_is_a_defect_at_its_field(
    tmp_path: Path, fields: dict[str, object], rows: list[str] | None, field: str, words: str
) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "scratch").mkdir()
    data = write_data(tmp_path / "data", rows or [row("q", "a"), row("r", "b")])
    if rows is None:
        write_data(data, [row("s", "c")], "val")
    table = {**PREPARE, "test_fraction": 0.0, **fields}
    found = look_at(Job(table, str(data)), label_s=60, read_s=60, scratch=tmp_path / "scratch")
    (defect,) = found.defects
    assert (defect.field, words in defect.message, bool(defect.hint)) == (field, True, True), defect
    ctx = make_context(tmp_path / "run", table, inputs={"data": data})
    with pytest.raises(OperatorError, match=re.escape(words)):
        run_rows(ctx)
    for _ in range(2):  # each stage that reads it says why it knows nothing
        job = Job({**TABLE, "data": "rows"}, str(data), str(tmp_path / "model"), table)
        later = look_at(job, label_s=60, read_s=60, scratch=tmp_path / "scratch")
        assert (words in later.unlabelled, later.defects) == (True, [])


def test_a_share_that_given_splits_leave_unused_is_said_before_the_run_and_in_it(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data", [row(f"q{n}", "a") for n in range(20)])
    write_data(data, [row("s", "c")], "test")
    (tmp_path / "scratch").mkdir()
    found = look_at(Job(PREPARE, str(data)), label_s=60, read_s=60, scratch=tmp_path / "scratch")
    ctx = make_context(tmp_path / "run", PREPARE, inputs={"data": data})
    run_rows(ctx)
    words = "val_fraction = 0.2 is of data without splits; set val_rows to take rows of train for val"
    in_run = [event.message for event in ctx.events() if isinstance(event, Warned)]
    for warnings in (found.warnings, in_run):
        assert [words in text for text in warnings].count(True) == 1, warnings
