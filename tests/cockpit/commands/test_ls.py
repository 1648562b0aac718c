"""What a row of `cockpit ls` says about a stage that makes no steps."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from cockpit.commands import ls
from engines.events.attempts import AttemptStarted, Phase, Progress
from engines.events.runs import RunStarted, StageStarted, StageSucceeded
from engines.words import StartReason
from tests.tui.journals import Journal


def test_an_evaluation_says_how_many_rows_are_answered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["judge"], kinds=["evaluate"]))
    journal.say("s", StageStarted(stage="judge", kind="evaluate"))
    journal.open("e", "engine", "judge", 1)
    journal.say("e", AttemptStarted(stage="judge", kind="evaluate", attempt=1))
    for done in (7.0, 12.0):
        journal.say("e", Progress(stage="judge", attempt=1, done=done, total=40.0, unit="answers"))
    journal.write(tmp_path / "runs" / "20261120-2130-judge")
    ls.run(argparse.Namespace(runs_dir=str(tmp_path / "runs"), json=False))
    assert "12 of 40 answers" in capsys.readouterr().out
    ls.run(argparse.Namespace(runs_dir=str(tmp_path / "runs"), json=True))
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["step"], row["done"], row["total"], row["unit"]) == (None, 12.0, 40.0, "answers")
    journal.say("e", Phase(stage="judge", attempt=1, name="saving"))
    metrics: dict[str, float | None] = {"success": 0.5, "test_rows": 40.0}
    journal.say("e", StageSucceeded(stage="judge", attempt=1, fingerprint="f", manifest_sha256="m", metrics=metrics))
    journal.write(tmp_path / "runs" / "20261120-2130-judge")
    ls.run(argparse.Namespace(runs_dir=str(tmp_path / "runs"), json=False))
    assert "  40 rows" in capsys.readouterr().out
