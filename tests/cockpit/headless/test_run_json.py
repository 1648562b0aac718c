"""`cockpit show --json`: what it says about checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.cli import main
from engines.emitter import EventWriter
from engines.events.attempts import AttemptStarted
from engines.events.steps import CheckpointCommitted
from engines.words import WriterRole
from tests.cockpit.runs.journaled_runs import a_run, write_journal


def test_of_several_checkpoints_that_once_were_best_exactly_the_one_that_is_best_now_is_marked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    writer = EventWriter(run.journal, None, role=WriterRole.ENGINE, stage="base", attempt=1)
    writer.emit(AttemptStarted(stage="base", kind="fake", attempt=1, total_steps=50))
    for step, best in ((10, True), (20, True), (30, False), (40, True), (50, False)):
        folder = run.checkpoint("base", 1, step)
        writer.emit(
            CheckpointCommitted(
                stage="base",
                attempt=1,
                step=step,
                path=run.relative(folder),
                sha256=f"{step:064x}",
                healthy=True,
                best=best,
                loss=1.0,
            )
        )
    writer.close()
    assert main(["show", str(run.root), "--json"]) == 0
    stage = json.loads(capsys.readouterr().out)["stages"][0]
    assert {c["step"]: c["best"] for c in stage["checkpoints"]} == {
        10: False,
        20: False,
        30: False,
        40: True,
        50: False,
    }
    assert stage["best_checkpoint"] == run.relative(run.checkpoint("base", 1, 40))
