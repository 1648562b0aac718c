"""The health of a run: one word and one sentence about its progress, the same on every screen and in every command.

Only the engine's own records count as progress. The age of its newest record is measured on the engine's machine: with
the monotonic clock if the reader runs there, otherwise with the newest record of any writer of that boot. So neither a
clock that was set nor a second machine changes the judgement, and a sampler that lives does not make a hung engine
look alive. The supervisor judges with the same function.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from cockpit.runs.diagnosis import diagnosis_of
from cockpit.runs.log_lines import stopped_words
from cockpit.runs.stage_view import AttemptView
from cockpit.runs.state import RunState
from cockpit.runs.writer_facts import Work, WriterFacts
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from engines.events.attempts import EngineStalled, Phase, Progress
from engines.events.machine import MachineSampled
from engines.events.writers import WriterOpened
from engines.identity import Identity, boot_id
from engines.words import PHASE_TRAINING, HealthWord, RunStatus, WriterRole

STALLED_STEPS = 20
STALLED_S = 60.0
"""An engine has stalled after 20 times its usual step without progress, and after at least this long."""
SLOW_STEPS = 5
SLOW_S = 10.0
SLOW_FACTOR = 3.0
"""Steps are slow when they take three times as long as usual, or when the next one is late by five usual steps."""
PROGRESS_S = 300.0
"""Shortest patience between two reports of progress: one large tensor or file may take this long."""
DECLARED_S = 1800.0
"""Patience with a phase that reports no progress while it uses no CPU: loading, compiling, writing a large file."""
STARTING_S = 120.0
"""Patience with an engine that was started and has written nothing."""
IDLE_SHARE = 0.01
"""An engine that uses less CPU than this share of a silence is hung, not slow."""
RECENT_STEPS = 8
USUAL_STEPS = 32
WHOLE_STEPS = 256
SAMPLE_INTERVALS = 5
OLD_SAMPLE_S = 30.0
"""Machine figures are old after five usual intervals, and after at least this long."""
_RECORDED = "it recorded its end, and nothing has happened since"
_STOPPED_AT_END = "the engine recorded its end, and its process is stopped (SIGSTOP) and does not exit"
NAMESPACE_S = 60.0
DISK_S = 5.0
"""Silence after which a full disk is named as its cause."""
FULL_BYTES = 1 << 16
BUSY_PERCENT = 90.0
SHARED_CORES = 0.5
BUSY_CORES = 0.05
"""An engine that uses less than this of a core does nothing."""


class Clock(NamedTuple):
    """The reader's time: its boot and monotonic clock, and how long ago it received its newest record.

    A replay has no boot, and its records are never late.
    """

    boot_id: str = ""
    monotonic_s: float = 0.0
    waited_s: float = 0.0

    @staticmethod
    def now(waited_s: float = 0.0) -> Clock:
        """The present on this machine."""
        return Clock(boot_id(), time.monotonic(), waited_s)


class Processes(NamedTuple):
    """The letters of the processes' states in /proc, empty where they cannot be seen from here ("Z" for an engine that
    has ended); whether the run's disk has no space, so that no process can write a record; and the folder in which the
    processes work, where it is not the run's."""

    engine: str = ""
    supervisor: str = ""
    sampler: str = ""
    disk_is_full: bool = False
    elsewhere: Path | None = None
    stopped_ranks: tuple[int, ...] = ()
    """of several processes, those that a signal has stopped"""
    started: str = ""
    """of the process that the supervisor started for the attempt: the engine, or torchrun, which starts the engines"""


