"""Stopping, resuming, rerunning stages and going back; and refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from cockpit.headless.follow import Following, Signals
from cockpit.headless.lines import JsonLines, Nothing
from cockpit.launching.adoption import ATTACH, ATTEMPTS, FOLLOWER, adopt
from cockpit.launching.answers import was_ignored
from cockpit.launching.launch import resume
from cockpit.launching.requests import Outcome, send_request
from cockpit.runs.reader import read_now
from cockpit.runs.watch import RunWatch
from cockpit.supervision.process_tree import run_processes
from engines.emitter import EventWriter
from engines.events.attempts import AttemptStarted
from engines.events.runs import ControlApplied, RunStarted, StageSkipped
from engines.events.steps import CheckpointCommitted
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from engines.words import ExitCode, StartReason, Verb, WriterRole
from recipes.problems import OperatorError
from tests.runs.harness import (
    assert_no_process_left,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    state,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_engine,
    wait_for_step,
)

LONG = {"max_steps": 100_000, "step_s": 0.01, "save_steps": 1000}


def _attempts(run: RunDir, stage: str) -> list[AttemptStarted]:
    return [e for e in events(run) if isinstance(e, AttemptStarted) and e.stage == stage]


def test_stop_after_checkpoint_stops_with_a_checkpoint_and_resume_continues_from_it(tmp_path: Path) -> None:
    run = launch_text(fake_recipe(LONG), tmp_path)
    wait_for_step(run, 10)
    assert send_request(run, Verb.STOP_AFTER_CHECKPOINT).outcome is Outcome.SENT
    assert wait_for_end(run) == "stopped"
    stopped_at = step_of(run)
    assert any(isinstance(e, ControlApplied) and e.step == stopped_at for e in events(run))
    resume(run, sets=[f"part-1.max_steps={stopped_at + 40}"])
    assert wait_for_end(run) == "succeeded"
    origin = _attempts(run, "part-1")[1].resumed_from
    assert origin is not None
    assert origin.step == stopped_at
    series = state(run).series("part-1", "loss")
    assert list(series.x) == list(range(1, stopped_at + 41)), "every step once, none lost, none twice"
    assert_no_process_left(run)


def test_an_engine_that_ignores_a_stop_is_killed_with_everything_it_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COCKPIT_TEST_FAULTS", json.dumps({"ignore_stop": True, "orphan": True}))
    monkeypatch.setattr("cockpit.supervision.stop_ladder.TERM_GRACE_S", 1.0)
    run = launch_text(fake_recipe(LONG, stop_grace_s=1.0), tmp_path)
    wait_for_step(run, 3)
    family = run_processes(run.root, [])
    assert len(family) == 2, "the engine, and a child in a session of its own"
    send_request(run, Verb.STOP)
    assert wait_for_end(run) == "stopped"
    assert_no_process_left(run)


def test_a_second_launch_into_a_live_run_is_refused_with_the_holder_s_pid(tmp_path: Path) -> None:
    run = launch_text(fake_recipe(LONG), tmp_path)
    wait_for_step(run, 1)
    before = run.journal.stat().st_ino
    with pytest.raises(OperatorError, match=r"its supervisor is process \d+"):
        resume(run)
    assert run.journal.stat().st_ino == before
    assert len(_attempts(run, "part-1")) == 1


def test_rerunning_a_stage_reruns_its_dependents_and_keeps_the_old_output(tmp_path: Path) -> None:
    quick = {"max_steps": 5, "step_s": 0.0}
    stages = ({**quick, "name": "a"}, {**quick, "name": "b", "data": "a"}, {**quick, "name": "c"})
    run = launch_text(fake_recipe(*stages), tmp_path)
    assert wait_for_end(run) == "succeeded"
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run)
    resume(run, stage="a")
    assert wait_for_end(run) == "succeeded"
    assert [len(_attempts(run, name)) for name in "abc"] == [2, 2, 1]
    assert _attempts(run, "a")[1].resumed_from is None, "a redone stage starts afresh"
    assert (run.stage_dir("a") / "out.1").is_dir()
    assert any(isinstance(e, StageSkipped) and e.stage == "c" for e in events(run))


def test_going_back_to_a_checkpoint_replaces_later_steps_and_deletes_nothing(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 50, "step_s": 0.0, "save_steps": 10, "save_total_limit": 9}), tmp_path)
    assert wait_for_end(run) == "succeeded"
    with pytest.raises(OperatorError, match="no complete checkpoint of step 33; available: part-1: 10, 20, 30, 40, 50"):
        resume(run, checkpoint=33)
    resume(run, checkpoint=20)
    assert wait_for_end(run) == "succeeded"
    origin = _attempts(run, "part-1")[1].resumed_from
    assert origin is not None
    assert (origin.attempt, origin.step) == (1, 20)
    assert (run.checkpoints("part-1", 1) / "step-50").is_dir()
    assert list(state(run).series("part-1", "loss").x) == list(range(1, 51))


def test_a_damaged_checkpoint_is_reported_and_the_previous_one_is_used(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 40, "step_s": 0.0, "save_steps": 10, "fail_at_step": 35}), tmp_path)
    assert wait_for_end(run) == "failed"
    damaged = run.checkpoints("part-1", 1) / "step-30" / "state.bin"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    resume(run)
    assert wait_for_end(run) == "succeeded"
    origin = _attempts(run, "part-1")[1].resumed_from
    assert origin is not None
    assert origin.step == 20
    assert any(re.match(r".*skipped checkpoint .*step-30: ", line.text) for line in state(run).log())
    assert damaged.exists()


@pytest.mark.parametrize("what", ["checkpoints", "attempt", "damaged"])
def test_a_stage_without_usable_checkpoints_restarts_from_step_0_with_a_warning(tmp_path: Path, what: str) -> None:
    run = launch_text(fake_recipe({**LONG, "save_steps": 10}), tmp_path)
    wait_for(lambda: any(isinstance(e, CheckpointCommitted) for e in events(run)), "a checkpoint")
    send_request(run, Verb.STOP)
    assert wait_for_end(run) == "stopped"
    if what == "damaged":
        for manifest in run.checkpoints("part-1", 1).glob("*/manifest.json"):
            manifest.write_text("[" * 100_000)
    else:
        shutil.rmtree(run.checkpoints("part-1", 1) if what == "checkpoints" else run.attempt_dir("part-1", 1))
    resume(run)
    wait_for(lambda: len(_attempts(run, "part-1")) == 2, "another attempt")
    send_request(run, Verb.STOP)
    assert wait_for_end(run) == "stopped"
    assert _attempts(run, "part-1")[-1].resumed_from is None
    warnings = [e.message for e in events(run) if isinstance(e, Warned)]
    assert any("restarting part-1 from step 0: no usable checkpoint up to step" in message for message in warnings)


def test_a_damaged_output_is_rebuilt_at_resume(tmp_path: Path) -> None:
    quick = {"max_steps": 5, "step_s": 0.0}
    run = launch_text(fake_recipe({**quick, "name": "a"}, {**quick, "name": "b"}), tmp_path)
    assert wait_for_end(run) == "succeeded"
    (run.out("a") / "fake.json").write_text("{}")
    resume(run)
    assert wait_for_end(run) == "succeeded"
    assert [len(_attempts(run, name)) for name in "ab"] == [2, 1]


@pytest.mark.parametrize("manifest", [None, "", "[" * 100_000])
def test_a_removed_output_is_rebuilt_at_resume(tmp_path: Path, manifest: str | None) -> None:
    quick = {"max_steps": 5, "step_s": 0.0}
    run = launch_text(fake_recipe({**quick, "name": "a"}, {**quick, "name": "b"}), tmp_path)
    assert wait_for_end(run) == "succeeded"
    if manifest is None:
        shutil.rmtree(run.out("a"))
    else:
        (run.out("a") / "manifest.json").write_text(manifest)
    resume(run)
    assert wait_for_end(run) == "succeeded"
    assert [len(_attempts(run, name)) for name in "ab"] == [2, 1]
    assert any(isinstance(e, Warned) and "the output of a failed verification" in e.message for e in events(run))
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run)


def test_a_follower_gives_up_when_every_supervisor_fails_and_names_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopted: list[str] = []

    def begin_and_fail(run: RunDir, reason: StartReason) -> None:
        adopted.append(run.id)
        writer = EventWriter(run.journal, run.fifo, role=WriterRole.SUPERVISOR)
        writer.emit(RunStarted(run=run.id, recipe="fake", reason=StartReason.ADOPT, stages=["part-1"], kinds=["fake"]))
        writer.emit(Warned(message="the supervisor failed; see supervisor.log, then resume the run"))
        writer.close()

    run = launch_text(fake_recipe(LONG), tmp_path)
    wait_for_step(run, 3)
    kill_supervisor(run)
    monkeypatch.setattr("cockpit.headless.follow.FOLLOWER", replace(FOLLOWER, every_s=0.2))
    monkeypatch.setattr("cockpit.launching.adoption.start_supervisor", begin_and_fail)
    with pytest.raises(OperatorError, match="no supervisor, and none could be started") as caught:
        Following(run, JsonLines(), Signals(), raw=True).until_end()
    assert str(run.supervisor_log) in caught.value.hint
    assert len(adopted) == ATTEMPTS + 1


def test_a_run_whose_processes_were_all_killed_is_lost_for_everybody_who_looks_until_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = launch_text(fake_recipe({**LONG, "save_steps": 10}), tmp_path)
    wait_for_step(run, 25)
    pid = wait_for_engine(run)
    kill_supervisor(run)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: read_now(run).look() == "lost", "the run to be reported lost")
    assert RunWatch(run.root.parent).poll()[0].state == "lost"
    journal = run.journal.read_bytes()
    assert not adopt(run, ATTACH)
    monkeypatch.setattr("cockpit.headless.follow.FOLLOWER", replace(FOLLOWER, every_s=0.0))
    assert Following(run, Nothing(), Signals()).until_end() == ExitCode.FAILED
    assert f"{run.id} is lost" in capfd.readouterr().err
    assert send_request(run, Verb.STOP).outcome is Outcome.ENDED
    assert run.journal.read_bytes() == journal
    assert read_now(run).look() == "lost"
    resume(run, sets=[f"part-1.max_steps={step_of(run) + 20}"])
    assert wait_for_end(run) == "succeeded"
    origin = _attempts(run, "part-1")[1].resumed_from
    assert origin is not None
    assert origin.step >= 20


def test_requests_are_answered_each_once(tmp_path: Path) -> None:
    run = launch_text(fake_recipe(LONG), tmp_path)
    wait_for_step(run, 2)
    for verb, value in (
        (Verb.CHECKPOINT, None),
        (Verb.LEARNING_RATE, 1e-5),
        (Verb.PAUSE, None),
        (Verb.CONTINUE, None),
        (Verb.MAX_STEPS, 300),
    ):
        send_request(run, verb, value)
    wait_for(lambda: sum(isinstance(e, ControlApplied) for e in events(run)) >= 5, "five answers")
    asked = [e.request.split()[0] for e in events(run) if isinstance(e, ControlApplied)]
    assert sorted(asked) == ["checkpoint", "continue", "learning-rate", "max-steps", "pause"]
    assert wait_for_end(run) == "succeeded"
    assert step_of(run) == 300
    assert send_request(run, Verb.CHECKPOINT).outcome is Outcome.ENDED


def _answered(run: RunDir, number: int) -> bool:
    return any(isinstance(e, ControlApplied) and e.number == number for e in events(run))


def test_a_continue_without_a_pause_and_a_second_pause_say_what_is_so(tmp_path: Path) -> None:
    run = launch_text(fake_recipe(LONG), tmp_path)
    wait_for_step(run, 2)
    requests = (
        (Verb.CONTINUE, None, "ignored: not paused"),
        (Verb.PAUSE, None, "paused"),
        (Verb.PAUSE, None, "ignored: already paused"),
        (Verb.LEARNING_RATE, 1e-5, "peak learning rate is now 1e-5"),
        (Verb.EVALUATE, None, "evaluated"),
        (Verb.CONTINUE, None, "continued"),
    )
    for verb, value, effect in requests:
        number = send_request(run, verb, value).number
        wait_for(
            partial(_answered, run, number),
            f"the answer to {verb}",
        )
        assert [e.effect for e in events(run) if isinstance(e, ControlApplied)][-1] == effect
    send_request(run, Verb.STOP)
    assert wait_for_end(run) == "stopped"


def test_a_request_that_the_engine_did_not_live_to_take_is_answered_as_ignored(tmp_path: Path) -> None:
    run = launch_text(fake_recipe(LONG), tmp_path)
    wait_for_step(run, 2)
    pid = wait_for_engine(run)
    os.kill(pid, signal.SIGSTOP)
    number = send_request(run, Verb.LEARNING_RATE, 1e-5).number
    os.kill(pid, signal.SIGKILL)
    wait_for(partial(_answered, run, number), "the supervisor's answer")
    [answer] = [e for e in events(run) if isinstance(e, ControlApplied) and e.number == number]
    assert answer.effect == "ignored: no engine was running"
    assert was_ignored(answer)
    assert wait_for_end(run) == "failed"


def test_a_failed_gate_refuses_the_run_and_keeps_the_output_for_inspection(tmp_path: Path) -> None:
    text = fake_recipe({"max_steps": 5, "step_s": 0.0}) + '[[stage.gate]]\nmetric = "loss"\nop = "<"\nvalue = 0.1\n'
    run = launch_text(text, tmp_path)
    assert wait_for_end(run) == "refused"
    assert not run.out("part-1").exists()
    assert (run.attempt_dir("part-1", 1) / "refused" / "fake.json").exists()
    reason = read_now(run).state.reason
    assert "loss < 0.1" in reason
