from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from cockpit.launching import adoption
from cockpit.launching.adoption import (
    ATTACH,
    ATTEMPTS,
    FOLLOWER,
    REQUEST,
    SCREEN,
    Keeper,
    Observer,
    Onlooker,
    Standing,
    adopt,
    reading_words,
    standing,
)
from cockpit.runs.reader import read_now
from cockpit.schedule.facts import read_facts
from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import EndReason, StartReason, WriterRole
from recipes.problems import OperatorError
from tests.cockpit.runs.journaled_runs import a_run, engine_of, write_journal

EVERYBODY = (ATTACH, FOLLOWER, SCREEN, REQUEST)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[StartReason]:
    """Reasons of the supervisors that would have been started."""
    reasons: list[StartReason] = []
    monkeypatch.setattr(adoption, "start_supervisor", lambda _run, reason: reasons.append(reason))
    return reasons


@pytest.mark.parametrize("found", list(Standing))
@pytest.mark.parametrize("seen_alive", [False, True])
def test_a_supervisor_is_started_for_a_living_engine_and_between_stages_by_who_saw_it_alive(
    found: Standing, seen_alive: bool
) -> None:
    reason = adoption.reason_to_start(found, seen_alive=seen_alive)
    expected = found is Standing.ENGINE_LIVES or (found is Standing.BETWEEN_STAGES and seen_alive)
    assert reason == (StartReason.ADOPT if expected else None)


