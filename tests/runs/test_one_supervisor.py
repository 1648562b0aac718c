"""Many simultaneous starts: exactly one supervisor holds a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cockpit.launching.launch import launch
from cockpit.launching.requests import send_request
from engines.events.attempts import AttemptStarted
from engines.events.runs import RunStarted
from engines.events.writers import WriterOpened
from engines.run_dir.locks import lock_holder, lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import Verb
from recipes.load import load_recipe_text
from tests.patience import PATIENCE_S
from tests.runs.harness import (
    ROOT,
    assert_contiguous,
    assert_no_process_left,
    events,
    fake_recipe,
    wait_for_end,
)

STARTERS = 12


@pytest.mark.parametrize("part", range(2))
def test_of_a_dozen_starters_one_supervises_and_the_others_exit_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    text = fake_recipe({"max_steps": 100_000, "step_s": 0.02})
    with monkeypatch.context() as patch:
        patch.setattr("cockpit.launching.launch.start_supervisor", lambda *_: None)
        run: RunDir = launch(load_recipe_text(text, tmp_path / "recipe.toml"), runs_root=tmp_path / "runs")
    starters = [
        subprocess.Popen(
            [sys.executable, "-m", "cockpit.supervision.supervisor", str(run.root), "--reason", "launch"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT,
        )
        for _ in range(STARTERS)
    ]  # fmt: skip
    statuses = sorted(starter.wait(PATIENCE_S) for starter in starters)
    assert statuses == [0] + [2] * (STARTERS - 1)
    assert lock_is_held(run.supervisor_lock)
    send_request(run, Verb.STOP)
    assert wait_for_end(run) == "stopped"
    found = events(run)
    assert sum(isinstance(event, RunStarted) for event in found) == 1
    assert sum(isinstance(event, AttemptStarted) for event in found) == 1
    (supervisor,) = [e for e in found if isinstance(e, WriterOpened) and e.role == "supervisor"]
    assert lock_holder(run.supervisor_lock)["pid"] == supervisor.pid
    assert_contiguous(run)
    assert_no_process_left(run)