class Pace(NamedTuple):
    """What an engine did last, and the time that it usually takes between two such records.

    Attributes:
        work: its newest record of progress.
        phase: the phase that it is in; empty between steps.
        steps: whether it has made steps, so that a pause between records is a step that takes long.
        usual_s: the usual time between two records; None when it is not known.
        recent_s: the time of its newest steps, if that is much longer than usual.
        busy: it uses CPU, so a phase that reports no progress may take as long as it takes.
    """

    work: Work
    phase: str
    steps: bool
    usual_s: float | None = None
    recent_s: float | None = None
    busy: bool = False

    @property
    def patience_s(self) -> float:
        """Seconds without a record until the engine has stalled; infinite while it is paused or waits for data."""
        if self.phase in {HealthWord.WAITING_FOR_DATA, HealthWord.PAUSED}:
            return float("inf")
        usual_s = max(self.usual_s or 0.0, self.recent_s or 0.0)
        if isinstance(self.work, Progress) and (self.work.total is None or self.work.done < self.work.total):
            return max(PROGRESS_S, STALLED_STEPS * usual_s)
        if self.phase or not self.steps:
            return float("inf") if self.busy else DECLARED_S
        return max(STALLED_S, STALLED_STEPS * usual_s)

    @property
    def last(self) -> str:
        """The newest record as text: "step 412", "loading", "120 of 291 tensors"."""
        work = self.work
        if isinstance(work, Progress):
            return fmt.of_unit(work.done, work.total, safe_text(work.unit, 20))
        if self.phase:
            return safe_text(self.phase, 60)
        step = getattr(work, "step", None)
        return f"step {step}" if step is not None else ""


@dataclass(frozen=True)
class Health:
    """How a run is doing.

    Attributes:
        word: one word; a run that is not running has its state here.
        sentence: why; empty where the word says everything.
        concerns: what else is not as it should be: the supervisor, the sampler, the machine.
        silence_s: seconds since the engine's newest record of progress; None without an engine.
        usual_s: the usual time between two records.
        machine_is_old: the newest figures about the machine are not its present ones.
    """

    word: str
    sentence: str = ""
    concerns: tuple[str, ...] = ()
    silence_s: float | None = None
    usual_s: float | None = None
    machine_is_old: bool = False

    @property
    def needs_attention(self) -> bool:
        """Whether the engine makes no progress, or not at its pace."""
        return HealthWord(self.word).needs_attention

    @property
    def line(self) -> str:
        """The word, the sentence and the concerns in one line."""
        return "; ".join([": ".join(filter(None, (self.word, self.sentence))), *self.concerns])

    def to_json(self) -> dict[str, Any]:
        """The value of `health` in `show --json` and `ls --json`."""
        return {
            "word": self.word,
            "sentence": self.sentence,
            "concerns": list(self.concerns),
            "silence_s": None if self.silence_s is None else round(self.silence_s, 3),
            "usual_s": self.usual_s,
        }


def health(state: RunState, real: RunStatus, clock: Clock, processes: Processes | None = None) -> Health:
    """The health of a run.

    Args:
        state: the fold of its records.
        real: its state after a check of its processes.
        clock: the reader's time.
        processes: the states of its processes, where the reader can see them.
    """
    if real not in {RunStatus.RUNNING, RunStatus.PAUSED}:
        return Health(str(real))
    seen = processes or Processes()
    concerns, old = _concerns(state, clock, seen)
    stage = state.current_stage
    concerns += tuple(found.short for found in diagnosis_of(stage)) if stage is not None else ()
    attempt = stage.current if stage is not None else None
    if stage is None or attempt is None or attempt.ended:
        return Health(*_between(attempt, seen), concerns, machine_is_old=old)
    engine = engine_of(state, attempt)
    if engine is None or engine.worked is None:
        silence_s = _since_start(state, attempt, clock)
        late = silence_s is not None and silence_s > STARTING_S
        word, sentence = HealthWord.STARTING, ""
        if late:
            word, sentence = HealthWord.STALLED, f"the engine has written nothing for {_span(silence_s)}"
        return Health(word, sentence, concerns, silence_s, machine_is_old=old)
    silence_s = silence(state, engine, clock)
    pace = pace_of(attempt, engine.worked)._replace(busy=not old and _uses_cpu(state.machine(), stage.name))
    if seen.engine == "T":
        word, sentence = HealthWord.SUSPENDED, _suspended(silence_s, seen.stopped_ranks)
    elif seen.engine == "Z" and seen.supervisor == "T":  # one that runs records the end within a second
        word, sentence = HealthWord.ENGINE_ENDED, f"nothing has recorded how; no progress for {_span(silence_s)}"
    elif seen.disk_is_full and silence_s > DISK_S:
        word, sentence = HealthWord.UNKNOWN, f"no record for {_span(silence_s)}, because the run's disk is full"
    elif real == RunStatus.PAUSED:
        word, sentence = HealthWord.PAUSED, ""
    else:
        told = attempt.stalled
        word, sentence = judge(pace, silence_s, told if told is not None and told.m >= engine.worked.m else None)
    return Health(word, sentence, concerns, silence_s, pace.usual_s, old)


