"""A training of two processes: their journals, requests that both obey, and every way in which one of them can end.

The fake engine simulates the numbers; torchrun, the processes, their exchange and the signals are real. A launch costs
seconds, so each run shows many things.
"""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cockpit.headless.report import report_lines
from cockpit.launching.launch import resume
from cockpit.runs.ending import console_tail
from cockpit.runs.reader import RunReader, read_now
from cockpit.runs.stage_view import AttemptView
from cockpit.supervision.engine_process import find_engine
from cockpit.supervision.rank_processes import rank_processes
from engines.control import put_request
from engines.events.attempts import AttemptEnded, AttemptStarted, RankEnded, RankReport, RanksPlaced
from engines.events.runs import ControlApplied
from engines.events.steps import CheckpointCommitted, GuardTripped, Step
from engines.identity import Identity
from engines.journal import journal_files, read_journal
from engines.ranks.watched import read_ends
from engines.run_dir.paths import RunDir
from engines.words import EndReason, Verb
from tests.runs.harness import (
    assert_contiguous,
    assert_no_process_left,
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    nothing_left,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_engine,
    wait_for_step,
)

pytestmark = pytest.mark.torch

TWO = {"processes": 2, "strategy": "ddp"}
LONG: dict[str, Any] = {"max_steps": 100_000, "step_s": 0.02, "save_steps": 10, "launch": TWO}


def ranks_of(run: RunDir, attempt: int) -> dict[int, Identity]:
    """Both processes of an attempt, once they have made steps in it."""
    return ranks_of_stage(run, "part-1", attempt)


def ranks_of_stage(run: RunDir, stage: str, attempt: int) -> dict[int, Identity]:
    """The same of any stage."""
    wait_for(
        lambda: any(isinstance(e, Step) and e.attempt == attempt for e in events(run)), f"a step of attempt {attempt}"
    )
    engine = wait_for(lambda: find_engine(run, stage, attempt), "the engine's record")
    engine.close()
    found = rank_processes(engine.identity, run.root)
    assert list(found) == [0, 1]
    return found


def attempt_of(run: RunDir, number: int) -> AttemptView:
    """An attempt as screens see it."""
    stage = read_now(run).state.stage("part-1")
    assert stage is not None
    return stage.by_attempt[number]


def supervisors_ends(run: RunDir) -> dict[int, AttemptEnded]:
    """The supervisor's records of ends, by attempt."""
    return {e.attempt: e for e in events(run) if isinstance(e, AttemptEnded) and e.w.startswith("s")}


def wait_for_checkpoint(run: RunDir, attempt: int) -> None:
    def saved() -> bool:
        return any(isinstance(e, CheckpointCommitted) and e.attempt == attempt for e in events(run))

    wait_for(saved, f"a checkpoint of attempt {attempt}")


def wait_for_record_of_end(run: RunDir, attempt: int) -> AttemptEnded:
    wait_for(lambda: attempt in supervisors_ends(run), f"the record of the end of attempt {attempt}")
    return supervisors_ends(run)[attempt]


@dataclass
class Killed:
    """A run whose first attempt lost rank 1, the second torchrun, the third rank 0; the fourth is stopped."""

    run: RunDir
    processes: list[Identity]
    state: str
    answered: dict[str, str]
    suspended: str


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killed]:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "tmp").mkdir()
    with nothing_left(folder / "runs"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder / "tmp"))
        yield _killed(folder)


def _killed(folder: Path) -> Killed:
    run = launch_text(fake_recipe({**LONG, "retry": {"max_attempts": 3}}), folder)
    seen: list[Identity] = []
    for attempt, target in ((1, 1), (2, None)):
        ranks = ranks_of(run, attempt)
        wait_for_checkpoint(run, attempt)
        seen += ranks.values()
        pid = wait_for_engine(run, attempt=attempt) if target is None else ranks[target].pid
        os.kill(pid, signal.SIGKILL)
        wait_for_record_of_end(run, attempt)
    ranks = ranks_of(run, 3)
    seen += ranks.values()
    suspended = _suspended(run, ranks[1])
    kill_supervisor(run)
    before = step_of(run)
    wait_for(lambda: step_of(run) > before + 2, "steps without a supervisor")
    answered = {}
    for verb, value in ((Verb.PAUSE, None), (Verb.CONTINUE, None), (Verb.CHECKPOINT, None), (Verb.LEARNING_RATE, 1e-4)):
        number = put_request(run.control, verb, value).number
        answered[str(verb)] = _answer(run, number)
    from cockpit.launching.adoption import ATTACH, adopt

    adopt(run, ATTACH)
    put_request(run.control, Verb.STOP_AFTER_CHECKPOINT)
    return Killed(run, seen, wait_for_end(run), answered, suspended)


