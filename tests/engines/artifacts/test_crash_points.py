"""A process that dies at any of its file operations leaves a checkpoint from which training resumes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from engines.artifacts.checkpoints import Checkpoint, clean_leftovers, scan
from engines.artifacts.manifest import verify_manifest
from engines.context import ResumePoint
from engines.events.steps import CheckpointCommitted, CheckpointRemoved
from engines.fake.stage import run as fake
from engines.journal import read_journal
from engines.run_dir.paths import RunDir
from tests.stage_context import make_context

STAGE = {
    "name": "base", "kind": "fake", "max_steps": 4, "step_s": 0.0, "save_steps": 1, "save_total_limit": 2,
    "eval_steps": 2, "checkpoint_bytes": 9000,
}  # fmt: skip
COUNTED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.truncate"}
DEAD = 77


def _die() -> NoReturn:
    os._exit(DEAD)


def _dies_at(number: int, folder: Path) -> Callable[[], int]:
    """Make this process end right before its operation of this number; returns a function that counts them so far."""
    done = 0
    real_write, real_fsync = os.write, os.fsync

    def next_one() -> bool:
        nonlocal done
        done += 1
        return done == number

    def heard(event: str, args: tuple[Any, ...]) -> None:
        if event in COUNTED and isinstance(args[0], str | os.PathLike) and str(args[0]).startswith(str(folder)):
            if event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR)):
                return  # a file that is only read
            if next_one():
                _die()

    def write(fd: int, data: Any) -> int:
        if next_one():
            real_write(fd, bytes(data)[: len(data) // 2])  # a write that was cut short
            _die()
        return real_write(fd, data)

    def fsync(fd: int) -> None:
        if next_one():
            _die()
        real_fsync(fd)

    sys.addaudithook(heard)
    for name, replacement in {"write": write, "fsync": fsync}.items():
        setattr(os, name, replacement)
    return lambda: done


def _train(folder: Path, dies_at: int) -> tuple[int, int]:
    """Train in a fork that dies at its operation of this number; its exit status, and how many operations it did."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        count = _dies_at(dies_at, folder)
        status = 1
        try:
            fake(make_context(folder, STAGE))
            status = 0
        finally:
            if dies_at == 0:
                os.write(writer, str(count()).encode())
            os._exit(status)
    os.close(writer)
    said = os.read(reader, 20)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), int(said or 0)


def _usable(run: RunDir) -> list[Checkpoint]:
    complete, _ = scan(run.stage_dir("base"))
    assert [problem for one in complete for problem in verify_manifest(one.path)] == [], "complete means: every byte"
    return complete


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.thorough)])
def test_a_process_that_dies_at_any_file_operation_leaves_a_checkpoint_to_resume_from(
    every: int, tmp_path: Path
) -> None:
    status, operations = _train(tmp_path / "whole", 0)
    assert status == 0
    assert operations >= 60, "the points at which a save, a rotation and a record can be cut short"
    for number in range(1, operations + 1, every):
        folder = tmp_path / str(number)
        assert _train(folder, number)[0] == DEAD
        run = RunDir(folder / "run")
        events = list(read_journal(run.journal)) if run.journal.exists() else []
        removed = {event.step for event in events if isinstance(event, CheckpointRemoved)}
        said = [event.step for event in events if isinstance(event, CheckpointCommitted) and event.step not in removed]
        usable = _usable(run) if run.stage_dir("base").exists() else []
        steps = [one.step for one in usable]
        assert set(said[-1:]) <= set(steps), f"the newest checkpoint that was announced is complete (point {number})"
        assert not said or max(steps) >= max(said)


def test_training_continues_from_what_a_dead_process_left(tmp_path: Path) -> None:
    _, operations = _train(tmp_path / "whole", 0)
    for number in range(3, operations, 11):
        folder = tmp_path / str(number)
        _train(folder, number)
        run = RunDir(folder / "run")
        newest = _usable(run)[-1:]
        clean_leftovers(run.checkpoints("base", 1))
        point = [ResumePoint(1, one.step, one.path, one.sha256) for one in newest]
        again = make_context(folder, STAGE, attempt=2, resume=point[0] if point else None)
        result = fake(again)
        assert result.metrics["steps"] == 4
        assert [one.step for one in _usable(run)][-1] == 4
