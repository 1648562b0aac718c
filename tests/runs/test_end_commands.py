"""The commands of a recipe for the end of its run: once, bounded, with the result as JSON, and never a stranger's."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.launch import resolve
from cockpit.launching.start import start_supervisor
from cockpit.launching.trusting import what_would_start
from cockpit.runs.log_lines import line_of
from cockpit.supervision.end_command import EndCommand
from cockpit.supervision.process_tree import run_processes, signal_process
from engines.events.runs import CommandEnded, RunStarted
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason
from recipes.load import load_recipe_text
from tests.patience import PATIENCE_S
from tests.runs.harness import (
    assert_no_process_left,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    wait_for,
    wait_for_end,
    wait_for_step,
)

KEEPS = "import sys; open('{name}', 'a').write(sys.stdin.read()); print('kept')"


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def _ends(run: RunDir) -> list[CommandEnded]:
    return [event for event in events(run) if isinstance(event, CommandEnded)]


def _recipe(**top: Any) -> str:
    return fake_recipe({"max_steps": 3, "step_s": 0.01, "save_steps": 3}, **top)


def test_a_success_starts_its_command_once_with_the_result_and_its_output_is_recorded(tmp_path: Path) -> None:
    commands = {name: _python(KEEPS.format(name=name)) for name in ("on_success", "on_failure")}
    stage = {"max_steps": 3, "step_s": 0.01, "save_steps": 3, "fail_at_step": 2, "retry": {"max_attempts": 2}}
    run = launch_text(fake_recipe(stage, **commands), tmp_path)
    assert wait_for_end(run) == "succeeded"
    result = json.loads((tmp_path / "on_success").read_text())
    assert (result["state"], result["run"], result["stages"][0]["step"]) == ("succeeded", run.id, 3)
    assert Path(result["stages"][0]["checkpoint"]["path"]).is_dir()
    assert Path(result["stages"][0]["output"], "manifest.json").is_file()
    assert result["stages"][0]["metrics"]["loss"] > 0
    assert [attempt["reason"] for attempt in result["stages"][0]["attempts"]] == ["error", "succeeded"]
    assert not (tmp_path / "on_failure").exists()
    [end] = _ends(run)
    assert (end.command, end.exit, end.output) == ("on_success", 0, "kept")
    assert line_of(end).text.startswith("on_success: exited with status 0")
    assert_no_process_left(run)


def test_a_failure_and_a_refusal_start_the_other_command_with_the_cause(tmp_path: Path) -> None:
    text = fake_recipe(
        {"max_steps": 9, "step_s": 0.001, "fail_at_step": 4},
        on_failure=_python(KEEPS.format(name="told") + "; sys.exit(7)"),
    )
    run = launch_text(text, tmp_path)
    assert wait_for_end(run) == "failed"
    result = json.loads((tmp_path / "told").read_text())
    assert (result["state"], result["failed_stage"], result["stages"][0]["attempts"][0]["reason"]) == (
        "failed",
        "part-1",
        "error",
    )
    assert result["cause"].startswith("part-1: ")
    [end] = _ends(run)
    assert end.exit == 7


def test_a_command_that_does_not_end_is_ended_with_what_it_started(tmp_path: Path) -> None:
    code = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
    run = launch_text(_recipe(on_success=_python(code), command_timeout_s=1.0), tmp_path)
    assert wait_for_end(run) == "succeeded", "the command does not change the state of the run"
    [end] = _ends(run)
    assert "after its 1 seconds" in end.detail
    assert_no_process_left(run)


def test_a_command_runs_once_although_its_supervisor_is_killed_while_it_runs(tmp_path: Path) -> None:
    code = "import time; open('ran', 'a').write('x'); time.sleep(600)"
    run = launch_text(_recipe(on_success=_python(code), command_timeout_s=PATIENCE_S), tmp_path)
    wait_for(lambda: (tmp_path / "ran").exists() and (tmp_path / "ran").read_text(), "the start of the command")
    [command] = run_processes(run.root, [])
    kill_supervisor(run)
    start_supervisor(run, StartReason.ADOPT)
    wait_for(lambda: sum(isinstance(event, RunStarted) for event in events(run)) == 2, "the adoption")
    assert _ends(run) == [], "the second supervisor waits for the command of the first"
    signal_process(command, signal.SIGKILL)
    assert wait_for_end(run) == "succeeded"
    assert (tmp_path / "ran").read_text() == "x"
    [end] = _ends(run)
    assert (end.exit, "not started again" in end.detail) == (None, True)
    assert_no_process_left(run)


@pytest.mark.thorough
def test_a_supervisor_that_died_before_the_start_leaves_it_to_the_next_one(tmp_path: Path) -> None:
    text = fake_recipe({"max_steps": 400, "step_s": 0.01}, on_success=_python(KEEPS.format(name="kept")))
    run = launch_text(text, tmp_path)
    wait_for_step(run)
    kill_supervisor(run)
    start_supervisor(run, StartReason.ADOPT)
    assert wait_for_end(run) == "succeeded"
    assert json.loads((tmp_path / "kept").read_text())["state"] == "succeeded"


def test_a_claimed_command_is_never_started_and_a_stop_starts_none(tmp_path: Path) -> None:
    recipe = load_recipe_text(_recipe(on_success=_python("open('ran', 'w')")), tmp_path / "recipe.toml").recipe
    run = RunDir(tmp_path / "run")
    assert EndCommand.of(run, recipe, RunStatus.STOPPED, 1) is None
    command = EndCommand.of(run, recipe, RunStatus.SUCCEEDED, 1)
    assert command is not None
    run.end_command(1, "json").parent.mkdir(parents=True)
    run.end_command(1, "json").touch()
    end = command.carry_out(b"{}", lambda: None, lambda: False)
    assert (end.exit, list(tmp_path.rglob("ran"))) == (None, [])


def test_commands_are_listed_before_a_stranger_s_run_is_trusted(tmp_path: Path) -> None:
    loaded = load_recipe_text(_recipe(on_failure=["notify", "me"]), tmp_path / "recipe.toml")
    (tmp_path / "recipe.json").write_text(json.dumps(resolve(loaded).to_json()))
    assert "on_failure: notify me" in what_would_start(RunDir(tmp_path))


@pytest.mark.thorough
def test_a_program_that_does_not_exist_is_recorded_and_the_run_ends(tmp_path: Path) -> None:
    run = launch_text(_recipe(on_success=["no-such-program-anywhere"]), tmp_path)
    assert wait_for_end(run) == "succeeded"
    [end] = _ends(run)
    assert "could not be started: no-such-program-anywhere is not a program" in end.detail