def _answer(run: RunDir, number: int) -> str:
    def found() -> str:
        return next((e.effect for e in events(run) if isinstance(e, ControlApplied) and e.number == number), "")

    return wait_for(found, f"the answer to request {number}")


def _suspended(run: RunDir, rank: Identity) -> str:
    """What a screen says while one process is stopped."""
    os.kill(rank.pid, signal.SIGSTOP)
    try:

        def sentence() -> str:
            reader = RunReader(run)
            health = reader.health(reader.refresh())
            return health.line if health.word == "suspended" else ""

        return wait_for(sentence, "a screen that says suspended")
    finally:
        os.kill(rank.pid, signal.SIGCONT)


def test_a_killed_rank_is_the_cause_by_its_name(killed: Killed) -> None:
    end = supervisors_ends(killed.run)[1]
    assert (end.reason, end.exit) == ("killed", -signal.SIGKILL)
    assert end.detail.startswith("rank 1 of 2: killed by SIGKILL")
    first, *_ = read_ends(killed.run.ranks_json("part-1", 1))
    assert (first.rank, first.status, first.ended_by_us) == (1, -signal.SIGKILL, False)
    attempt = attempt_of(killed.run, 1)
    assert (attempt.reason, attempt.detail) == ("killed", end.detail), "not what rank 0 saw of it"


def test_a_killed_torchrun_is_named_and_no_rank_outlives_it(killed: Killed) -> None:
    end = supervisors_ends(killed.run)[2]
    assert (end.reason, end.exit) == ("killed", -signal.SIGKILL)
    assert end.detail.startswith("torchrun, with 2 processes: killed by SIGKILL")
    assert end.cpu_s is None, "the time of its processes is not known: it is not the little that torchrun used"
    assert supervisors_ends(killed.run)[1].cpu_s
    assert [one.pid for one in killed.processes if one.is_alive()] == []


def test_torchrun_leaves_nothing_outside_of_the_run_even_when_it_is_killed(killed: Killed) -> None:
    assert not list(Path(os.environ["TMPDIR"]).glob("torchelastic*"))
    left = [killed.run.torchrun_logs("part-1", attempt).is_dir() for attempt in (1, 2, 3)]
    assert left == [False, False, False], "of a killed one, the supervisor removes the folder"


def test_each_retry_resumes_from_the_newest_checkpoint(killed: Killed) -> None:
    started = {e.attempt: e.resumed_from for e in events(killed.run) if isinstance(e, AttemptStarted)}
    assert set(started) == {1, 2, 3}
    for attempt in (2, 3):
        saved = [e.step for e in events(killed.run) if isinstance(e, CheckpointCommitted) and e.attempt == attempt - 1]
        origin = started[attempt]
        assert origin is not None
        assert (origin.attempt, origin.step) == (attempt - 1, max(saved))


def test_a_stopped_rank_is_named_on_screens_at_once(killed: Killed) -> None:
    assert "rank 1 is stopped (SIGSTOP)" in killed.suspended


def test_requests_are_obeyed_by_both_and_answered_once(killed: Killed) -> None:
    assert killed.answered["pause"] == "paused"
    assert killed.answered["continue"] == "continued"
    assert killed.answered["checkpoint"].startswith("checkpoint step-")
    assert killed.answered["learning-rate"].startswith("peak learning rate is now")
    numbers = [e.number for e in events(killed.run) if isinstance(e, ControlApplied) and e.number]
    assert len(numbers) == len(set(numbers)) == 5


def test_a_stop_ends_both_after_a_checkpoint(killed: Killed) -> None:
    assert killed.state == "stopped"
    (ended,) = [e for e in read_journal(killed.run.rank_journal("part-1", 3, 1)) if isinstance(e, RankEnded)]
    assert ended.reason is EndReason.STOPPED
    last = max(e.step for e in events(killed.run) if isinstance(e, Step))
    assert max(e.step for e in events(killed.run) if isinstance(e, CheckpointCommitted)) == last


