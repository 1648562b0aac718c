"""Which process of a launch failed first, also where torchrun took its exit status before anything else could."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.supervision.rank_ends import cause_of_ranks, end_elsewhere
from engines.emitter import EventWriter
from engines.events.attempts import RankEnded, RanksPlaced
from engines.ranks.watched import RankEnd, WatchedRanks, read_ends
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from engines.words import EndReason, WriterRole

LOST = (EndReason.RANK_LOST, "an exchange with another process failed")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = create_run_dir(tmp_path, name="a", recipe="a", recipe_toml="", recipe_json={}, plan_json={}, version="0")
    made.attempt_dir("base", 1).mkdir(parents=True)
    return made


def ended(run: RunDir, *ends: RankEnd) -> None:
    content = {"ends": [vars(end) for end in ends], "reason": ""}
    run.ranks_json("base", 1).write_text(json.dumps(content))


def recorded(run: RunDir, rank: int, reason: EndReason, detail: str) -> None:
    path = run.rank_journal("base", 1, rank)
    path.parent.mkdir(exist_ok=True)
    writer = EventWriter(path, None, role=WriterRole.ENGINE, stage="base", attempt=1)
    writer.emit(RankEnded(stage="base", attempt=1, rank=rank, reason=reason, detail=detail))
    writer.close()


def test_a_rank_that_recorded_its_failure_is_the_cause_though_torchrun_took_its_status(run: RunDir) -> None:
    recorded(run, 1, EndReason.OUT_OF_MEMORY, "no memory")
    ended(run, RankEnd(1, 639, None), RankEnd(0, 638, 1))
    cause = cause_of_ranks(run, "base", 1, 2, LOST)
    assert cause is not None
    assert (cause.rank, cause.reason) == (1, EndReason.OUT_OF_MEMORY)
    assert cause.detail == "rank 1 of 2: no memory"


@pytest.mark.parametrize("reason", [EndReason.SUCCEEDED, EndReason.STOPPED, EndReason.RANK_LOST])
def test_a_rank_of_unknown_status_that_recorded_no_failure_of_its_own_is_no_cause(
    run: RunDir, reason: EndReason
) -> None:
    recorded(run, 1, reason, "")
    ended(run, RankEnd(1, 639, None), RankEnd(0, 638, 1))
    assert cause_of_ranks(run, "base", 1, 2, LOST) is None


def test_a_status_that_torchrun_took_is_learned_from_its_own_report(tmp_path: Path) -> None:
    path = tmp_path / "ranks.json"
    watched = WatchedRanks(path, 2)
    watched._ended = [RankEnd(1, 639, None), RankEnd(0, 638, 1)]
    watched.learn({639: -9, 638: 7})
    watched.finish()
    assert [(end.rank, end.status) for end in read_ends(path)] == [(1, -9), (0, 1)]


@pytest.mark.parametrize(("all_done", "reason"), [(True, EndReason.STOPPED), (False, EndReason.RANK_LOST)])
def test_a_host_whose_processes_all_succeeded_has_not_failed_though_torchrun_took_their_statuses(
    run: RunDir, all_done: bool, reason: EndReason
) -> None:
    path = run.rank_journal("base", 1, 1)
    path.parent.mkdir(exist_ok=True)
    writer = EventWriter(path, None, role=WriterRole.ENGINE, stage="base", attempt=1)
    writer.emit(
        RanksPlaced(
            stage="base", attempt=1, world_size=2, strategy="ddp", devices=["cpu", "cpu"], host="h", run="other"
        )
    )
    writer.close()
    watched = WatchedRanks(run.ranks_json("base", 1), 1)
    watched._ended = [RankEnd(1, 639, None)]
    watched.finish(all_done=all_done)
    end = end_elsewhere(run, "base", 1)
    assert end is not None
    assert end[0] is reason
