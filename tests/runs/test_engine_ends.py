"""How an engine can end without saying so: by a signal, in silence, without a supervisor, or with a false claim."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
from pathlib import Path

import pytest

from cockpit.launching.adoption import ATTACH, adopt
from cockpit.launching.launch import resume
from cockpit.runs.ending import TAIL_BYTES, console_tail
from cockpit.runs.reader import read_now
from cockpit.supervision.engine_process import exit_reason
from cockpit.supervision.process_tree import run_processes
from cockpit.supervision.stop_ladder import Rung
from engines.control import put_request
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.runs import StageSucceeded
from engines.events.steps import GuardTripped, Step
from engines.run_dir.locks import lock_holder, lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import EndReason, Verb
from tests.runs.harness import (
    ROOT,
    assert_contiguous,
    assert_no_process_left,
    end_soon,
    engine_pid,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_engine,
    wait_for_step,
)

LONG = {"max_steps": 100_000, "step_s": 0.01, "save_steps": 10}


def _attempts(run: RunDir) -> list[AttemptStarted]:
    return [event for event in events(run) if isinstance(event, AttemptStarted)]


def _supervisors_ends(run: RunDir) -> list[AttemptEnded]:
    return [event for event in events(run) if isinstance(event, AttemptEnded) and event.w.startswith("s")]


def _signal_engine(run: RunDir, number: int) -> None:
    wait_for_step(run, 3)
    os.kill(wait_for_engine(run), number)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_is_named_by_its_signal_and_the_console_has_the_stack(tmp_path: Path, number: signal.Signals) -> None:
    run = launch_text(fake_recipe(LONG), tmp_path)
    _signal_engine(run, number)
    assert wait_for_end(run) == "failed"
    (end,) = _supervisors_ends(run)
    assert (end.reason, end.exit) == ("killed", -number)
    assert end.detail == f"killed by {number.name}"
    assert f"killed by {number.name}" in read_now(run).state.reason
    console = run.console_log("part-1", 1).read_text()
    assert "Fatal Python error" in console
    # The signal hits the loop wherever it is: in a step, between two, or in a write of an event.
    assert re.search(r'File "[^"]*/engines/fake[^"]*", line \d+', console), "the stack of the thread that crashed"


def test_a_sigkill_is_never_called_out_of_memory(tmp_path: Path) -> None:
    run = launch_text(fake_recipe(LONG), tmp_path)
    _signal_engine(run, signal.SIGKILL)
    assert wait_for_end(run) == "failed"
    (end,) = _supervisors_ends(run)
    assert end.reason is EndReason.KILLED, "and not out_of_memory"
    assert "killed by SIGKILL, sender unknown" in end.detail


@pytest.mark.parametrize(
    ("status", "sent"), [(-9, "kill"), (-15, "term"), (-15, "kill"), (None, "kill"), (None, "term")]
)
def test_a_signal_that_the_supervisor_sent_has_no_unknown_sender(status: int | None, sent: Rung) -> None:
    _, detail = exit_reason(status, sent)
    assert "supervisor" in detail
    assert "sent" in detail
    assert "unknown (out of memory" not in detail
    assert "did not start it" not in detail


def test_a_sigkill_after_only_a_term_was_sent_has_an_unknown_sender() -> None:
    assert "sender unknown" in exit_reason(-9, "term")[1]


def test_what_a_killed_engine_had_started_ends_before_the_next_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCKPIT_TEST_FAULTS", json.dumps({"orphan": True}))
    run = launch_text(fake_recipe({**LONG, "retry": {"max_attempts": 2}}), tmp_path)
    wait_for_step(run, 3)
    first = {one.pid for one in run_processes(run.root, [])}
    assert len(first) == 2, "the engine, and a child in a session of its own"
    _signal_engine(run, signal.SIGKILL)
    wait_for(lambda: len(_attempts(run)) == 2, "a second attempt")
    assert not first & {one.pid for one in run_processes(run.root, [])}


def test_what_an_engine_had_started_ends_when_its_run_is_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervisor and engine are dead; a process of theirs would hold memory, and the attempt's lock."""
    monkeypatch.setenv("COCKPIT_TEST_FAULTS", json.dumps({"orphan": True}))
    run = launch_text(fake_recipe(LONG), tmp_path)
    wait_for_step(run, 3)
    engine = wait_for_engine(run)
    (child,) = [one for one in run_processes(run.root, []) if one.pid != engine]
    kill_supervisor(run)
    _signal_engine(run, signal.SIGKILL)
    wait_for(lambda: read_now(run).look() == "lost", "the run to be lost")
    assert child.is_alive(), "no process is there that would end it"
    monkeypatch.delenv("COCKPIT_TEST_FAULTS")
    resume(run)
    wait_for(lambda: len(_attempts(run)) == 2, "a second attempt")
    assert not child.is_alive()


