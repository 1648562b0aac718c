"""The supervisor's watch over an engine: a stall is journaled with the engine's stacks, and so is its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.provenance.mark import RUN_ENV
from cockpit.supervision.engine_process import EngineProcess
from cockpit.supervision.engine_watch import STACKS_SIGNAL, EngineWatch, catches, cpu_s
from cockpit.supervision.newest import MOST_BYTES, NewestRecords
from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded, EngineRecovered, EngineStalled, Phase, RanksPlaced
from engines.events.records import encode_record
from engines.events.steps import Step
from engines.events.writers import Warned
from engines.identity import Identity
from engines.journal import read_journal
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from engines.words import EndReason, WriterRole
from recipes.stages.launch.fields import Launch
from tests.runs.harness import wait_for

HUNG = """
import faulthandler, signal, sys, threading, time
faulthandler.register(signal.SIGUSR1, all_threads=True)
def a_lock_that_is_never_released():
    threading.Event().wait()
print("ready", flush=True)
a_lock_that_is_never_released()
"""
DEAF = "import time; print('ready', flush=True); time.sleep(3600)"


class Watched:
    """A child process as the engine of a run, whose records the test writes."""

    def __init__(self, run: RunDir, program: str, *, marked: bool = True) -> None:
        self.run = run
        run.attempt_dir("base", 1).mkdir(parents=True)
        environment = {**os.environ, RUN_ENV: str(run.root)} if marked else {**os.environ}
        if not marked:
            environment.pop(RUN_ENV, None)
        with run.console_log("base", 1).open("ab") as console:
            self.child = subprocess.Popen(
                [sys.executable, "-c", program], stdout=console, stderr=console, env=environment
            )
        wait_for(lambda: "ready" in self.console, "the child to begin")
        identity = Identity.of(self.child.pid)
        assert identity is not None
        self.engine = EngineProcess("base", 1, identity, self.child, os.pidfd_open(self.child.pid))
        self.records = EventWriter(run.journal, None, role=WriterRole.ENGINE, stage="base", attempt=1)
        self.supervisor = EventWriter(run.journal, None, role=WriterRole.SUPERVISOR)
        self.watch = EngineWatch(run, self.engine, self.supervisor)
        if program in {HUNG, DEAF}:
            wait_for(lambda: identity.state() == "S", "the child to do nothing")

    def newest_s(self) -> float:
        """The moment of the newest record: later than this the test may be by any time."""
        return max(event.m for event in read_journal(self.run.journal))

    @property
    def console(self) -> str:
        return self.run.console_log("base", 1).read_text()

    def step(self, step: int, step_s: float = 0.2) -> None:
        self.records.emit(
            Step(
                stage="base", attempt=1, step=step, epoch=0.0, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens=1,
                loss_tokens=1, step_s=step_s,
            )
        )  # fmt: skip

    def found(self) -> list[EngineStalled | EngineRecovered]:
        return [e for e in read_journal(self.run.journal) if isinstance(e, EngineStalled | EngineRecovered)]

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        self.engine.close()
        self.records.close()
        self.supervisor.close()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create_run_dir(tmp_path, name="a", recipe="a", recipe_toml="", recipe_json={}, plan_json={}, version="0")


@pytest.fixture
def watched(run: RunDir) -> Iterator[Watched]:
    made = Watched(run, HUNG)
    yield made
    made.close()


def test_an_engine_overstays_once_it_has_recorded_its_end_and_does_not_exit(watched: Watched) -> None:
    watched.step(1)
    now_s = time.monotonic()
    watched.watch.look(now_s)
    assert not watched.watch.overstays(now_s + 1000), "it has not ended"
    watched.records.emit(AttemptEnded(stage="base", attempt=1, reason=EndReason.SUCCEEDED))
    watched.watch.look(now_s + 2)
    assert [watched.watch.overstays(now_s + seconds) for seconds in (30, 70)] == [False, True]


def test_a_stalled_engine_is_journaled_once_with_its_stacks_in_console_log(watched: Watched) -> None:
    for step in range(1, 20):
        watched.step(step)
    now_s = watched.newest_s()
    watched.watch.look(now_s + 59)
    assert watched.found() == []
    for _ in range(3):
        watched.supervisor.emit(Warned(message="a record of another process"))
        now_s += 70
        watched.watch.look(now_s)
    [stalled] = watched.found()
    assert isinstance(stalled, EngineStalled)
    assert (stalled.last_progress, stalled.usual_step_s, stalled.stacks) == ("step 19", 0.2, True)
    assert 60 < stalled.silence_s < 75
    assert stalled.cpu_s == 0.0, "a hung process uses no CPU"
    wait_for(lambda: "a_lock_that_is_never_released" in watched.console, "the stacks in console.log")
    assert "after step 19; the stacks of all threads:" in watched.console
    assert watched.child.poll() is None


def test_progress_after_a_stall_is_journaled_and_a_second_stall_too(watched: Watched) -> None:
    watched.step(1)
    watched.watch.look(time.monotonic() + 100)
    watched.step(2)
    watched.watch.look(time.monotonic() + 102)
    assert [type(event) for event in watched.found()] == [EngineStalled, EngineRecovered, EngineStalled]


def test_steps_that_take_much_longer_than_before_are_said_once(watched: Watched) -> None:
    def said() -> list[str]:
        return [e.message for e in read_journal(watched.run.journal) if isinstance(e, Warned)]

    now_s = time.monotonic()
    for step in range(1, 41):
        watched.step(step, step_s=2.0 if step <= 30 else 7.0)
        watched.watch.look(now_s + step)
        assert bool(said()) == (step >= 35), "half of the newest eight steps are slow"
    assert len(said()) == 1
    assert said()[0].startswith("a step takes 7s, and took 2s before: ")
    assert watched.watch.longest_step_s == 7.0


def test_a_slow_model_is_not_stalled_after_a_minute(watched: Watched) -> None:
    for step in range(1, 9):
        watched.step(step, step_s=30.0)
    watched.watch.look(watched.newest_s() + 590)
    assert watched.found() == []
    watched.watch.look(watched.newest_s() + 610)
    assert len(watched.found()) == 1


@pytest.mark.parametrize("name", ["waiting for data", "paused", "saving", "importing"])
def test_a_declared_silence_of_minutes_is_no_stall(watched: Watched, name: str) -> None:
    watched.step(1)
    watched.records.emit(Phase(stage="base", attempt=1, name=name))
    watched.watch.look(time.monotonic() + 1200)
    assert watched.found() == []


def test_records_that_only_the_live_stream_has_are_progress_too(watched: Watched) -> None:
    watched.step(1)
    watched.watch.look(time.monotonic())
    later = [
        encode_record(Warned(message="cut"), writer="s", seq=1, t=1.0, m=time.monotonic()),
        encode_record(
            Step(
                stage="base", attempt=1, step=2, epoch=0.0, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens=1,
                loss_tokens=1, step_s=0.2,
            ),
            writer="e", seq=9, t=1.0, m=time.monotonic() + 90,
        ),
    ]  # fmt: skip
    watched.watch.hear(b"".join(later))
    watched.watch.look(time.monotonic() + 100)
    assert watched.found() == []
    watched.watch.look(time.monotonic() + 200)
    assert len(watched.found()) == 1


BUSY = """
import faulthandler, signal
faulthandler.register(signal.SIGUSR1, all_threads=True)
print("ready", flush=True)
while True: pass
"""


@pytest.mark.parametrize(("program", "stalls"), [(BUSY, False), (HUNG, True)])
def test_a_phase_without_progress_has_stalled_only_if_it_uses_no_cpu(run: RunDir, program: str, stalls: bool) -> None:
    watched = Watched(run, program)
    try:
        watched.records.emit(Phase(stage="base", attempt=1, name="writing F16"))
        began_s, used_s = time.monotonic(), cpu_s(watched.child.pid) or 0.0
        watched.watch.look(began_s + 4000)
        if not stalls:
            wait_for(lambda: (cpu_s(watched.child.pid) or 0.0) > used_s + 0.3, "the engine to work")
        watched.watch.look(time.monotonic() + 4001)
        assert bool(watched.found()) is stalls
    finally:
        watched.close()


def test_a_stopped_process_is_said_as_such_and_gets_no_signal(watched: Watched) -> None:
    watched.step(1)
    os.kill(watched.child.pid, signal.SIGSTOP)
    wait_for(lambda: watched.engine.identity.state() == "T", "the process to stop")
    watched.watch.look(time.monotonic() + 100)
    [stalled] = watched.found()
    assert isinstance(stalled, EngineStalled)
    assert (stalled.process_state, stalled.stacks) == ("T", False)


@pytest.mark.parametrize(("program", "marked"), [(DEAF, True), (HUNG, False)])
def test_a_process_that_would_die_of_the_signal_or_lacks_the_mark_gets_none(
    run: RunDir, program: str, marked: bool
) -> None:
    watched = Watched(run, program, marked=marked)
    try:
        assert catches(watched.child.pid, STACKS_SIGNAL) is (program == HUNG)
        watched.step(1)
        watched.watch.look(time.monotonic() + 100)
        [stalled] = watched.found()
        assert isinstance(stalled, EngineStalled)
        assert not stalled.stacks
        assert watched.child.poll() is None
        assert watched.console == "ready\n"
    finally:
        watched.close()


def test_the_newest_records_are_read_without_the_ones_before_them(run: RunDir) -> None:
    writer = EventWriter(run.journal, None, role=WriterRole.ENGINE)
    for _ in range(2000):
        writer.emit(Warned(message="x" * 100))
    newest = NewestRecords(run.journal)
    assert newest.read() == []
    writer.emit(Warned(message="new"))
    assert [e.message for e in newest.read() if isinstance(e, Warned)] == ["new"]
    for _ in range(2000):
        writer.emit(Warned(message="y" * 100))
    found = newest.read()
    assert 0 < len(found) < 1000, "bounded, however fast the journal grows"
    assert len(NewestRecords(run.journal, MOST_BYTES).read()) == len(found)
    writer.close()


def test_another_strategy_than_the_recipe_asks_for_is_seen_in_the_engines_own_words(watched: Watched) -> None:
    asked = Launch(processes=2, strategy="fsdp2")
    watch = EngineWatch(watched.run, watched.engine, watched.supervisor, asked)
    watched.records.emit(RanksPlaced(stage="base", attempt=1, world_size=2, strategy="fsdp2"))
    watch.look(time.monotonic())
    assert watch.misplaced == ""
    watched.records.emit(RanksPlaced(stage="base", attempt=1, world_size=2, strategy="ddp"))
    watch.look(time.monotonic() + 2)
    assert watch.misplaced == "the recipe asks for 2 processes, fsdp2, and the engine computes with ddp in 2 processes"
