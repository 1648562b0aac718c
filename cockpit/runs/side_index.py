"""The side index: the fold of a journal up to a place in it, as bytes, so that a reader folds only what follows.

It contains the facts that `RunState` keeps (columns of steps, lifecycle facts, the last lines of the log) and a mark in
each journal file. It is a cache and decides nothing: it is used only while every mark fits its journal, and a state
that was restored from it and then folded further equals the fold of the whole journal.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Mapping

import msgspec

import cockpit
from cockpit.columns.column import Column, MappedColumn, in_memory
from cockpit.runs.sequence import Numbers
from cockpit.runs.series import Series
from cockpit.runs.state import RunState
from cockpit.runs.writer_facts import COLUMNS, MachineTrack, Track, Work, WriterFacts
from engines.events.attempts import Phase, Progress
from engines.events.kinds import AnyEvent
from engines.events.machine import MachineSampled
from engines.events.results import SampledText
from engines.events.steps import Step
from engines.journal import JournalMark

FORMAT = 5
MAGIC = b"cockpit side index\n"
_CHECK_BYTES = 4


class _Points(msgspec.Struct, array_like=True):
    x: memoryview
    y: memoryview
    absent: memoryview


class _Steps(msgspec.Struct, array_like=True):
    stage: str
    attempt: int
    steps: memoryview
    columns: dict[str, memoryview]
    absent: dict[str, memoryview]
    metrics: dict[str, _Points]
    last_step: Step | None
    progress: Progress | None
    rate: list[tuple[float, float]]
    phase: Phase | None


class _Machine(msgspec.Struct, array_like=True):
    host: str
    series: dict[str, _Points]
    last: MachineSampled | None


class _Writer(msgspec.Struct, array_like=True):
    name: str
    next: int
    holes: list[tuple[int, int]]
    t: float
    m: float
    worked: AnyEvent | None
    lifecycle: list[AnyEvent]
    log: list[AnyEvent]
    """the events of the log that are not lifecycle facts"""
    samples: list[SampledText]
    tracks: list[_Steps]
    machines: list[_Machine]


class _Index(msgspec.Struct, array_like=True):
    format: int
    version: str
    marks: dict[str, JournalMark]
    events: int
    writers: list[_Writer]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Index)


def encode_index(state: RunState, marks: Mapping[str, JournalMark]) -> tuple[bytes, bytes] | None:
    """The head and the body of an index; None if it cannot store the facts (a number of 30 digits, for example).

    Args:
        state: the fold of the journals up to the marks.
        marks: the mark in each journal file, by the file's path relative to the run directory.
    """
    index = _Index(FORMAT, cockpit.__version__, dict(marks), state.version, [_stored(w) for w in state.writers])
    try:
        body = _encoder.encode(index)
    except (OverflowError, UnicodeEncodeError, msgspec.MsgspecError):
        return None
    return MAGIC + zlib.crc32(body).to_bytes(_CHECK_BYTES, "little"), body


def decode_index(data: memoryview | bytes) -> tuple[RunState, dict[str, JournalMark]] | None:
    """The state and the marks of an index; None if the bytes are not an index of this version, or are damaged.

    The state's columns stay in `data`.
    """
    view = memoryview(data)
    start = len(MAGIC) + _CHECK_BYTES
    if bytes(view[: len(MAGIC)]) != MAGIC:
        return None
    body = view[start:]
    if zlib.crc32(body).to_bytes(_CHECK_BYTES, "little") != bytes(view[len(MAGIC) : start]):
        return None
    try:
        index = _decoder.decode(body)
        if index.format != FORMAT or index.version != cockpit.__version__:
            return None
        return RunState.restored([_restored(w) for w in index.writers], index.events), index.marks
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, OverflowError, RecursionError):
        return None


# ---- to the index


def _stored(writer: WriterFacts) -> _Writer:
    lifecycle = [event for _, event in writer.lifecycle]
    known = {event.seq for event in lifecycle}
    return _Writer(
        name=writer.name,
        next=writer.numbers.next,
        holes=writer.numbers.holes,
        t=writer.t,
        m=writer.m,
        worked=writer.worked,
        lifecycle=lifecycle,
        log=[event for event in writer.log if event.seq not in known],
        samples=list(writer.samples),
        tracks=[_stored_track(key, track) for key, track in writer.tracks.items()],
        machines=[_Machine(host, _stored_all(m.series), m.last) for host, m in writer.machines.items()],
    )


def _stored_track(key: tuple[str, int], track: Track) -> _Steps:
    return _Steps(
        stage=key[0],
        attempt=key[1],
        steps=_bytes(track.steps),
        columns={name: _bytes(column) for name, column in track.columns.items()},
        absent={name: memoryview(indexes) for name, indexes in track.absent.items()},
        metrics={name: _stored_metric(track, series) for name, series in track.metrics.items()},
        last_step=track.last_step,
        progress=track.progress,
        rate=list(track.rate),
        phase=track.phase,
    )


def _stored_all(series: Mapping[str, Series]) -> dict[str, _Points]:
    return {name: _Points(_bytes(s.given[0]), _bytes(s.given[1]), memoryview(s.given[2])) for name, s in series.items()}


def _stored_metric(track: Track, series: Series) -> _Points:
    """A metric; without positions if it has those of the steps."""
    x, y, absent = series.given
    if track.is_aligned(series):
        return _Points(memoryview(b""), _bytes(y), memoryview(absent))
    return _Points(memoryview(in_memory(x)[: len(y)]), _bytes(y), memoryview(absent))


def _bytes(column: Column) -> memoryview:
    return memoryview(column if isinstance(column, array) else in_memory(column))


# ---- from the index


def _restored(stored: _Writer) -> WriterFacts:
    writer = WriterFacts(stored.name)
    for event in stored.lifecycle:
        writer.on_lifecycle(event)
    log = sorted([*writer.log, *stored.log], key=lambda event: event.seq)
    writer.log.clear()
    writer.log.extend(log)
    writer.numbers, writer.t = Numbers(stored.next, stored.holes), stored.t
    writer.m = stored.m
    if stored.worked is not None:
        if not isinstance(stored.worked, Work):
            raise ValueError("not a record of an engine's work")
        writer.worked = stored.worked
    writer.samples.extend(stored.samples)
    writer.tracks = {(track.stage, track.attempt): _restored_track(track) for track in stored.tracks}
    writer.machines = {machine.host: _restored_machine(machine) for machine in stored.machines}
    return writer


def _restored_track(stored: _Steps) -> Track:
    track = Track()
    if set(stored.columns) != set(track.columns) or set(stored.absent) != set(track.absent):
        raise ValueError("other columns")
    track.steps = _mapped(stored.steps, "d")
    track.columns = {name: _mapped(column, COLUMNS[name]) for name, column in stored.columns.items()}
    if any(len(column) != len(track.steps) for column in track.columns.values()):
        raise ValueError("columns of different lengths")
    track.absent = {name: _indexes(indexes) for name, indexes in stored.absent.items()}
    for name, points in stored.metrics.items():
        aligned = len(points.x) == 0 and len(points.y) > 0
        track.metrics[name] = _restored_series(points, track.steps if aligned else None)
    track.last_step, track.progress, track.phase = stored.last_step, stored.progress, stored.phase
    track.rate.extend((t, done) for t, done in stored.rate)
    return track


def _restored_machine(stored: _Machine) -> MachineTrack:
    machine = MachineTrack()
    machine.series = {name: _restored_series(points) for name, points in stored.series.items()}
    machine.last = stored.last
    return machine


def _restored_series(points: _Points, steps: Column | None = None) -> Series:
    x = _mapped(points.x, "d") if steps is None else steps
    y, absent = _mapped(points.y, "d"), _indexes(points.absent)
    if len(x) != len(y):
        raise ValueError("points of different lengths")
    return Series(x, y, absent)


def _mapped(data: memoryview, kind: str) -> MappedColumn:
    return MappedColumn(data.cast("f") if kind == "f" else data.cast("d"))


def _indexes(data: memoryview) -> array[int]:
    found: array[int] = array("q")
    found.frombytes(data)
    return found
