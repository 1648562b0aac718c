"""On a full disk, a supervisor begins no attempt that it cannot journal, and continues when space returns."""

from __future__ import annotations

import resource
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from engines.events.runs import StageSucceeded
from engines.run_dir.locks import lock_holder, lock_is_held
from tests.runs.harness import (
    assert_no_process_left,
    end_soon,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    wait_for,
    wait_for_end,
    wait_for_step,
)


@pytest.mark.parametrize("max_attempts", [1, 3])
def test_no_attempt_begins_that_cannot_be_journaled_and_the_run_goes_on_when_space_returns(
    tmp_path: Path, max_attempts: int
) -> None:
    stages: list[dict[str, Any]] = [
        {"max_steps": 100_000, "step_s": 0.02},
        {"max_steps": 3, "step_s": 0.01, "retry": {"max_attempts": max_attempts}},
    ]
    run = launch_text(fake_recipe(*stages), tmp_path)
    wait_for_step(run)
    supervisor = lock_holder(run.supervisor_lock)["pid"]
    full = (run.journal.stat().st_size, resource.RLIM_INFINITY)  # engines inherit it
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, full)
    end_soon(run)
    wait_for(lambda: any(isinstance(event, StageSucceeded) for event in events(run)), "the first stage's success")
    time.sleep(2.0)  # a supervisor that does not wait begins the next attempt within this time
    assert lock_is_held(run.supervisor_lock)
    assert run.attempts("part-2") == []
    resource.prlimit(supervisor, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert wait_for_end(run) == "succeeded"
    assert run.attempts("part-2") == [1]
    assert_no_process_left(run)


def test_a_run_directory_that_is_deleted_ends_its_run(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.02, "retry": {"max_attempts": 3}}), tmp_path)
    wait_for_step(run)
    supervisor = lock_holder(run.supervisor_lock)["pid"]
    end_soon(run, 50)  # a run without its folder takes no request
    # A process of the run may make a file in a folder that is just being removed.
    wait_for(lambda: shutil.rmtree(run.root, ignore_errors=True) or not run.root.exists(), "the folder's end")
    try:
        wait_for(lambda: not Path(f"/proc/{supervisor}").exists(), "the supervisor's end")
        assert not run.root.exists(), "no further attempt makes the folder again"
    finally:
        kill_supervisor(run)
    assert_no_process_left(run)