def _between(attempt: AttemptView | None, seen: Processes) -> tuple[HealthWord, str]:
    """The word and the sentence where no engine works: before the first, and after one has recorded its end."""
    ended = attempt is not None and attempt.ended
    if ended and seen.supervisor == "T":  # one that runs continues within a second
        return HealthWord.ENGINE_ENDED, _RECORDED
    if ended and seen.started == "T":
        return HealthWord.SUSPENDED, _STOPPED_AT_END
    return HealthWord.STARTING, ""


def judge(pace: Pace, silence_s: float, stalled: EngineStalled | None = None) -> tuple[HealthWord, str]:
    """The word and the sentence for a pace and a silence. `stalled` is the supervisor's record about this silence."""
    usual = f", usually {fmt.duration(pace.usual_s)}" if pace.usual_s is not None else ""
    if silence_s > pace.patience_s or stalled is not None:
        return _stalled(pace, silence_s, stalled, usual)
    if pace.phase == HealthWord.WAITING_FOR_DATA:
        return HealthWord.WAITING_FOR_DATA, f"no data for {_span(silence_s)}{usual}"
    if pace.phase:
        return HealthWord(safe_text(pace.phase, 60)), ""
    if pace.steps and silence_s > max(SLOW_S, SLOW_STEPS * max(pace.usual_s or 0.0, pace.recent_s or 0.0)):
        return HealthWord.SLOW, f"no step for {_span(silence_s)}{usual}"
    if pace.recent_s is not None:
        return HealthWord.SLOW, f"a step takes {fmt.duration(pace.recent_s)}{usual}"
    return HealthWord.RUNNING, ""


def _stalled(pace: Pace, silence_s: float, stalled: EngineStalled | None, usual: str) -> tuple[HealthWord, str]:
    if stalled is not None and stalled.process_state == "T":
        return HealthWord.SUSPENDED, _suspended(silence_s, stalled.stopped_ranks)
    idle = stalled is not None and stalled.cpu_s is not None and stalled.cpu_s < IDLE_SHARE * stalled.silence_s
    what = "no step" if pace.steps and not pace.phase else f"{safe_text(pace.phase or 'no phase', 60)}: no progress"
    sentence = f"{what} for {_span(silence_s)}{usual}"
    return (HealthWord.HUNG, f"{sentence}; it uses no CPU") if idle else (HealthWord.STALLED, sentence)


def pace_of(attempt: AttemptView, work: Work) -> Pace:
    """The pace of an attempt whose newest record is `work`."""
    times = [track.columns["step_s"] for track in attempt.tracks if len(track.steps)]
    if not times:
        phase = attempt.phase
        inside = isinstance(work, Phase | Progress)
        name = phase.name if phase is not None and inside else ""
        gaps = [gap for track in attempt.tracks for gap in _gaps([m for m, _ in track.rate])]
        return Pace(work, name, steps=False, usual_s=median(gaps) if gaps and isinstance(work, Progress) else None)
    whole = max(times, key=len)
    return step_pace(work, whole)


