"""A follower that lags judges nothing by what it has read so far, and one that attaches late prints no long past."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.headless import follow as follow_module
from cockpit.headless.follow import Following, Signals
from cockpit.headless.lines import CATCH_UP_LINES, Nothing, PlainLines
from cockpit.launching import adoption
from cockpit.launching.adoption import Keeper, Onlooker
from cockpit.runs import tail
from cockpit.runs.reader import read_now
from cockpit.schedule.facts import read_facts
from engines.emitter import EventWriter
from engines.events.writers import Warned
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from engines.words import ExitCode, StartReason, WriterRole
from tests.cockpit.command_line import CommandLine
from tests.cockpit.runs.journaled_runs import a_run, write_journal

IMPATIENT = Onlooker("a follower that checks all the time", may_start=True, every_s=0.0)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[StartReason]:
    """Supervisors that would have been started."""
    reasons: list[StartReason] = []
    monkeypatch.setattr(adoption, "start_supervisor", lambda _run, reason: reasons.append(reason))
    monkeypatch.setattr(follow_module, "FOLLOWER", IMPATIENT)
    return reasons


def unread(run: RunDir, end: str = "failed", steps: int = 20_000) -> RunDir:
    """A run that has ended, with a journal of many parts."""
    write_journal(run, end, steps=steps)
    return run


@pytest.mark.parametrize("past", [True, False])
def test_a_follower_that_lags_behind_a_finished_run_ends_with_its_exit_code(
    tmp_path: Path, started: list[StartReason], monkeypatch: pytest.MonkeyPatch, past: bool
) -> None:
    monkeypatch.setattr(tail, "BATCH", 10)
    run = unread(a_run(tmp_path))
    following = Following(run, Nothing(), Signals(), past=past)
    following._reader.poll(max_records=10)  # it has begun to read, and was then stopped for a minute
    assert following.state.state == "running"
    assert following.until_end() == ExitCode.FAILED
    assert started == []


@pytest.mark.parametrize(
    ("word", "shown"), [("evicted", "evicted"), ("running", "is lost")], ids=["of a newer version", "no end"]
)
def test_an_end_with_a_word_that_is_no_known_end_does_not_hold_a_follower(
    tmp_path: Path, word: str, shown: str
) -> None:
    run = a_run(tmp_path / "runs")
    write_journal(run, "failed")
    text = run.journal.read_text()
    assert '"state":"failed"' in text
    run.journal.write_text(text.replace('"state":"failed"', f'"state":"{word}"'))
    line = CommandLine(tmp_path)
    done = line.run("attach", "--plain", str(run.root))
    assert done.returncode == ExitCode.FAILED
    assert shown in done.stdout + done.stderr
    listed = json.loads(line.run("ls", "--json").stdout)
    assert [summary["state"] for summary in listed] == ["lost" if word == "running" else word]


def test_a_run_that_ended_is_not_adopted_however_little_of_it_was_read(
    tmp_path: Path, started: list[StartReason]
) -> None:
    run = unread(a_run(tmp_path), "succeeded", 20)
    keeper = Keeper(run, IMPATIENT)
    for _ in range(2 * adoption.ATTEMPTS):
        keeper.look(ended=False)  # what a follower knows that has read nothing
    assert started == []


def test_a_follower_that_attaches_late_prints_the_newest_lines_and_says_how_to_get_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    writer = EventWriter(run.journal, None, role=WriterRole.ENGINE, stage="base", attempt=1)
    for number in range(300):
        writer.emit(Warned(message=f"warning {number}"))
    writer.close()
    unread(run, "stopped", 2)
    assert Following(run, PlainLines(), Signals(), past=False).until_end() == ExitCode.INTERRUPTED
    short = capsys.readouterr().out.splitlines()
    assert len(short) == CATCH_UP_LINES + 1
    assert "records before" in short[0]
    assert "--all" in short[0]
    assert "run stopped" in short[-1]
    Following(run, PlainLines(), Signals(), past=True).until_end()
    assert sum("warning" in line for line in capsys.readouterr().out.splitlines()) == 300


def test_what_happens_after_attaching_is_printed_line_by_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = a_run(tmp_path)
    write_journal(run, None)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({})
    following = Following(run, PlainLines(), Signals(), past=False)
    following._take(0.0)
    assert "records before" in capsys.readouterr().out
    write_journal(run, "failed")
    lock.release()
    assert following.until_end() == ExitCode.FAILED
    assert "run failed" in capsys.readouterr().out


def test_whether_a_run_has_ended_is_read_from_small_files_while_they_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_run: RunDir) -> None:
        raise AssertionError("the journal was read")

    live, ended, dead = a_run(tmp_path, "live"), a_run(tmp_path, "ended"), a_run(tmp_path, "dead")
    write_journal(live, None)
    write_journal(ended, "failed")
    write_journal(dead, None)
    from cockpit.runs.summaries import exit_facts
    from engines.files import write_json

    write_json(ended.exit_json, exit_facts(ended, read_now(ended).state))
    lock = Lock(live.supervisor_lock)
    assert lock.acquire({})
    assert read_facts(dead).latest_start is not None
    assert adoption.end_of(dead) is None
    monkeypatch.setattr(adoption, "read_facts", refuse)
    assert adoption.end_of(live) is None
    assert adoption.end_of(ended) == "failed"
    lock.release()
    write_journal(ended, None)
    with pytest.raises(AssertionError, match="was read"):
        adoption.end_of(ended)