def test_rank_0_writes_the_shared_facts_and_the_other_one_that_it_lives(killed: Killed) -> None:
    names = [path.name for path in journal_files(killed.run.root)]
    assert names == ["journal.jsonl", *(f"part-1-{attempt}-rank1.jsonl" for attempt in (1, 2, 3))]
    kinds = {type(e) for path in journal_files(killed.run.root)[1:] for e in read_journal(path)}
    assert {Step, AttemptStarted, CheckpointCommitted} & kinds == set()
    assert RankReport in kinds
    placed = [e for e in events(killed.run) if isinstance(e, RanksPlaced)]
    assert {(e.world_size, e.strategy, *e.devices) for e in placed} == {(2, "ddp", "cpu", "cpu")}
    steps = [e.step for e in events(killed.run) if isinstance(e, Step) and e.attempt == 3]
    assert steps == list(range(steps[0], steps[0] + len(steps))), "no step twice"
    assert_contiguous(killed.run)
    assert_no_process_left(killed.run)


@pytest.mark.parametrize(
    ("fault", "reason", "words"),
    [
        ({"fail_at_step": 3}, "error", "rank 1 of 2: RuntimeError: simulated failure at step 3"),
        ({"nan_at_step": 3}, "guard", "nonfinite_loss of rank 1 at step 3"),
    ],
)
def test_what_happens_in_one_process_alone_is_named_by_its_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: dict[str, int], reason: str, words: str
) -> None:
    monkeypatch.setenv("COCKPIT_TEST_FAULTS", json.dumps({"rank": 1}))
    with nothing_left(tmp_path / "runs"):
        run = launch_text(fake_recipe({**LONG, **fault}), tmp_path)
        assert wait_for_end(run) == "failed"
    attempt = attempt_of(run, 1)
    assert attempt.reason == reason
    assert words in attempt.detail
    assert_no_process_left(run)
    assert not [e for e in events(run) if isinstance(e, Step) and e.step > 3]
    if reason == "error":
        assert any("simulated failure" in line for line in console_tail(run, "part-1", 1)), "its stack, in console.log"
        assert any("Traceback" in line for line in console_tail(run, "part-1", 1, rank=1))
    else:
        assert [e.step for e in events(run) if isinstance(e, GuardTripped)] == [3]


def test_reports_say_how_many_processes_there_are(killed: Killed) -> None:
    assert "part-1: 2 processes, ddp" in report_lines(read_now(killed.run).state)
    placed = attempt_of(killed.run, 1).placed
    assert placed is not None
    assert (placed.host, placed.run) == (socket.gethostname(), killed.run.id)


@pytest.mark.thorough
def test_whichever_process_is_killed_the_cause_names_it_and_the_training_continues(tmp_path: Path) -> None:
    """Nine kills, one after the other, at steps that differ; every launch resumes from the newest checkpoint."""
    with nothing_left(tmp_path / "runs"):
        run = launch_text(fake_recipe({**LONG, "save_steps": 3}), tmp_path)
        for attempt in range(1, 10):
            ranks = ranks_of(run, attempt)
            after = step_of(run) + attempt
            wait_for_step(run, after)
            torchrun = wait_for_engine(run, attempt=attempt)
            victim = (ranks[0].pid, ranks[1].pid, torchrun)[attempt % 3]
            os.kill(victim, signal.SIGKILL)
            assert wait_for_end(run) == "failed"
            words = ("rank 0 of 2: killed by SIGKILL", "rank 1 of 2: killed by SIGKILL", "torchrun, with 2 processes: ")
            assert attempt_of(run, attempt).detail.startswith(words[attempt % 3])
            assert_no_process_left(run)
            resume(run)
        ranks_of(run, 10)
        put_request(run.control, Verb.STOP)
        assert wait_for_end(run) == "stopped"
    assert_contiguous(run)
    saved = [(e.attempt, e.step) for e in events(run) if isinstance(e, CheckpointCommitted)]
    for started in (e for e in events(run) if isinstance(e, AttemptStarted)):
        before = [(step, attempt) for attempt, step in saved if attempt < started.attempt]
        origin = started.resumed_from
        assert (None if origin is None else (origin.step, origin.attempt)) == max(before, default=None)