def step_pace(work: Work, step_s: Sequence[float]) -> Pace:
    """The pace of a training: `step_s` are the durations of its steps, oldest first."""
    phase = work.name if isinstance(work, Phase) and work.name != PHASE_TRAINING else ""
    if len(step_s) >= 2 * RECENT_STEPS:
        recent_s = median(step_s[-RECENT_STEPS:])
        before_s = median(step_s[: -RECENT_STEPS : max(1, len(step_s) // WHOLE_STEPS)])
        if recent_s >= SLOW_FACTOR * before_s:
            return Pace(work, phase, steps=True, usual_s=before_s, recent_s=recent_s)
    return Pace(work, phase, steps=True, usual_s=median(step_s[-USUAL_STEPS:]))


def engine_of(state: RunState, attempt: AttemptView) -> WriterFacts | None:
    """The writer of an attempt's engine: the one with the newest record of progress in it."""
    found = [w for w in state.writers if w.worked is not None and _belongs(w.worked, attempt)]
    return max(found, key=lambda w: (w.launch, w.worked.t if w.worked else 0.0, w.name), default=None)


def silence(state: RunState, engine: WriterFacts, clock: Clock) -> float:
    """Seconds since the engine's newest record of progress, on the engine's machine."""
    assert engine.worked is not None
    return _age(state, engine, engine.worked.m, clock)


def _age(state: RunState, writer: WriterFacts, m: float, clock: Clock) -> float:
    """Seconds since the monotonic time `m` of a writer's boot."""
    boot = writer.opened.boot_id if writer.opened is not None else ""
    # A record of the future is one of another time namespace (time_namespaces(7)): its clock is not the reader's.
    if boot and boot == clock.boot_id and m <= clock.monotonic_s + NAMESPACE_S:
        return max(0.0, clock.monotonic_s - m)
    same = [w.m for w in state.writers if w.opened is not None and w.opened.boot_id == boot] if boot else [writer.m]
    return max(0.0, max(same, default=m) - m) + clock.waited_s


def _belongs(work: Work, attempt: AttemptView) -> bool:
    return work.stage == attempt.stage and getattr(work, "attempt", attempt.attempt) == attempt.attempt


def _since_start(state: RunState, attempt: AttemptView, clock: Clock) -> float | None:
    """Seconds since the supervisor announced an attempt whose engine has written nothing."""
    if attempt.announced_m is None:
        return None
    writer = next((w for w in state.writers if w.name == attempt.announced_by), None)
    return None if writer is None else _age(state, writer, attempt.announced_m, clock)


def _concerns(state: RunState, clock: Clock, seen: Processes) -> tuple[tuple[str, ...], bool]:
    """What is not as it should be beside the engine, and whether the machine's figures are old."""
    found = []
    if seen.elsewhere:
        found.append(elsewhere_words(seen.elsewhere))
    if seen.supervisor == "T":
        found.append("the supervisor is stopped (SIGSTOP): it starts no stage and answers no screen")
    if seen.started == "T" and seen.engine not in {"T", ""}:
        found.append("torchrun is stopped (SIGSTOP): it does not notice when a process ends")
    sample = state.machine()
    age_s, usual_s = _sample_age(state, sample, clock)
    old = age_s is not None and age_s > max(OLD_SAMPLE_S, SAMPLE_INTERVALS * (usual_s or 0.0))
    if seen.sampler == "T":
        found.append("the sampler is stopped (SIGSTOP): memory and load are old")
    elif old and age_s is not None:
        found.append(f"no machine sample for {_span(age_s)}")
    if sample is not None and not old and seen.sampler != "T":
        found += _shared_cores(sample)
        found += _shared_cards(sample)
    return tuple(found), old or (seen.sampler == "T" and sample is not None)


def _sample_age(state: RunState, sample: MachineSampled | None, clock: Clock) -> tuple[float | None, float | None]:
    """Seconds since the newest machine sample, and the usual time between two; None where unknown."""
    if sample is None:
        return None, None
    writer = next((w for w in state.writers if w.name == sample.w), None)
    if writer is None:
        return None, None
    gaps = _gaps(list(state.machine_series("cpu_percent").x[-RECENT_STEPS:]))
    return _age(state, writer, sample.m, clock), median(gaps) if gaps else None


def _uses_cpu(sample: MachineSampled | None, stage: str) -> bool:
    """Whether the newest sample saw the stage's engine use CPU."""
    if sample is None or sample.stage != stage or sample.engine_cpu_percent is None or not sample.cores:
        return False
    return sample.engine_cpu_percent / 100 * sample.cores >= BUSY_CORES


def _shared_cores(sample: MachineSampled) -> Iterable[str]:
    """Whether other processes use the cores that the engine needs."""
    if sample.cpu_percent is None or sample.engine_cpu_percent is None or not sample.cores:
        return
    others = (sample.cpu_percent - sample.engine_cpu_percent) / 100 * sample.cores
    if sample.cpu_percent >= BUSY_PERCENT and others >= SHARED_CORES:
        yield f"other processes use {fmt.exact(round(others, 1))} of {sample.cores} cores"


def _shared_cards(sample: MachineSampled) -> Iterable[str]:
    """Whether other processes compute on the engine's cards, which have the engine's own processes on them."""
    for device in sample.devices:
        if device.other_processes:
            others = (
                "another process computes"
                if device.other_processes == 1
                else (f"{device.other_processes} other processes compute")
            )
            yield f"{others} on the engine's gpu{device.id}"


def _gaps(times: Sequence[float]) -> list[float]:
    return [b - a for a, b in pairwise(times) if b > a]


def _span(seconds: float | None) -> str:
    """A duration that changes rarely: whole seconds, then whole minutes."""
    seconds = seconds or 0.0
    return fmt.minutes(seconds) if seconds >= 60 else fmt.duration(float(int(seconds)))


def elsewhere_words(folder: Path) -> str:
    """That a run's processes work in another folder than the run's."""
    shown = safe_text(str(folder), 300)
    if folder.exists():
        return f"its processes work in {shown}, of which this is a copy: they save nothing here and take no request"
    return f"it was moved while it runs: its processes save nothing and take no request until it is back at {shown}"


def _suspended(silence_s: float, ranks: Sequence[int] = ()) -> str:
    return f"{stopped_words(ranks)}; no progress for {_span(silence_s)}"


def identity_in(opened: WriterOpened) -> Identity:
    """The process of a record, as it numbers itself."""
    return Identity(opened.pid, opened.start_time, opened.boot_id)


def process_states(
    state: RunState,
    supervisor: str,
    is_engine: Callable[[Identity], bool],
    is_sampler: Callable[[Identity], bool],
    root: Path | None = None,
    elsewhere: Callable[[Identity | None], Path | None] = lambda _engine: None,
    here: Callable[[WriterOpened], Identity] = identity_in,
    started: Callable[[str, int], Identity | None] = lambda _stage, _attempt: None,
) -> Processes:
    """The states of the run's processes as far as this machine can see them.

    Args:
        state: the fold of the run's records.
        supervisor: the state of the process that holds the supervisor's lock; "" when it cannot be seen.
        is_engine: whether a process that the journal names is really an engine of the run.
        is_sampler: the same for its sampler.
        root: the run directory, whose disk may be full; None: not looked at.
        elsewhere: the folder in which the run's processes, with this engine, work, if it is not the run's.
        here: the process of a record, as this machine numbers it.
        started: the process that the supervisor started for an attempt of a stage.
    """
    stage = state.current_stage
    attempt = stage.current if stage is not None else None
    engine = engine_of(state, attempt) if attempt is not None and not attempt.ended else None
    samplers = [w for w in state.writers if w.role == WriterRole.SAMPLER]
    newest = max(samplers, key=lambda w: (w.launch, w.t, w.name), default=None)
    named, shown = _identity_of(engine, here), _state_of(engine, is_engine, here)
    if named is not None and supervisor and named.boot_id == boot_id() and not named.is_alive():
        shown = "Z"  # the supervisor is seen from here, so the engine would be too
    stopped = () if attempt is None or attempt.ended else _stopped_ranks(attempt, is_engine, here)
    shown = "T" if stopped else shown
    full = root is not None and _is_full(root)
    at = elsewhere(named if shown not in {"", "Z"} else None)
    first = started(attempt.stage, attempt.attempt) if attempt is not None else None
    letter = first.state() if first is not None and is_engine(first) else ""
    return Processes(shown, supervisor, _state_of(newest, is_sampler, here), full, at, stopped, letter)


def _stopped_ranks(
    attempt: AttemptView, is_engine: Callable[[Identity], bool], here: Callable[[WriterOpened], Identity]
) -> tuple[int, ...]:
    """Of an attempt of several processes, those that a signal has stopped; as far as this machine can see them."""
    if len(attempt.engines) < 2:
        return ()
    return tuple(
        sorted(w.opened.rank for w in attempt.engines if w.opened is not None and _state_of(w, is_engine, here) == "T")
    )


def _is_full(root: Path) -> bool:
    try:
        disk = os.statvfs(root)
    except OSError:
        return False
    return disk.f_blocks > 0 and disk.f_bavail * disk.f_frsize < FULL_BYTES


def _identity_of(writer: WriterFacts | None, here: Callable[[WriterOpened], Identity]) -> Identity | None:
    opened = writer.opened if writer is not None else None
    return None if opened is None else here(opened)


def _state_of(
    writer: WriterFacts | None, is_its: Callable[[Identity], bool], here: Callable[[WriterOpened], Identity]
) -> str:
    named = _identity_of(writer, here)
    return named.state() if named is not None and is_its(named) else ""
