from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cockpit.runs import summaries as run_list
from cockpit.runs.state import RunState
from cockpit.runs.summaries import exit_facts, fold_run, is_live, list_runs, state_of, summarize
from engines.emitter import EventWriter
from engines.events import AttemptEnded, AttemptStarted, RunEnded, RunStarted, StageStarted, Step, encode_record
from engines.files import write_durably
from engines.identity import Identity
from engines.run_dir import Lock, RunDir, RunDirError, create_run_dir
from engines.words import EndReason, RunStatus, StartReason, WriterRole


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_list, "_cache", {})
    monkeypatch.setattr(run_list, "_folds", {})


def a_run(root: Path, name: str = "atlas") -> RunDir:
    return create_run_dir(root, name=name, recipe=name, recipe_toml="", recipe_json={}, plan_json={}, version="1")


def a_story(run: RunDir, end: str | None = "succeeded", *, role: str = "supervisor") -> None:
    """A run of one stage of two steps, told by this very process."""
    writer = EventWriter(run.journal, None, role=WriterRole(role), stage="base", attempt=1)
    writer.emit(RunStarted(run=run.id, recipe="atlas", reason=StartReason.LAUNCH, stages=["base"], kinds=["fake"]))
    writer.emit(StageStarted(stage="base", kind="fake", attempt=1, steps=4))
    writer.emit(AttemptStarted(stage="base", kind="fake", attempt=1, total_steps=4))
    for number in (1, 2):
        writer.emit(
            Step(
                stage="base",
                attempt=1,
                step=number,
                epoch=0.1,
                loss=3.0 - number,
                learning_rate=1e-4,
                grad_norm=1.0,
                tokens=512 * number,
                loss_tokens=500,
                step_s=0.05,
            )
        )
    if end is not None:
        writer.emit(AttemptEnded(stage="base", attempt=1, reason=EndReason(end)))
        writer.emit(RunEnded(state=RunStatus(end), reason="because"))
    writer.close()


