"""A save on a failing disk, a save that is interrupted, and checkpoints that somebody removed."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.checkpoints import scan_attempt
from engines.artifacts.manifest import verify_manifest
from engines.control import put_request
from engines.events.attempts import AttemptEnded
from engines.events.runs import ControlApplied
from engines.events.steps import CheckpointCommitted, Step
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from engines.training import saving
from engines.training.saves.parts import write_parts
from engines.words import Verb
from tests.engines.training.attempts import Held, committed_steps, context, of_kind, run_stage
from tests.engines.training.tiny import PRETRAIN
from tests.stage_context import TriedContext

pytestmark = pytest.mark.torch


@pytest.mark.parametrize(
    ("number", "where"),
    [
        (errno.ENOSPC, "files"),
        (errno.EDQUOT, "manifest"),
        (errno.EIO, "rename"),
        (errno.EROFS, "files"),
        (errno.ESTALE, "manifest"),
    ],
)
def test_a_save_that_the_disk_refuses_loses_one_checkpoint_and_says_why(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, number: int, where: str
) -> None:
    name = {"files": "write_parts", "manifest": "write_manifest", "rename": "commit_folder"}[where]
    real = getattr(saving, name)
    calls: list[int] = []

    def failing(*args: Any, **fields: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            if where == "files":
                real(*args, **fields)  # the files are there, and the disk refuses the last of them
            raise OSError(number, os.strerror(number))
        return real(*args, **fields)

    monkeypatch.setattr(saving, name, failing)
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    assert run_stage(ctx) is not None, "training reaches its last step"
    assert committed_steps(ctx, 1) == [3, 8]
    complete, refused = scan_attempt(ctx.checkpoints)
    assert refused == [], "nothing partial is left"
    assert [one.step for one in complete] == [3, 8]
    assert [problem for one in complete for problem in verify_manifest(one.path)] == []
    (warning,) = of_kind(ctx, Warned)
    assert "checkpoint at step 6 could not be written" in warning.message
    assert os.strerror(number) in warning.message
    assert "training continues and retries at the next save" in warning.message


@pytest.mark.parametrize("async_save", [True, False])
@pytest.mark.parametrize("how", ["SIGTERM", "stop-after-checkpoint", "stop"])
def test_a_stop_during_a_save_leaves_the_whole_checkpoint(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, how: str, async_save: bool
) -> None:
    real = write_parts
    ctx = context(tmp_path, {**PRETRAIN, "async_save": async_save}, {"data": tokens})
    before = signal.signal(signal.SIGTERM, ctx.on_signal)
    asked: list[str] = []

    def interrupted(folder: Path, model: Any, parts: Any) -> None:
        if not asked:
            asked.append(how)
            if how == "SIGTERM":
                os.kill(os.getpid(), signal.SIGTERM)
            else:
                put_request(RunDir(ctx.run_root).control, Verb(how))
        real(folder, model, parts)

    monkeypatch.setattr(saving, "write_parts", interrupted)
    try:
        assert run_stage(ctx) is None, "it stops"
    finally:
        signal.signal(signal.SIGTERM, before)
    complete, refused = scan_attempt(ctx.checkpoints)
    assert (complete[0].step, refused) == (3, [])
    assert async_save or len(complete) == 1, "the training had not continued"
    assert [problem for one in complete for problem in verify_manifest(one.path)] == []
    kinds = [type(event) for event in ctx.events() if isinstance(event, CheckpointCommitted | ControlApplied)]
    assert kinds == [CheckpointCommitted] * len(complete) + [ControlApplied], "the answer comes after the save"
    assert not of_kind(ctx, AttemptEnded)


def test_checkpoints_that_somebody_removed_end_nothing(tmp_path: Path, tokens: Path) -> None:
    """Also the best one: no step at the end loads it."""
    stage = {**PRETRAIN, "save_steps": 1, "eval_steps": 1, "save_total_limit": 1, "learning_rate": 0.5, "max_steps": 6}
    ctx = context(tmp_path, stage, {"data": tokens})
    emit, gone = ctx.emit, list[int]()

    def emit_and_remove(event: Any) -> int:
        seq = emit(event)
        if isinstance(event, CheckpointCommitted) and event.step in {1, 4}:
            for folder in list(ctx.checkpoints.glob("step-*")):
                shutil.rmtree(folder)
                gone.append(event.step)
        return seq

    ctx.emit = emit_and_remove  # type: ignore[method-assign]
    result = run_stage(ctx)
    assert result is not None
    assert result.metrics["steps"] == 6
    assert set(gone) == {1, 4}
    complete, refused = scan_attempt(ctx.checkpoints)
    assert refused == []
    assert complete[-1].step == 6
    assert all(verify_manifest(one.path) == [] for one in complete)


def test_a_save_into_a_run_that_was_moved_away_is_refused_and_makes_no_folder(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, {**PRETRAIN, "async_save": False}, {"data": tokens})
    move_away_for_two_steps(ctx, tmp_path / "away")
    assert run_stage(ctx) is not None
    assert committed_steps(ctx, 1) == [3, 8]
    (warning,) = of_kind(ctx, Warned)
    assert "the run directory was moved or removed; move it back; training continues" in warning.message


def test_a_run_that_is_moved_away_while_a_checkpoint_is_written_loses_that_one(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    move_away_for_two_steps(ctx, tmp_path / "away")
    Held(ctx, monkeypatch, 3, lambda event: isinstance(event, Step) and event.step == 5, before=True)
    assert run_stage(ctx) is not None
    assert committed_steps(ctx, 1) == [8]
    warnings = [warning.message for warning in of_kind(ctx, Warned)]
    assert [words.partition(" could")[0] for words in warnings] == ["checkpoint at step 3", "checkpoint at step 6"]
    assert all("the run directory was moved or removed; move it back" in words for words in warnings)


def move_away_for_two_steps(ctx: TriedContext, away: Path) -> None:
    """Move the run directory after step 5, and back after step 7."""
    emit = ctx.emit

    def emit_and_move(event: Any) -> int:
        seq = emit(event)
        if isinstance(event, Step) and event.step == 5:
            ctx.run_root.rename(away)
        if isinstance(event, Step) and event.step == 7:
            assert not ctx.run_root.exists(), "it is not made again under its old name"
            away.rename(ctx.run_root)
        return seq

    ctx.emit = emit_and_move  # type: ignore[method-assign]