def _interpreter(folder: Path, engine: str) -> Path:
    """An interpreter that answers what a launch asks, and runs this Python text instead of an engine."""
    (folder / "engine.py").write_text(engine)
    path = folder / "python"
    path.write_text(
        f'#!/bin/sh\ncase "$*" in *engines.run*) exec "{sys.executable}" "{folder}/engine.py" "$3";; esac\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_an_engine_that_exits_with_status_0_in_silence_has_not_succeeded(tmp_path: Path) -> None:
    python = _interpreter(tmp_path, "raise SystemExit(0)")
    run = launch_text(fake_recipe({"max_steps": 3, "python": str(python)}, {"max_steps": 3}), tmp_path)
    assert wait_for_end(run) == "failed"
    (end,) = _supervisors_ends(run)
    assert (end.reason, end.exit) == ("died", 0)
    assert "exited with status 0 without an error message" in end.detail
    assert not run.attempts("part-2"), "the next stage does not start"


LIAR = """
import os, sys
from pathlib import Path
from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.runs import RunEnded, StageSucceeded
from engines.stage_file import read_stage_file
given = read_stage_file(Path(sys.argv[1]))
run = Path(given.run_root)
writer = EventWriter(run / "journal.jsonl", None, role="engine", stage="part-1", attempt=given.attempt)
writer.emit(AttemptStarted(stage="part-1", kind="fake", attempt=given.attempt, pid=os.getpid()))
writer.emit(StageSucceeded(stage="part-1", attempt=given.attempt, fingerprint=given.fingerprint,
                           manifest_sha256="a" * 64, metrics={"loss": 0.0}))
writer.emit(AttemptEnded(stage="part-1", attempt=given.attempt, reason="succeeded"))
writer.emit(RunEnded(state="succeeded"))
writer.close()
"""


def test_a_claim_of_success_without_its_output_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    python = _interpreter(tmp_path, LIAR)
    run = launch_text(fake_recipe({"max_steps": 3, "python": str(python)}, {"max_steps": 3}), tmp_path)
    wait_for(lambda: not lock_is_held(run.supervisor_lock), "the supervisor's end")
    assert any(isinstance(event, StageSucceeded) for event in events(run)), "the claim is in the journal"
    assert not run.out("part-1").exists()
    assert not run.attempts("part-2"), "no stage starts with an input that does not exist"
    assert wait_for_end(run) == "failed"


FLOOD = """
import runpy, sys
for _ in range(32):
    sys.stdout.write("x" * (1 << 20))
print("\\nthe last line", flush=True)
runpy.run_module("engines.run", run_name="__main__")
"""


def test_a_flood_of_output_without_line_ends_costs_nobody_memory_and_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    python = _interpreter(tmp_path, FLOOD)
    run = launch_text(fake_recipe({**LONG, "python": str(python)}), tmp_path)
    wait_for_step(run, 3)
    supervisor = lock_holder(run.supervisor_lock)["pid"]
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{supervisor}/status").read_text())
    assert peak is not None
    end_soon(run)
    assert wait_for_end(run) == "succeeded"
    assert run.console_log("part-1", 1).stat().st_size > 32 << 20
    assert int(peak[1]) * 1024 < 150 << 20, "the output is not the supervisor's"
    tail = console_tail(run, "part-1", 1)
    assert "the last line" in tail
    assert sum(map(len, tail)) <= TAIL_BYTES


def test_an_engine_that_ends_while_no_supervisor_lives_ends_its_run_as_it_said_itself(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({**LONG, "save_steps": 20}), tmp_path)
    wait_for_step(run, 3)
    kill_supervisor(run)
    last = end_soon(run)
    wait_for(lambda: any(isinstance(event, StageSucceeded) for event in events(run)), "the engine's success")
    wait_for(lambda: not run_processes(run.root, []), "the engine's end")
    assert read_now(run).look() == "lost", "no process of the run is left, and nothing said that it has ended"
    assert not adopt(run, ATTACH), "looking changes nothing"
    resume(run)
    assert wait_for_end(run) == "succeeded"
    assert step_of(run) == last
    assert len(_attempts(run)) == 1, "nothing was trained twice"
    assert_contiguous(run)
    assert_no_process_left(run)


@pytest.mark.thorough
@pytest.mark.parametrize("verb", [Verb.STOP, Verb.STOP_AFTER_CHECKPOINT])
def test_a_stop_before_the_retry_after_a_guard_has_begun_stops_the_run_and_a_resume_keeps_the_lower_rate(
    tmp_path: Path, verb: Verb
) -> None:
    stage = {"max_steps": 6, "save_steps": 2, "step_s": 2.0, "nan_at_step": 5, "retry": {"max_attempts": 3}}
    run = launch_text(fake_recipe(stage), tmp_path)
    wait_for(lambda: engine_pid(run, "part-1", 1), "the engine")
    supervisor = int(lock_holder(run.supervisor_lock)["pid"])
    os.kill(supervisor, signal.SIGSTOP)  # the engine ends, and nobody plans the next attempt
    try:
        wait_for(lambda: any(isinstance(e, AttemptEnded) for e in events(run)), "the engine's own end")
        put_request(run.control, verb)
    finally:
        os.kill(supervisor, signal.SIGCONT)
    assert wait_for_end(run) == "stopped"
    trips = [(e.attempt, e.guard, e.step) for e in events(run) if isinstance(e, GuardTripped)]
    assert trips == [(1, "nonfinite_loss", 5)]
    assert not any(isinstance(e, Step) and e.attempt > 1 for e in events(run)), "the next attempt trained nothing"
    resume(run)
    assert wait_for_end(run) == "succeeded"
    last = [e for e in events(run) if isinstance(e, AttemptStarted)][-1]
    assert (last.resumed_from.step if last.resumed_from else 0, last.learning_rate_scale) == (4, 0.5)
    assert_no_process_left(run)
