from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cockpit.launching import adoption
from cockpit.launching.adoption import ATTACH, ATTEMPTS, FOLLOWER, REQUEST, SCREEN, Keeper, Onlooker, adopt
from cockpit.schedule.facts import RunFacts
from engines.events import RunEnded, RunStarted
from engines.run_dir import Lock, RunDir, RunDirError
from engines.words import RunStatus, StartReason
from recipes.problems import OperatorError
from tests.cockpit.runs.journaled_runs import a_run, write_journal

EVERYBODY = (ATTACH, FOLLOWER, SCREEN, REQUEST)
NEW = RunFacts()
RUNNING = RunFacts(
    latest_start=RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=[], kinds=[], w="s1", t=1.0)
)
ENDED = replace(RUNNING, ended=RunEnded(state=RunStatus.STOPPED, w="s1", seq=9, t=2.0))
RESUMED = replace(
    ENDED, latest_start=RunStarted(run="r", recipe="x", reason=StartReason.RESUME, stages=[], kinds=[], w="s2", t=3.0)
)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[StartReason]:
    """Reasons of the supervisors that would have been started."""
    reasons: list[StartReason] = []
    monkeypatch.setattr(adoption, "start_supervisor", lambda _run, reason: reasons.append(reason))
    return reasons


def reason(
    onlooker: Onlooker, facts: RunFacts, *, supervised: bool = False, exit_written: bool = False
) -> StartReason | None:
    return adoption.reason_to_start(onlooker, supervised=supervised, exit_written=exit_written, facts=lambda: facts)


@pytest.mark.parametrize("onlooker", EVERYBODY)
def test_a_run_that_lost_its_supervisor_is_adopted_and_one_that_never_had_one_is_launched(onlooker: Onlooker) -> None:
    assert reason(onlooker, RUNNING) == reason(onlooker, RESUMED) == StartReason.ADOPT
    assert reason(onlooker, NEW) == StartReason.LAUNCH


@pytest.mark.parametrize("onlooker", EVERYBODY)
def test_no_observer_starts_a_supervisor_for_a_run_that_is_supervised_or_has_ended(onlooker: Onlooker) -> None:
    assert reason(onlooker, RUNNING, supervised=True) is None
    assert reason(onlooker, ENDED) is None


@pytest.mark.parametrize("facts", [NEW, RUNNING, RESUMED])
def test_an_observer_without_permission_starts_no_supervisor(facts: RunFacts) -> None:
    assert reason(Onlooker("a list", may_start=False), facts) is None


def test_a_screen_trusts_exit_json_and_others_read_the_journal() -> None:
    assert reason(SCREEN, RUNNING, exit_written=True) is None
    for onlooker in (ATTACH, FOLLOWER, REQUEST):
        assert reason(onlooker, RUNNING, exit_written=True) == StartReason.ADOPT


def test_the_journal_is_read_only_when_it_decides() -> None:
    def refuse() -> RunFacts:
        raise AssertionError("the journal was read")

    for onlooker, supervised, written in ((ATTACH, True, False), (SCREEN, False, True), (SCREEN, True, True)):
        assert adoption.reason_to_start(onlooker, supervised=supervised, exit_written=written, facts=refuse) is None


def test_adoption_follows_from_the_run_s_lock_and_journal(tmp_path: Path, started: list[StartReason]) -> None:
    run = a_run(tmp_path)
    assert adopt(run, ATTACH)
    write_journal(run, None)
    assert adopt(run, ATTACH)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    assert not adopt(run, ATTACH)
    lock.release()
    write_journal(run, "failed")
    assert not adopt(run, ATTACH)
    assert started == [StartReason.LAUNCH, StartReason.ADOPT]


def test_a_run_of_a_newer_cockpit_is_not_adopted(tmp_path: Path, started: list[StartReason]) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    run.run_json.write_text('{"format": 99}')
    with pytest.raises(RunDirError, match="newer than this Cockpit"):
        adopt(run, ATTACH)
    assert started == []


def test_of_two_observers_only_the_faster_one_starts_a_supervisor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_late(run: RunDir, _reason: StartReason) -> None:
        raise OperatorError(f"another supervisor has just started {run.id}")

    run = a_run(tmp_path)
    monkeypatch.setattr(adoption, "start_supervisor", too_late)
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
    keeper = Keeper(run, FOLLOWER, clock)
    keeper.look(ended=False)
    assert started == [], "it has just begun to follow"
    looks(keeper, clock, 1)
    keeper.look(ended=False)
    assert started == [StartReason.ADOPT]
    looks(keeper, clock, 1, ended=True)
    assert started == [StartReason.ADOPT]


def test_a_follower_gives_up_after_supervisors_without_progress_and_names_the_log(
    tmp_path: Path, started: list[StartReason]
) -> None:
    run, clock = a_run(tmp_path), Clock()
    write_journal(run, None)
    keeper = Keeper(run, FOLLOWER, clock)
    looks(keeper, clock, ATTEMPTS)
    with pytest.raises(OperatorError, match="no supervisor, and none could be started") as caught:
        looks(keeper, clock, 1)
    assert str(run.supervisor_log) in caught.value.hint
    assert len(started) == ATTEMPTS + 1


def test_progress_under_a_living_supervisor_resets_the_count(tmp_path: Path, started: list[StartReason]) -> None:
    run, clock = a_run(tmp_path), Clock()
    write_journal(run, None)
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
    keeper, lock = Keeper(run, FOLLOWER, clock), Lock(run.supervisor_lock)
    looks(keeper, clock, ATTEMPTS)
    assert lock.acquire({})
    looks(keeper, clock, 3)
    lock.release()
    with pytest.raises(OperatorError):
        looks(keeper, clock, 1)
