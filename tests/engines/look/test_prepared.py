"""What a prepare stage will write is known before it runs: the same files, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.data.preparing.stage import run_rows
from engines.look import prepared
from engines.look.answer import Job
from engines.look.prepared import prepared_rows
from engines.look.stage_look import look_at
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
