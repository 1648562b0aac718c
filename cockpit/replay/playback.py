"""Playing a run back: a clock, a position in its journal, and the fold up to that position.

A position is a number of events, and the state is the fold of exactly those events, so that screens draw it like a live
run. A seek backwards starts from a keyframe, a stored copy of the state, so that it stays fast in a million events.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cockpit.runs.state import RunState
from engines.events.attempts import AttemptEnded, Progress
from engines.events.kinds import AnyEvent
from engines.events.runs import ControlApplied, RunEnded, RunStarted, StageFailed, StageStarted
from engines.events.steps import CheckpointCommitted, GuardTripped, Step
from engines.words import StartReason

SPEEDS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, math.inf)
LONGEST_PAUSE_S = 30.0
"""A longer gap in the journal (such as a night before a resume) is played as a gap of this length."""
EVENTS_PER_TICK = 4000
KEYFRAMES = 4
FOLDED_AT_ONCE = 4000
"""Events that are decoded before they are folded; a seek over a long run decodes it in such parts."""
SHORTEST_KEYFRAME = 4000


@dataclass(frozen=True)
class Moment:
    """A mark on the timeline: the number of events up to and including it, a character, a text, and its step."""

    index: int
    character: str
    text: str
    step: int | None = None


class Timeline:
    """The playing time, the samples and the marks of a run's events, made in one pass over them.

    Attributes:
        clock: playing time after each event, seconds: the run's time with long gaps cut to `LONGEST_PAUSE_S`.
        samples: the number of events up to each step and each report of progress.
        moments: the marks.
    """

    def __init__(self) -> None:
        self.clock: array[float] = array("d")
        self.samples: array[int] = array("q")
        self.moments: list[Moment] = []
        self._latest: float | None = None
        self._steps: dict[str, tuple[array[float], array[int]]] = {}

    @classmethod
    def of(cls, events: Iterable[AnyEvent]) -> Timeline:
        """The timeline of these events."""
        timeline = cls()
        for event in events:
            timeline.add(event)
        return timeline

    def add(self, event: AnyEvent) -> None:
        """Add the next event."""
        before = self.clock[-1] if self.clock else 0.0
        passed_s = 0.0 if self._latest is None else max(0.0, event.t - self._latest)
        self._latest = event.t if self._latest is None else max(self._latest, event.t)
        self.clock.append(before + min(passed_s, LONGEST_PAUSE_S))
        index = len(self.clock)
        if isinstance(event, Step):
            self.samples.append(index)
            if event.stage not in self._steps:
                self._steps[event.stage] = (array("d"), array("q"))
            steps, indexes = self._steps[event.stage]
            steps.append(event.step)
            indexes.append(index)
        elif isinstance(event, Progress):
            self.samples.append(index)
        else:
            moment = _moment(index, event)
            if moment is not None:
                self.moments.append(moment)

    def index_of_step(self, step: int, stage: str | None = None) -> int | None:
        """The number of events up to the last record of this step, or of the next higher one; None without one."""
        best: tuple[float, int] | None = None
        for name, (steps, indexes) in self._steps.items():
            if stage not in {None, name}:
                continue
            for number, index in zip(steps, indexes, strict=True):
                if number >= step and (best is None or (number, -index) <= (best[0], -best[1])):
                    best = (number, index)
        return None if best is None else best[1]


class Playback:
    """A run's events with a playhead.

    Args:
        events: the run's events, each writer's in the order of writing.
        timeline: the times and marks of exactly these events; made from them if it is missing.

    Attributes:
        index: number of events before the playhead.
        playing: whether the playback is running.
    """

    def __init__(self, events: Sequence[AnyEvent], timeline: Timeline | None = None) -> None:
        self.events = events
        self._timeline = timeline if timeline is not None else Timeline.of(events)
        self.index = 0
        self.playing = False
        self.state = RunState()
        self._speed = SPEEDS.index(8.0)
        self._clock = self._timeline.clock
        self._samples = self._timeline.samples
        self.moments = self._timeline.moments
        self._now = 0.0
        self._keyframes: dict[int, RunState] = {}
        self._spacing = max(SHORTEST_KEYFRAME, math.ceil(len(events) / KEYFRAMES))

    def __len__(self) -> int:
        return len(self.events)

    # ---- the clock

    @property
    def speed(self) -> float:
        """Seconds of the run per second; infinite for as fast as possible."""
        return SPEEDS[self._speed]

    def set_speed(self, speed: float) -> None:
        """Set the nearest of the `SPEEDS`."""
        self._speed = min(
            range(len(SPEEDS)), key=lambda n: abs(math.log(min(SPEEDS[n], 1e6) / min(max(speed, 1e-6), 1e6)))
        )

    def change_speed(self, by: int) -> None:
        """Set the next slower or faster speed."""
        self._speed = min(len(SPEEDS) - 1, max(0, self._speed + by))

    @property
    def elapsed_s(self) -> float:
        """Playing time up to the playhead: the run's time with long gaps cut to `LONGEST_PAUSE_S`."""
        return self._clock[self.index - 1] if self.index else 0.0

    @property
    def length_s(self) -> float:
        """Playing time of the complete run."""
        return self._clock[-1] if self._clock else 0.0

    @property
    def t(self) -> float:
        """The time of the playhead's event, Unix seconds."""
        return self.events[max(0, self.index - 1)].t if self.events else 0.0

    @property
    def at_end(self) -> bool:
        """Whether the playhead is after the last event."""
        return self.index >= len(self.events)

    def toggle(self) -> None:
        """Play or pause; at the end, play again from the start."""
        if not self.playing and self.at_end:
            self.seek(0)
        self.playing = not self.playing

    def tick(self, passed_s: float) -> bool:
        """Advance the playback by a real time; returns whether the playhead moved."""
        if not self.playing:
            return False
        if math.isinf(self.speed):
            target = self.index + EVENTS_PER_TICK
            self._now = self._clock[min(target, len(self)) - 1] if self.events else 0.0
        else:
            self._now += passed_s * self.speed
            target = bisect_right(self._clock, self._now)
        moved = target > self.index
        if moved:
            self._go(min(target, len(self)))
        if self.at_end:
            self.playing = False
        return moved

    # ---- seeking

    def seek(self, index: int) -> None:
        """Put the playhead after `index` events."""
        self._go(max(0, min(len(self), index)))
        self._now = self.elapsed_s

    def seek_samples(self, by: int) -> None:
        """Move by a number of samples (steps or progress reports)."""
        at = bisect_right(self._samples, self.index)
        if by > 0:
            target = at + by - 1
            self.seek(self._samples[target] if target < len(self._samples) else len(self))
        else:
            here = at > 0 and self._samples[at - 1] == self.index
            target = at + by - (1 if here else 0)
            self.seek(self._samples[target] if target >= 0 else 0)

    def seek_moment(self, by: int) -> Moment | None:
        """Move to the next or previous moment (checkpoint, guard, failure, …); None if there is no further moment."""
        indexes = [moment.index for moment in self.moments]
        at = bisect_right(indexes, self.index) if by > 0 else bisect_left(indexes, self.index) - 1
        if not 0 <= at < len(self.moments):
            return None
        self.seek(self.moments[at].index)
        return self.moments[at]

    def seek_step(self, step: int, stage: str | None = None) -> bool:
        """Move to the last record of this step, or of the next higher one; False if there is no such step."""
        index = self._timeline.index_of_step(step, stage)
        if index is None:
            return False
        self.seek(index)
        return True

    def share(self, index: int) -> float:
        """The position of an event on the timeline, 0 to 1."""
        if not self.events or self.length_s <= 0:
            return 0.0
        return self._clock[max(0, min(index, len(self)) - 1)] / self.length_s if index else 0.0

    def _go(self, index: int) -> None:
        if index < self.index:
            start = max((key for key in self._keyframes if key <= index), default=0)
            self.state = self._keyframes[start].copy() if start else RunState()
            self.index = start
        while self.index < index:
            boundary = (self.index // self._spacing + 1) * self._spacing
            stop = min(index, boundary, self.index + FOLDED_AT_ONCE)
            self.state.apply_all(self.events[self.index : stop])
            self.index = stop
            if stop == boundary and stop not in self._keyframes and stop < len(self):
                self._keyframes[stop] = self.state.copy()


def _is_failure(event: AttemptEnded) -> bool:
    """Whether an attempt's end is a failure; of an end that both recorded, only the engine's record counts."""
    return not event.reason.is_from_engine or (event.exit is None and event.reason.is_failure_from_engine)


def _moment(index: int, event: AnyEvent) -> Moment | None:
    match event:
        case CheckpointCommitted():
            if event.evaluated and not event.best:
                return None  # its save was a moment before
            return Moment(
                index, "◆", f"checkpoint {event.step} of {event.stage}{' ★' if event.best else ''}", event.step
            )
        case GuardTripped():
            return Moment(index, "!", f"guard {event.guard} at step {event.step}", event.step)
        case AttemptEnded() if _is_failure(event):
            return Moment(index, "✗", f"{event.stage} attempt {event.attempt} ended: {event.reason}", event.step)
        case StageFailed():
            return Moment(index, "✗", f"stage {event.stage} failed: {event.reason}")
        case RunEnded():
            return Moment(index, "✗" if event.state.has_failed else "■", f"run {event.state}")
        case ControlApplied():
            return Moment(index, "·", f"{event.request}: {event.effect}", event.step)
        case StageStarted():
            return Moment(index, "|", f"stage {event.stage}")
        case RunStarted() if event.reason != StartReason.LAUNCH:
            return Moment(index, "|", f"supervisor started: {event.reason}")
        case _:
            return None
