"""Watchers on a full disk make no attempt beyond the declared ones."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.schedule.facts import read_facts
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.schedule.scheduling import EndRun, next_action
from engines.emitter import EventWriter
from engines.events.runs import RunStarted
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, WriterRole
from tests.runs.harness import (
    ROOT,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    nothing_left,
    wait_for,
    wait_for_end,
    wait_for_step,
)

ADOPT_WITH_LIMIT = """
import resource, sys
from cockpit.supervision.supervisor import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
sys.exit(main([sys.argv[1], "--reason", "adopt", "--foreground"]))
"""


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    """A run that trains, and whose supervisor was killed."""
    with nothing_left(tmp_path / "runs"):
        made = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.02}), tmp_path)
        wait_for_step(made, 3)
        kill_supervisor(made)
        yield made


def adopt_with(run: RunDir, limit_bytes: int) -> int:
    command = [sys.executable, "-c", ADOPT_WITH_LIMIT, str(run.root), str(limit_bytes)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode


def starts(run: RunDir) -> list[RunStarted]:
    return [event for event in events(run) if isinstance(event, RunStarted)]


def test_an_adopter_that_has_no_room_for_a_record_does_not_adopt(run: RunDir) -> None:
    for _ in range(3):
        assert adopt_with(run, 4096) == 1
    assert len(starts(run)) == 1
    assert run.attempts("part-1") == [1]


def test_an_adopter_whose_first_record_cannot_be_written_does_not_adopt(run: RunDir) -> None:
    padding = EventWriter(run.journal, None, role=WriterRole.SAMPLER)
    while run.journal.stat().st_size < 3 * 65_536:
        padding.emit(Warned(message="x" * 30_000))
    padding.close()
    for _ in range(3):
        assert adopt_with(run, 65_536 * 2) == 0
    assert len(starts(run)) == 1
    assert run.attempts("part-1") == [1]


def test_attempts_that_left_only_their_folders_count(tmp_path: Path) -> None:
    with nothing_left(tmp_path / "runs"):
        fields = {"max_steps": 1, "fail_at_step": 1, "retry": {"max_attempts": 3}}
        run = launch_text(fake_recipe(fields), tmp_path)
        assert wait_for_end(run) in {"failed", "succeeded"}
        journal = run.journal.read_text().splitlines(keepends=True)
        start = next(n for n, line in enumerate(journal) if '"k":"run_started"' in line)
        run.journal.write_text("".join(journal[: start + 1]))  # the disk was full from here on
        for number in (1, 2, 3):
            run.attempt_dir("part-1", number).mkdir(exist_ok=True)
        facts = read_facts(run)
        facts.note_folders(run, ["part-1"])
        action = next_action(RunRecipe.read(run), facts, lambda _name: False).action
        assert isinstance(action, EndRun)
        assert action.state == RunStatus.FAILED
        assert "attempt 3 of 3" in action.reason


def test_when_there_is_room_again_the_run_is_adopted_and_continues(run: RunDir) -> None:
    from cockpit.launching.adoption import FOLLOWER, adopt

    assert adopt_with(run, 4096) == 1
    assert adopt(run, FOLLOWER)
    wait_for(lambda: len(starts(run)) == 2, "the adoption")
    assert run.attempts("part-1") == [1]