def test_what_a_run_lacks_follows_from_its_lock_its_journal_and_its_processes(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert standing(run) is Standing.QUEUED
    write_journal(run, None)
    assert standing(run) is Standing.LOST
    with engine_of(run):
        assert standing(run) is Standing.ENGINE_LIVES
    with engine_of(run, marked=False):
        assert standing(run) is Standing.LOST, "a process without the run's mark is not its engine"
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    assert standing(run) is Standing.SUPERVISED
    lock.release()
    write_journal(run, "failed")
    assert standing(run) is Standing.ENDED


def test_a_run_whose_supervisor_died_between_two_stages_is_adopted_only_by_who_saw_it_alive(
    tmp_path: Path, started: list[StartReason]
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    writer = EventWriter(run.journal, None, role=WriterRole.ENGINE, stage="base", attempt=1)
    writer.emit(AttemptEnded(stage="base", attempt=1, reason=EndReason.SUCCEEDED))
    writer.close()
    assert standing(run) is Standing.BETWEEN_STAGES
    follower = Observer(run, FOLLOWER)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    assert not follower.adopt()
    lock.release()
    for onlooker in EVERYBODY:
        assert not adopt(run, onlooker), "a run that was found without any process is lost until it is resumed"
    assert started == []
    assert follower.adopt()
    assert started == [StartReason.ADOPT]


@pytest.mark.parametrize("onlooker", EVERYBODY)
def test_looking_at_a_lost_run_starts_nothing_and_writes_nothing(
    tmp_path: Path, started: list[StartReason], onlooker: Onlooker
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    before = contents(run)
    observer = Observer(run, onlooker)
    for _ in range(3):
        assert not observer.adopt()
        assert observer.sees_it_lost
    assert started == []
    assert contents(run) == before


def contents(run: RunDir) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in run.root.rglob("*")}


def test_a_run_of_another_machine_is_neither_adopted_nor_called_lost(
    tmp_path: Path, started: list[StartReason]
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    run.journal.write_text(run.journal.read_text().replace(socket.gethostname(), "another-machine"))
    observer = Observer(run, FOLLOWER)
    assert not observer.adopt()
    assert observer.found is Standing.ELSEWHERE
    assert not observer.sees_it_lost
    assert started == []


def test_a_living_engine_of_an_untrusted_run_gets_no_supervisor(tmp_path: Path, started: list[StartReason]) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    with engine_of(run):
        run.root.chmod(0o777)
        assert not adopt(run, ATTACH)
        run.root.chmod(0o700)
        assert adopt(run, ATTACH)
    assert started == [StartReason.ADOPT]


def test_a_screen_trusts_exit_json_and_others_read_the_journal(tmp_path: Path, started: list[StartReason]) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    run.exit_json.write_text("{}")
    with engine_of(run):
        assert not adopt(run, SCREEN)
        assert [adopt(run, onlooker) for onlooker in (ATTACH, FOLLOWER, REQUEST)] == [True] * 3


def test_the_journal_is_read_only_when_it_decides_and_once_while_it_does_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []
    monkeypatch.setattr(adoption, "read_facts", lambda run: (reads.append(run.root), read_facts(run))[1])
    run = a_run(tmp_path)
    write_journal(run, None)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    observer = Observer(run, FOLLOWER)
    observer.adopt()
    assert reads == []
    lock.release()
    for _ in range(5):
        observer.adopt()
    assert len(reads) == 1
    write_journal(run, "failed")
    observer.adopt()
    assert len(reads) == 2


def test_a_run_of_a_newer_cockpit_is_not_adopted(tmp_path: Path, started: list[StartReason]) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    run.run_json.write_text('{"format": 99}')
    with engine_of(run), pytest.raises(RunDirError, match="newer than this Cockpit"):
        adopt(run, ATTACH)
    assert started == []


def test_of_two_observers_only_the_faster_one_starts_a_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(run: RunDir, _reason: StartReason) -> None:
        raise OperatorError(f"another supervisor has just started {run.id}")

    run = a_run(tmp_path)
    write_journal(run, None)
    monkeypatch.setattr(adoption, "start_supervisor", too_late)
    with engine_of(run):
        assert not adopt(run, ATTACH)


class Clock:
    """A clock that a test advances."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def looks(keeper: Keeper, clock: Clock, count: int, *, ended: bool = False) -> None:
    for _ in range(count):
        clock.now_s += FOLLOWER.every_s
        keeper.look(ended=ended)


def test_a_follower_checks_at_its_interval_until_the_run_ends(tmp_path: Path, started: list[StartReason]) -> None:
    run, clock = a_run(tmp_path), Clock()
    write_journal(run, None)
    with engine_of(run):
        keeper = Keeper(run, FOLLOWER, clock)
        keeper.look(ended=False)
        assert started == [], "it has just begun to follow"
        looks(keeper, clock, 1)
        keeper.look(ended=False)
        assert started == [StartReason.ADOPT]
        looks(keeper, clock, 1, ended=True)
        assert started == [StartReason.ADOPT]
        assert not keeper.lost


def test_a_follower_of_a_lost_run_and_of_one_that_is_never_started_sees_that_it_is_lost(
    tmp_path: Path, started: list[StartReason]
) -> None:
    lost, clock = a_run(tmp_path), Clock()
    write_journal(lost, None)
    keeper = Keeper(lost, FOLLOWER, clock)
    looks(keeper, clock, 1)
    assert keeper.lost
    new = a_run(tmp_path)
    waiting = Keeper(new, FOLLOWER, clock)
    looks(waiting, clock, 1)
    assert not waiting.lost, "its supervisor may be on its way"
    facts = json.loads(new.run_json.read_text())
    new.run_json.write_text(json.dumps(facts | {"created_t": facts["created_t"] - 60}))
    waiting = Keeper(new, FOLLOWER, clock)
    looks(waiting, clock, 1)
    assert waiting.lost
    assert started == []


def test_a_follower_gives_up_after_supervisors_without_progress_and_names_the_log(
    tmp_path: Path, started: list[StartReason]
) -> None:
    run, clock = a_run(tmp_path), Clock()
    write_journal(run, None)
    with engine_of(run):
        keeper = Keeper(run, FOLLOWER, clock)
        looks(keeper, clock, ATTEMPTS)
        with pytest.raises(OperatorError, match="no supervisor, and none could be started") as caught:
            looks(keeper, clock, 1)
    assert str(run.supervisor_log) in caught.value.hint
    assert len(started) == ATTEMPTS + 1


def test_progress_under_a_living_supervisor_resets_the_count(tmp_path: Path, started: list[StartReason]) -> None:
    run, clock = a_run(tmp_path), Clock()
    write_journal(run, None)
    with engine_of(run):
        keeper, lock = Keeper(run, FOLLOWER, clock), Lock(run.supervisor_lock)
        for _ in range(3):
            looks(keeper, clock, ATTEMPTS)
            keeper.note_work()
            assert lock.acquire({})
            looks(keeper, clock, 1)
            lock.release()
    assert len(started) == 3 * ATTEMPTS


def test_a_living_supervisor_without_progress_does_not_reset_the_count(
    tmp_path: Path, started: list[StartReason]
) -> None:
    run, clock = a_run(tmp_path), Clock()
    write_journal(run, None)
    with engine_of(run):
        keeper, lock = Keeper(run, FOLLOWER, clock), Lock(run.supervisor_lock)
        looks(keeper, clock, ATTEMPTS)
        assert lock.acquire({})
        looks(keeper, clock, 3)
        lock.release()
        with pytest.raises(OperatorError):
            looks(keeper, clock, 1)
    assert len(started) == ATTEMPTS + 1


def test_what_must_be_read_is_said_only_where_neither_the_lock_nor_exit_json_nor_an_index_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("cockpit.launching.adoption.LONG_READ_BYTES", 1 << 20)
    monkeypatch.setattr("cockpit.runs.reader.INDEX_AFTER_BYTES", 1 << 20)
    run = a_run(tmp_path / "runs")
    write_journal(run, None, steps=12_000)
    assert "no supervisor is running; reading" in reading_words(run)
    lock = Lock(run.supervisor_lock)
    lock.acquire({"pid": os.getpid()})
    assert reading_words(run) == ""
    lock.release()
    assert reading_words(run)
    read_now(run)
    assert reading_words(run) == ""
