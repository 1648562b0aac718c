from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.replay import playback as module
from cockpit.replay.playback import LONGEST_PAUSE_S, Playback, Timeline
from cockpit.replay.recorded import RecordedEvents
from cockpit.runs.state import fold
from engines.events.kinds import AnyEvent
from engines.events.steps import Step
from engines.journal import read_journal
from tests.tui import journals

EVENTS = journals.failed().events


@settings(max_examples=15)
@given(st.lists(st.integers(0, len(EVENTS)), min_size=1, max_size=8))
def test_any_seeks_end_in_the_fold_of_the_events_before_the_playhead(seeks: list[int]) -> None:
    before = module.SHORTEST_KEYFRAME
    module.SHORTEST_KEYFRAME = 300
    try:
        playback = Playback(EVENTS)
    finally:
        module.SHORTEST_KEYFRAME = before
    for index in seeks:
        playback.seek(index)
    assert playback.state.digest() == fold(EVENTS[: seeks[-1]]).digest()


def test_reading_a_keyframe_does_not_change_it() -> None:
    playback = Playback(EVENTS)
    playback._spacing = 200
    playback.seek(len(EVENTS))
    for index in (450, 1000, 450, 210):
        playback.seek(index)
        playback.state.series("atlas", "loss").envelope(0, 820, 50)
        assert playback.state == fold(EVENTS[:index])


def test_samples_are_steps_and_reports_of_progress() -> None:
    playback = Playback(EVENTS)
    step_300 = next(n for n, e in enumerate(EVENTS, 1) if isinstance(e, Step) and e.step == 300)
    playback.seek(step_300)
    playback.seek_samples(1)
    last = EVENTS[playback.index - 1]
    assert isinstance(last, Step)
    assert last.step == 301
    playback.seek_samples(-1)
    assert playback.index == step_300
    playback.seek_samples(-10_000)
    assert playback.index == 0
    playback.seek_samples(10_000)
    assert playback.at_end


def test_time_passes_at_the_chosen_speed() -> None:
    playback = Playback(journals.live(100).events)
    playback.set_speed(2.0)
    playback.toggle()
    playback.tick(10.0)
    assert playback.elapsed_s <= 20.0
    assert playback._clock[playback.index] > 20.0
    playback.set_speed(math.inf)
    while playback.playing:
        playback.tick(0.2)
    assert playback.at_end


def test_a_long_gap_between_two_events_is_played_short() -> None:
    journal = journals.live(20)
    journal.t += 40_000
    journals.training(journal, attempt=2, last=5)
    playback = Playback(journal.events)
    assert playback.length_s < 30 * 4 * 10 + LONGEST_PAUSE_S
    assert playback.length_s > 0


def test_moments_are_checkpoints_guards_and_failures_in_order() -> None:
    playback = Playback(EVENTS)
    assert [m.character for m in playback.moments if m.character != "|"] == [*"◆◆◆◆◆◆!✗", *"◆!✗", "✗", "✗"]
    playback.seek(0)
    seen = []
    while playback.seek_moment(1) is not None:
        seen.append(playback.index)
    assert seen == sorted({m.index for m in playback.moments})
    assert playback.seek_moment(-1) is not None


def test_going_to_a_step_finds_the_last_time_it_was_taken() -> None:
    playback = Playback(EVENTS)
    assert playback.seek_step(550, "atlas")
    last = EVENTS[playback.index - 1]
    assert isinstance(last, Step)
    assert (last.attempt, last.step) == (2, 550)
    assert not playback.seek_step(5000)


