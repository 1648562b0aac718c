"""Live control and liveness of real runs: requests with their answers, and stopped processes named at every place."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.launching.requests import sender
from cockpit.replay.playback import Timeline
from cockpit.runs.watch import RunWatch
from cockpit.tui.screens.sources import LiveSource
from engines.control import history, pending
from engines.events.runs import ControlApplied
from engines.events.steps import Step
from engines.events.writers import WriterOpened
from engines.identity import process_state
from engines.run_dir.locks import lock_holder
from engines.run_dir.paths import RunDir
from engines.words import Verb, WriterRole
from tests.runs.harness import (
    events,
    fake_recipe,
    launch_text,
    nothing_left,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_engine,
    wait_for_step,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunDir]:
    """A run that trains until the tests stop it."""
    folder = tmp_path_factory.mktemp("control")
    with nothing_left(folder / "runs"):
        made = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.02, "save_steps": 1000}), folder)
        wait_for_step(made, 20)
        yield made


def cockpit(capsys: pytest.CaptureFixture[str], run: RunDir, *words: str) -> tuple[int, str, str]:
    """A command about the run: its exit code, stdout and stderr."""
    code = main([words[0], str(run.root), *words[1:]])
    out, err = capsys.readouterr()
    return int(code), out, err


def places(capsys: pytest.CaptureFixture[str], run: RunDir) -> dict[str, str]:
    """What the four places say about the run's health: ls, Home's list, the run's screen, and show --json."""
    main(["ls", "--runs-dir", str(run.root.parent)])
    listed = next(line for line in capsys.readouterr().out.splitlines() if run.id in line)
    [home] = RunWatch(run.root.parent).poll()
    source = LiveSource(run.root)
    try:
        while source.poll() and source.catching_up:
            pass
        screen = source.health.line
    finally:
        source.close()
    main(["show", "--json", str(run.root)])
    shown = json.loads(capsys.readouterr().out)["health"]
    return {
        "ls": listed,
        "Home": home.health_line,
        "Run": screen,
        "show --json": "; ".join([f"{shown['word']}: {shown['sentence']}", *shown["concerns"]]),
    }


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that is stopped with SIGSTOP, until the end of the block."""
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: process_state(pid) == "T", "the process to stop")
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def pid_of(run: RunDir, role: WriterRole) -> int:
    return next(e.pid for e in reversed(events(run)) if isinstance(e, WriterOpened) and e.role == role)


def test_a_learning_rate_is_answered_journaled_with_its_sender_and_replayed(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = cockpit(capsys, run, "ctl", "learning-rate", "1e-4")
    assert (code, "the peak learning rate becomes 1e-4 at the next step" in err) == (0, True)
    answer = next(e for e in events(run) if isinstance(e, ControlApplied) and e.request == "learning-rate 1e-4")
    assert out.startswith(f"learning-rate 1e-4 at step {answer.step}: peak learning rate is now 1e-4")
    assert answer.by == sender()
    moments = Timeline.of(events(run)).moments
    assert any(moment.step == answer.step and "learning-rate 1e-4" in moment.text for moment in moments)
    assert answer.step is not None
    wait_for_step(run, answer.step + 1)
    rates = {e.step: e.learning_rate or 0.0 for e in events(run) if isinstance(e, Step)}
    assert rates[answer.step + 1] < 0.5 * rates[answer.step]


def test_pause_and_continue(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert cockpit(capsys, run, "ctl", "pause")[0] == 0
    # The answer comes a moment before the phase.
    wait_for(lambda: all("paused" in words for words in places(capsys, run).values()), "every place to say so")
    at = step_of(run)
    code, out, _ = cockpit(capsys, run, "ctl", "evaluate", "--json")
    value: dict[str, Any] = json.loads(out)
    assert (code, value["taken"], value["ignored"]) == (
        0,
        True,
        False,
    )  # a paused training evaluates, and makes no step
    assert step_of(run) == at
    assert cockpit(capsys, run, "ctl", "continue")[0] == 0
    wait_for_step(run, at + 1)


def test_a_value_is_sent_for_the_stage_that_is_running(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = cockpit(capsys, run, "ctl", "learning-rate", "2e-4")
    assert code == 0
    assert "learning-rate requested for part-1" in out + err
    assert [request.stage for request in history(run.control) if request.verb is Verb.LEARNING_RATE][-1] == "part-1"


def test_what_the_stage_does_not_support_is_refused_before_it_is_sent(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = cockpit(capsys, run, "ctl", "sample", "a prompt")
    assert code == 2
    assert "part-1 is running, and a fake stage does not support sample" in err
    assert "works in stages of these kinds: dpo, finetune, pretrain" in err
    assert pending(run.control) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("stop",), "allowed: checkpoint, evaluate, sample, pause, continue, learning-rate, max-steps"),
        (("learning-rate", "7"), "learning-rate — got '7'; allowed the new peak, a number > 0 and ≤ 1"),
        (("learning-rate",), "got no value"),
        (("max-steps", "1.5"), "a whole number ≥ 1"),
        (("pause", "now"), "pause — takes no value; got 'now'"),
    ],
)
def test_a_wrong_request_is_an_error_with_what_is_allowed(
    run: RunDir, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], said: str
) -> None:
    try:
        code, _, err = cockpit(capsys, run, "ctl", *words)
    except SystemExit as end:
        code, err = int(str(end.code)), capsys.readouterr().err
    assert code == 2
    assert said in err
    assert pending(run.control) == []


def test_a_stopped_engine_is_named_at_every_place_and_a_request_says_that_it_was_not_taken(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with stopped(wait_for_engine(run)):
        for place, words in places(capsys, run).items():
            assert "suspended: the process is stopped (SIGSTOP)" in words, place
        code, out, _ = cockpit(capsys, run, "ctl", "checkpoint", "--wait", "0.5")
        assert code == 1
        assert out.startswith("checkpoint not taken after 0.50s: suspended: the process is stopped (SIGSTOP)")
        assert out.endswith("the request stays in effect\n")
    wait_for(
        lambda: any(isinstance(e, ControlApplied) and e.request == "checkpoint" for e in events(run)),
        "the request to be taken after all",
    )
    wait_for(lambda: all("suspended" not in words for words in places(capsys, run).values()), "health to recover")


def test_a_stopped_supervisor_and_a_stopped_sampler_are_named_at_every_place_and_training_continues(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    supervisor, sampler = lock_holder(run.supervisor_lock)["pid"], pid_of(run, WriterRole.SAMPLER)
    for pid, said in ((supervisor, "the supervisor is stopped (SIGSTOP)"), (sampler, "the sampler is stopped")):
        with stopped(pid):
            at = step_of(run)
            for place, words in places(capsys, run).items():
                assert "running" in words, place
                assert said in words, place
            wait_for_step(run, at + 5)
            assert cockpit(capsys, run, "ctl", "checkpoint")[0] == 0


def test_stop_says_that_a_stopped_engine_has_not_taken_it_and_waits_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("cockpit.launching.requests.ANSWER_S", 0.2)
    monkeypatch.setattr("cockpit.launching.requests.ANSWER_STEPS", 0.0)
    monkeypatch.setattr("cockpit.commands.stop.say", said.append)
    with nothing_left(tmp_path / "runs"):
        run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.02, "save_steps": 1000}), tmp_path)
        wait_for_step(run, 2)
        pid = wait_for_engine(run)
        os.kill(pid, signal.SIGSTOP)

        def continue_when_it_was_said() -> None:
            wait_for(lambda: any("not taken after 0.20s: suspended" in words for words in said), "the sentence")
            os.kill(pid, signal.SIGCONT)

        helper = threading.Thread(target=continue_when_it_was_said)
        helper.start()
        assert main(["stop", str(run.root)]) == 0
        helper.join()
        assert sum("not taken" in words for words in said) == 1


def test_an_engine_that_waits_for_data_says_so_at_every_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with nothing_left(tmp_path / "runs"):
        text = fake_recipe({"max_steps": 50, "step_s": 0.0, "wait_at_step": 10, "wait_s": 600.0})
        run = launch_text(text, tmp_path)
        wait_for_step(run, 9)
        wait_for(lambda: "waiting for data" in places(capsys, run)["show --json"], "the engine to declare its wait")
        for place, words in places(capsys, run).items():
            assert "waiting for data: no data for" in words, place


def test_a_new_last_step_ends_the_stage_there_and_an_ended_run_takes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with nothing_left(tmp_path / "runs"):
        run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.02, "save_steps": 1000}), tmp_path)
        wait_for_step(run, 2)
        assert cockpit(capsys, run, "ctl", "max-steps", "30")[0] == 0
        assert wait_for_end(run) == "succeeded"
        code, _, err = cockpit(capsys, run, "ctl", "pause")
        assert code == 2
        assert "the run has already ended (succeeded)" in err