def test_a_run_that_ended_is_summarized_from_its_journal(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_story(run, "failed")
    summary = summarize(run)
    assert (summary.id, summary.recipe, summary.state, summary.reason) == (run.id, "atlas", "failed", "because")
    assert (summary.stage, summary.kind, summary.step, summary.total_steps, summary.loss) == ("base", "fake", 2, 4, 1.0)
    assert summary.started_t is not None
    assert summary.ended_t is not None
    assert summary.started_t <= summary.ended_t


def test_a_run_that_says_it_runs_while_nobody_does_is_lost(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_story(run, end=None)
    assert summarize(run).state == "lost"
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    assert summarize(run).state == "running", "a supervisor holds it"
    lock.release()
    assert summarize(run).state == "lost"


def test_an_engine_that_lives_on_without_a_supervisor_keeps_its_run_alive(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_story(run, end=None, role="engine")
    assert is_live(run)
    assert summarize(run).state == "running"


@pytest.mark.parametrize("changed", [{"start_time": 1}, {"boot_id": "another"}])
def test_another_process_under_an_engine_s_old_pid_keeps_nothing_alive(tmp_path: Path, changed: dict[str, Any]) -> None:
    run = a_run(tmp_path)
    a_story(run, end=None)
    own = {**vars(Identity.own()), **changed}
    from engines.events import WriterOpened

    opened = WriterOpened(role=WriterRole.ENGINE, host="h", stage="base", attempt=1, **own)
    with run.journal.open("ab") as file:
        file.write(encode_record(opened, writer="eother", seq=0, t=1.0, m=1.0))
    assert not is_live(run)
    assert state_of(run, fold_run(run)) == "lost"


def test_a_run_directory_that_was_made_a_moment_ago_is_being_launched_and_an_old_one_is_lost(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    assert summarize(run).state == "queued"
    facts = run.read_run_json()
    for created in (facts["created_t"] - 3600, None, "yesterday", 0):
        run.run_json.write_text(json.dumps({**facts, "created_t": created}))
        run_list._cache.clear()
        run_list._folds.clear()
        assert summarize(run).state == "lost"


def test_what_exit_json_says_is_believed_while_the_journal_is_the_one_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = a_run(tmp_path)
    a_story(run)
    folded = summarize(run)
    write_durably(run.exit_json, json.dumps(exit_facts(run)).encode())

    def refuse(_: RunDir) -> None:
        raise AssertionError("the journal was folded")

    run_list._cache.clear()
    with monkeypatch.context() as patch:
        patch.setattr(run_list, "fold_run", refuse)
        assert summarize(run) == folded
        moved = RunDir(run.root.rename(tmp_path / "moved"))
        assert summarize(moved).path == str(tmp_path / "moved"), "a moved run is where it is"
    a_story(moved, "stopped")
    run_list._cache.clear()
    assert summarize(moved).state == "stopped", "a journal that grew is read"


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "7", "{}", '{"journal_bytes": "x"}', '{"summary": {"nonsense": 1}}']
)
def test_an_exit_json_that_is_none_changes_nothing(tmp_path: Path, content: str) -> None:
    run = a_run(tmp_path)
    a_story(run)
    size = run.journal.stat().st_size
    run.exit_json.write_text(
        content.replace("{", f'{{"journal_bytes": {size}, ', 1) if "summary" in content else content
    )
    assert summarize(run).state == "succeeded"


def test_a_list_is_cheap_when_nothing_changed_and_right_when_something_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended, running = a_run(tmp_path, "a"), a_run(tmp_path, "b")
    a_story(ended)
    a_story(running, end=None)
    read: list[str] = []
    apply = RunState.apply
    monkeypatch.setattr(RunState, "apply", lambda state, event: (read.append(event.w), apply(state, event))[1])
    ids = [ended.id, running.id]
    first = list_runs(tmp_path, ids)
    whole = len(read)
    assert whole == sum(len(run.journal.read_bytes().splitlines()) for run in (ended, running))
    assert list_runs(tmp_path, ids) == first
    assert len(read) == whole, "neither journal grew"
    before = len(running.journal.read_bytes().splitlines())
    a_story(running, "stopped")
    assert [summary.state for summary in list_runs(tmp_path, ids)] == ["succeeded", "stopped"]
    assert len(read) - whole == len(running.journal.read_bytes().splitlines()) - before, "what is new, and no more"


def test_a_run_of_a_newer_cockpit_is_listed(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_story(run)
    run.run_json.write_text(json.dumps({**run.read_run_json(), "format": 99, "colour": "red"}))
    assert summarize(run).state == "succeeded"


def test_damage_in_a_journal_does_not_hide_its_run(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_story(run)
    data = run.journal.read_bytes()
    run.journal.write_bytes(b"\0" * 100 + data[:200] + b"\xff{rubbish\n" + data[200:] + b'{"v":1,"w":"e')
    assert summarize(run).state in {"succeeded", "lost"}
    assert len(list_runs(tmp_path, [run.id, "none"])) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000, "\x00"])
def test_a_damaged_run_json_does_not_hide_its_run_or_others(tmp_path: Path, content: str) -> None:
    run, other = a_run(tmp_path, "one"), a_run(tmp_path, "two")
    for each in (run, other):
        a_story(each)
    run.run_json.write_text(content)
    run.exit_json.write_text(content)
    told: list[str] = []
    assert [found.state for found in list_runs(tmp_path, [run.id, other.id], told.append)] == ["succeeded", "succeeded"]
    run.journal.unlink()
    assert [found.id for found in list_runs(tmp_path, [run.id, other.id], told.append)] == [other.id]
    assert len(told) == 1
    assert "run.json" in told[0]


def test_what_is_no_run_directory_has_no_summary(tmp_path: Path) -> None:
    with pytest.raises(RunDirError):
        summarize(RunDir(tmp_path))
    assert list_runs(tmp_path, ["none", ".."]) == []
    assert os.listdir(tmp_path) == []


def test_a_run_with_a_supervisor_is_running(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_story(run, None)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    try:
        assert (summarize(run).state, summarize(run).step) == ("running", 2)
    finally:
        lock.release()


def test_a_journal_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_story(run, None)
    assert summarize(run).step == 2
    run.journal.write_bytes(run.journal.read_bytes()[:-400])
    os.truncate(run.journal, 0)
    other = a_run(tmp_path, "other")
    a_story(other, "failed")
    run.journal.write_bytes(other.journal.read_bytes())
    assert summarize(run).state == "failed"


def test_a_last_line_that_nobody_will_finish_counts_when_it_is_whole(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    a_story(run, "succeeded")
    run.journal.write_bytes(run.journal.read_bytes().rstrip(b"\n"))
    assert summarize(run).state == "succeeded"