def test_a_recorded_run_is_read_with_the_parts_of_other_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = journals.failed().write(tmp_path / "run")
    lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
    part = [line for line in lines if b'"w":"samp"' in line]
    rest = [line for line in lines if b'"w":"samp"' not in line]
    (run / "journal.d").mkdir()
    (run / "journal.d" / "samp.jsonl").write_bytes(b"".join(part))
    (run / "journal.jsonl").write_bytes(b"".join(rest) + b"not a record\n")
    recorded = RecordedEvents(run)
    assert recorded.unreadable == 1
    assert fold(recorded) == fold(EVENTS)
    times = [event.t for event in recorded]
    assert times == sorted(times)
    assert list(recorded.timeline.clock) == list(Timeline.of(list(recorded)).clock)
    assert RecordedEvents(run / "journal.d" / "samp.jsonl")[0].w == "samp"
    monkeypatch.setattr("cockpit.replay.recorded.PART_RECORDS", 100)
    in_parts, shares = RecordedEvents(run, whole=False), [0.0]
    assert len(in_parts) == 0
    while not in_parts.is_read:
        in_parts.read_part()
        shares.append(in_parts.share_read)
    assert len(shares) > 2
    assert shares == sorted(shares)
    assert repr(list(in_parts)) == repr(list(recorded))
    assert list(in_parts.timeline.clock) == list(recorded.timeline.clock)


@settings(max_examples=15)
@given(st.integers(0, 1 << 32))
def test_recorded_events_are_those_of_the_journal_wherever_one_looks(seed: int) -> None:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        run = journals.failed().write(Path(folder) / "run")
        lines = (run / "journal.jsonl").read_bytes().splitlines(keepends=True)
        for _ in range(4):
            at = rng.randrange(len(lines))
            lines[at] = rng.choice([b"{torn", b"\0\0", b"", b"junk\n"]) + lines[at]
        (run / "journal.jsonl").write_bytes(b"".join(lines) + lines[-1][: rng.randrange(90)])
        events = list(read_journal(run / "journal.jsonl"))
        recorded = RecordedEvents(run)
        assert len(recorded) == len(events)
        assert repr(list(recorded)) == repr(events), "a NaN is no equal to itself"
        for _ in range(5):
            a, b = sorted(rng.randrange(len(events) + 1) for _ in range(2))
            assert repr(recorded[a:b]) == repr(events[a:b])
        assert recorded[-1] == events[-1]
        played, plain = Playback(recorded, recorded.timeline), Playback(events)
        assert [m.index for m in played.moments] == [m.index for m in plain.moments]
        played.seek(len(events) // 2)
        assert played.state == fold(events[: len(events) // 2])
        recorded.close()


def test_a_recorded_run_keeps_places_and_no_events(tmp_path: Path) -> None:
    recorded = RecordedEvents(journals.failed().write(tmp_path / "run"))
    assert recorded._kept == {}
    assert {array.itemsize for array in (recorded._place, recorded._length, recorded._file)} <= {4, 8}
    assert len(recorded._place) == len(recorded) == len(EVENTS)


def test_a_journal_that_is_replaced_while_it_plays_is_played_as_it_was_and_a_changed_one_says_so(
    tmp_path: Path,
) -> None:
    run = journals.failed().write(tmp_path / "run")
    journal = run / "journal.jsonl"
    recorded = RecordedEvents(run)
    (tmp_path / "other").write_bytes(b"")
    journal.rename(tmp_path / "old")
    (tmp_path / "other").rename(journal)
    assert fold(recorded) == fold(EVENTS)
    (tmp_path / "old").write_bytes(b"")
    assert "cannot be read any more" in fold(recorded[5:6]).log()[-1].text


def test_a_seek_over_a_long_run_decodes_a_bounded_number_of_events_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cockpit.replay.playback.FOLDED_AT_ONCE", 100)
    recorded = RecordedEvents(journals.failed().write(tmp_path / "run"))
    taken: list[int] = []
    events = recorded._events

    def counted(indexes: range) -> Iterator[AnyEvent]:
        taken.append(len(indexes))
        return events(indexes)

    monkeypatch.setattr(recorded, "_events", counted)
    playback = Playback(recorded, recorded.timeline)
    playback.seek(len(recorded))
    assert sum(taken) == len(recorded)
    assert max(taken) == 100
    assert playback.state == fold(EVENTS)
