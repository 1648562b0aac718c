from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.runs.tail import MOST_WITHHELD, RunTail
from cockpit.supervision.relay import Relay
from engines.events.attempts import AttemptEnded, Phase
from engines.events.event import Event
from engines.events.records import encode_record
from engines.events.results import ArtifactCommitted
from engines.events.runs import ControlApplied, RunEnded, StageSucceeded
from engines.events.steps import CheckpointCommitted
from engines.events.writers import Gap, Warned, WriterOpened
from engines.journal import Record, read_journal
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from engines.words import EndReason, RunStatus, WriterRole


@pytest.fixture(autouse=True)
def _own_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with tempfile.TemporaryDirectory(prefix="cp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield


class Run:
    """A run directory with writers whose records a test puts into the journal, the pipe, or both."""

    def __init__(self, root: Path) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.journal = root / "journal.jsonl"
        self.journal.touch()
        os.mkfifo(root / "live.fifo")
        self.pipe = os.open(root / "live.fifo", os.O_RDWR | os.O_NONBLOCK)
        self.relay = Relay(root, root / "live.fifo")
        self.seq: dict[str, int] = {}

    def say(self, writer: str, *, journal: bool = True, live: bool = True, event: Event | None = None) -> int:
        seq = self.seq.get(writer, 0)
        self.seq[writer] = seq + 1
        record = encode_record(
            event or Phase(stage="s", attempt=1, name=f"{writer}/{seq}"), writer=writer, seq=seq, t=1.0 + seq, m=1.0
        )
        if journal:
            with self.journal.open("ab") as file:
                file.write(record)
        if live:
            os.write(self.pipe, record)
            self.relay.pump()
        return seq

    def write_late(self, writer: str, seq: int) -> None:
        """Put a record into the journal that was held back while the disk was full."""
        with self.journal.open("ab") as file:
            file.write(encode_record(Phase(stage="s", attempt=1, name="late"), writer=writer, seq=seq, t=1.0, m=1.0))

    def close(self) -> None:
        self.relay.close()
        os.close(self.pipe)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    made = Run(tmp_path / "run")
    yield made
    made.close()


@pytest.fixture
def tail(run: Run) -> Iterator[RunTail]:
    made = RunTail(run.root, live=True)
    made.read()
    run.relay.pump()
    yield made
    made.close()


def names(records: list[Record]) -> list[tuple[str, int]]:
    return [(record.event.w, record.event.seq) for record in records]


def rest(tail: RunTail) -> list[Record]:
    """All records so far."""
    found = tail.read(max_records=1)
    while tail.behind:
        found += tail.read(max_records=1)
    return found + tail.read()


def test_an_event_is_given_once_whether_it_comes_by_the_pipe_or_the_journal_or_both(run: Run, tail: RunTail) -> None:
    run.say("e1")
    run.say("e1", live=False)
    run.say("e1")
    assert names(tail.read()) == [("e1", 0), ("e1", 1), ("e1", 2)]
    assert tail.read() == []


def test_what_only_the_pipe_has_is_shown_while_the_disk_is_full_and_not_again_after(run: Run, tail: RunTail) -> None:
    for _ in range(3):
        run.say("e1")
    tail.read()
    for _ in range(4):
        run.say("e1", journal=False)
    assert names(tail.read()) == [("e1", 3), ("e1", 4), ("e1", 5), ("e1", 6)]
    run.say("e1", event=Gap(lost=4))
    assert names(tail.read()) == [("e1", 7)]


def test_what_a_full_disk_delayed_is_given_when_the_journal_has_it_and_once(run: Run, tail: RunTail) -> None:
    run.say("e1")
    delayed = run.say("e1", journal=False, live=False)
    for _ in range(3):
        run.say("e1", journal=False)
    assert names(tail.read()) == [("e1", 0), ("e1", 2), ("e1", 3), ("e1", 4)]
    run.write_late("e1", delayed)
    assert names(tail.read()) == [("e1", 1)]
    run.say("e1")
    assert names(tail.read()) == [("e1", 5)]


def test_what_the_pipe_dropped_is_read_from_the_journal_in_its_place(run: Run, tail: RunTail) -> None:
    run.say("e1")
    for _ in range(5):
        run.say("e1", live=False)
    run.say("e1")
    assert names(tail.read()) == [("e1", seq) for seq in range(7)]


def test_what_neither_has_does_not_stop_what_follows(run: Run, tail: RunTail) -> None:
    run.say("e1")
    run.say("e1", journal=False, live=False)
    run.say("e1")
    assert names(tail.read()) == [("e1", 0), ("e1", 2)]


def test_garbage_in_the_pipe_is_ignored(run: Run, tail: RunTail) -> None:
    run.say("e1")
    os.write(run.pipe, b'rubbish\n\xff\xfe\n{"v":1}\n' + b"[" * 3000 + b'\n{"v":1,"w":"e1","seq":-4}\n')
    run.relay.pump()
    run.say("e1")
    assert names(tail.read()) == [("e1", 0), ("e1", 1)]
    assert tail.bad == 0, "the pipe is a hint: only the journal's damage is counted"


def test_writers_do_not_wait_for_each_other(run: Run, tail: RunTail) -> None:
    run.say("e1", journal=False, live=False)
    run.say("s1")
    run.say("e1")
    assert names(tail.read()) == [("s1", 0), ("e1", 1)]


def test_without_a_supervisor_the_journal_alone_is_followed(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.say("e1")
    run.relay.close()
    tail = RunTail(run.root, live=True)
    assert names(tail.read()) == [("e1", 0)]
    run.say("e1")
    assert names(tail.read(timeout_s=0.01) or tail.read()) == [("e1", 1)]
    tail.close()
    run.close()


def test_a_run_that_is_not_live_is_followed_without_a_socket(run: Run) -> None:
    run.say("e1")
    tail = RunTail(run.root)
    assert names(tail.read()) == [("e1", 0)]
    tail.close()


def test_a_supervisor_that_comes_back_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit.runs.tail.RECONNECT_S", 0.0)
    run = Run(tmp_path / "run")
    tail = RunTail(run.root, live=True)
    tail.read()
    run.relay.close()
    assert tail.read() == []
    run.relay = Relay(run.root, run.root / "live.fifo")
    tail.read()
    run.relay.pump()
    run.say("e1", journal=False)
    assert names(tail.read()) == [("e1", 0)]
    tail.close()
    run.close()


def test_a_long_journal_comes_in_parts_and_what_is_live_meanwhile_is_not_lost(run: Run, tail: RunTail) -> None:
    for _ in range(300):
        run.say("e1", live=False)
    run.say("e1", journal=False)
    found = tail.read(max_records=1)
    assert tail.behind
    found += rest(tail)
    assert names(found) == [("e1", seq) for seq in range(301)]


def test_a_record_too_long_for_the_pipe_comes_by_the_journal(run: Run, tail: RunTail) -> None:
    run.say("e1", live=False, event=Warned(message="x" * 60_000))
    run.say("e1")
    assert names(tail.read()) == [("e1", 0), ("e1", 1)]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_attached_at_any_moment_and_whatever_the_pipe_loses_every_record_of_the_journal_is_given_in_order(
    tmp_path: Path, seed: int
) -> None:
    draw = random.Random(seed)
    folder = tmp_path / f"run-{seed}-{draw.random()}"
    run = Run(folder)
    writers = ["e1", "s1", "s2"]
    for _ in range(draw.randrange(40)):
        run.say(draw.choice(writers), live=draw.random() < 0.7)
    tail = RunTail(folder, live=True)
    found = tail.read(max_records=draw.choice([1, 5, 2000]))
    for _ in range(draw.randrange(120)):
        run.say(draw.choice(writers), live=draw.random() < 0.7)
        if draw.random() < 0.2:
            run.relay.pump()
            found += tail.read(max_records=draw.choice([1, 5, 2000]))
    run.relay.pump()
    found += rest(tail)
    tail.close()
    run.close()
    expected = list(read_journal(run.journal))
    for writer in writers:
        assert [r.event.seq for r in found if r.event.w == writer] == [e.seq for e in expected if e.w == writer]


def test_an_end_that_only_the_pipe_has_is_believed_when_the_supervisor_has_gone(run: Run, tail: RunTail) -> None:
    """Any process of this user can write into the pipe; a supervisor on a full disk writes its end only there."""
    lock = Lock(RunDir(run.root).supervisor_lock)
    assert lock.acquire({})
    run.say("s1")
    assert len(tail.read()) == 1
    run.say("s1", journal=False, event=RunEnded(state=RunStatus.SUCCEEDED))
    for _ in range(3):
        assert tail.read() == []
    run.seq["s1"] -= 1
    run.say("s1")  # the real record of that number: the run goes on
    assert [type(record.event) for record in tail.read()] == [Phase]
    run.say("s1", journal=False, event=RunEnded(state=RunStatus.FAILED))
    assert tail.read() == []
    lock.release()
    assert [record.event.state for record in tail.read() if isinstance(record.event, RunEnded)] == [RunStatus.FAILED]


FORGED: dict[str, Event] = {
    "stage_succeeded": StageSucceeded(stage="s", attempt=1, fingerprint="f", manifest_sha256="m"),
    "attempt_ended": AttemptEnded(stage="s", attempt=1, reason=EndReason.SUCCEEDED),
    "checkpoint_committed": CheckpointCommitted(stage="s", attempt=1, step=5, path="p", sha256="s", healthy=True),
    "artifact_committed": ArtifactCommitted(
        stage="s", attempt=1, name="a", kind="adapter", path="p", sha256="s", bytes=1
    ),
    "control_applied": ControlApplied(request="pause", by="x", effect="paused", step=5),
    "writer_opened": WriterOpened(role=WriterRole.ENGINE, host="h", boot_id="b", pid=1, start_time=1),
}


@pytest.mark.parametrize("kind", FORGED)
def test_a_fact_that_only_the_pipe_has_waits_for_the_journal_while_the_run_is_supervised(
    run: Run, tail: RunTail, kind: str
) -> None:
    """Any process of this user can write into the pipe: what began, ended or was committed is only in the journal."""
    lock = Lock(RunDir(run.root).supervisor_lock)
    assert lock.acquire({})
    run.say("e1")
    assert len(tail.read()) == 1
    forged = run.say("e1", journal=False, event=FORGED[kind])
    assert tail.read() == []
    run.say("e1", journal=False)  # a younger record leaves a hole before it, which the forged one must not fill
    assert [type(record.event) for record in tail.read()] == [Phase]
    assert tail.read() == []
    run.write_late("e1", forged)  # the real record of that number
    assert [record.event.name for record in tail.read() if isinstance(record.event, Phase)] == ["late"]
    assert tail.read() == []
    believed = run.say("e1", journal=False, event=FORGED[kind])
    assert tail.read() == []
    lock.release()
    assert [record.event.seq for record in tail.read()] == [believed]


def test_a_flood_of_forged_facts_takes_bounded_memory_and_the_journal_s_are_all_returned(
    run: Run, tail: RunTail
) -> None:
    lock = Lock(RunDir(run.root).supervisor_lock)
    assert lock.acquire({})
    for number in range(MOST_WITHHELD + 50):
        run.say(f"f{number}", journal=False, event=FORGED["stage_succeeded"])
        if number % 20 == 0:
            assert tail.read() == []
    run.say("e1", event=FORGED["stage_succeeded"])
    assert [record.event.w for record in tail.read()] == ["e1"]
    lock.release()
    assert len(tail.read()) <= MOST_WITHHELD
