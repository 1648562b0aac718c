"""The time that a run still needs: of its current stage by its recent pace, and of the stages after it where known.

The pace of a step is the median of its recent durations, plus what lies between steps: evaluations, saves, and the
rest, measured up to the last evaluation or save so that whole intervals are counted. The spread is half of the
interquartile range of the recent pace, over all that is left.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import neg, sub
from statistics import median, quantiles
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from cockpit.runs.stage_view import AttemptView, StageView
from cockpit.runs.state import RunState
from cockpit.runs.writer_facts import Track
from cockpit.text import formatting as fmt
from engines.json_text import read_json
from engines.run_dir.paths import RunDir
from engines.words import StageStatus, Verb

RECENT_STEPS = 32
WINDOW_STEPS = 16_384
"""Steps over which the time between steps is measured: the cost does not grow with the run."""
LONGEST_BETWEEN_S = 3600.0
"""A longer time between two steps is a suspended machine or a changed clock, not work."""
FEWEST_FOR_SPREAD = 4


class PlannedStage(NamedTuple):
    """What plan.json says about a stage: its steps, and all on which the time of one step depends."""

    steps: int | None
    alike: tuple[object, ...]


@dataclass(frozen=True)
class TimeLeft:
    """Seconds left.

    Attributes:
        seconds: the estimate.
        spread_s: it may be this much longer or shorter, by the recent pace; None: not known yet.
        of_run: whether it covers all stages that are left; otherwise it is the current stage's.
    """

    seconds: float
    spread_s: float | None
    of_run: bool = False

    @property
    def words(self) -> str:
        """`ETA 2h10m ±15m`, or `stage ETA …` when later stages are not covered."""
        spread = f" ±{_coarse(self.spread_s)}" if self.spread_s is not None and self.spread_s >= 1 else ""
        return f"{'' if self.of_run else 'stage '}ETA {_coarse(self.seconds)}{spread}"


def time_left(state: RunState, planned: Mapping[str, PlannedStage] | None = None) -> TimeLeft | None:
    """The time that the run still needs; that of the current stage where a later stage has no estimate."""
    stage = state.current_stage
    if stage is None or stage.state != StageStatus.RUNNING:
        return None
    now = stage_time_left(stage, _pauses(state))
    if now is None:
        return None
    later = [other for other in state.stages if not other.state.has_ended and other is not stage]
    parts = [_later(other, state, planned or {}) for other in later]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return now
    spreads = [part.spread_s for part in (now, *known)]
    total = None if now.spread_s is None else sum(spread or 0.0 for spread in spreads)
    return TimeLeft(now.seconds + sum(part.seconds for part in known), total, of_run=True)


def stage_time_left(stage: StageView, pauses: Sequence[float] = ()) -> TimeLeft | None:
    """The time that a running stage still needs; `pauses` are the Unix times at which it was paused."""
    attempt = stage.current
    if attempt is None or stage.state != StageStatus.RUNNING:
        return None
    if stage.total_steps is not None and stage.at_step is not None:
        steps = max(0, stage.total_steps - stage.at_step)
        pace = step_pace(stage, attempt, pauses)
        return None if pace is None else TimeLeft(steps * pace[0], None if pace[1] is None else steps * pace[1])
    progress, rate = stage.progress, attempt.progress_rate
    if progress is None or progress.total is None or rate is None:
        return None
    left = max(0.0, progress.total - progress.done)
    spread = _progress_spread(attempt)
    return TimeLeft(left / rate, None if spread is None else left * spread)


def step_pace(
    stage: StageView, attempt: AttemptView, pauses: Sequence[float] = ()
) -> tuple[float, float | None] | None:
    """Seconds for one step with what lies between steps, and half of their interquartile range."""
    track = max(attempt.tracks, key=lambda track: len(track.steps), default=None)
    if track is None or not len(track.steps):
        return None
    recent = list(track.columns["step_s"][-RECENT_STEPS:])
    return median(recent) + _between(stage, attempt, track, pauses), _half_range(recent)


def read_plan(run: RunDir) -> dict[str, PlannedStage]:
    """The stages of plan.json by name; empty when it cannot be read."""
    try:
        stages = read_json(run.plan_json)["stages"]
        return {str(stage["name"]): _planned(stage) for stage in stages}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _planned(stage: Mapping[str, Any]) -> PlannedStage:
    steps = stage.get("steps")
    alike = tuple(stage.get(name) for name in ("kind", "parameters", "trainable_parameters", "tokens_per_step"))
    return PlannedStage(steps if isinstance(steps, int) and steps > 0 else None, alike)


def _later(stage: StageView, state: RunState, planned: Mapping[str, PlannedStage]) -> TimeLeft | None:
    """The time of a stage that has not begun: by its own earlier success, or by a stage of the same size."""
    done = stage.by_attempt.get(stage.succeeded_attempt or -1)
    if done is not None and done.started_t is not None and done.ended_t is not None:
        return TimeLeft(max(0.0, done.ended_t - done.started_t), None)
    plan = planned.get(stage.name)
    if plan is None or plan.steps is None or None in plan.alike:
        return None
    for other in state.stages:
        same = planned.get(other.name)
        if same is not None and same.alike == plan.alike and other.current is not None:
            pace = step_pace(other, other.current, _pauses(state))
            if pace is not None:
                return TimeLeft(plan.steps * pace[0], None if pace[1] is None else plan.steps * pace[1])
    return None


def _pauses(state: RunState) -> list[float]:
    return [control.t for control in state.controls if Verb.of(control.request) is Verb.PAUSE]


_measured: WeakKeyDictionary[Track, tuple[tuple[int, int], float]] = WeakKeyDictionary()


def _between(stage: StageView, attempt: AttemptView, track: Track, pauses: Sequence[float]) -> float:
    """Seconds between two steps, on average: evaluations, saves and the rest."""
    last = _last_interval(stage, attempt, track)
    known = _measured.get(track)
    if known is not None and known[0] == (last, len(pauses)):
        return known[1]
    first = max(0, last - WINDOW_STEPS)
    times, durations = track.columns["t"][first : last + 1], track.columns["step_s"][first : last + 1]
    paused = {bisect_left(times, t) for t in pauses}
    gaps = list(map(sub, times[1:], times))
    if not paused and gaps and min(gaps) >= 0 and max(gaps) <= LONGEST_BETWEEN_S:  # nearly always: no loop in Python
        between = [*gaps, *map(neg, durations[1:])]
        mean = max(0.0, math.fsum(between) / len(gaps))
        _measured[track] = ((last, len(pauses)), mean)
        return mean
    between = [
        gap - durations[at] for at, gap in enumerate(gaps, 1) if at not in paused and 0 <= gap <= LONGEST_BETWEEN_S
    ]
    mean = max(0.0, math.fsum(between) / len(between)) if between else 0.0
    _measured[track] = ((last, len(pauses)), mean)
    return mean


def _last_interval(stage: StageView, attempt: AttemptView, track: Track) -> int:
    """The index of the step after the attempt's last evaluation or save; without one, that of a recent step."""
    ends = [e.step for e in stage.all_evaluations[-1:] if e.attempt == attempt.attempt and e.step is not None]
    saved = stage.last_saved
    ends += [saved.step] if saved is not None and saved.attempt == attempt.attempt else []
    newest = len(track.steps) - 1
    if ends:
        after = bisect_right(track.steps, max(ends))
        if 0 < after <= newest:
            return after
    return newest - newest % RECENT_STEPS if newest > RECENT_STEPS else newest


def _half_range(values: Sequence[float]) -> float | None:
    """Half of the interquartile range; None for too few values."""
    if len(values) < FEWEST_FOR_SPREAD:
        return None
    low, _, high = quantiles(values, n=4)
    return (high - low) / 2


def _progress_spread(attempt: AttemptView) -> float | None:
    """Half of the interquartile range of the seconds for one unit of progress."""
    rates = max((list(track.rate) for track in attempt.tracks), key=len, default=[])
    seconds = [
        (t1 - t0) / (done1 - done0) for (t0, done0), (t1, done1) in pairwise(rates) if done1 > done0 and t1 >= t0
    ]
    return _half_range(seconds)


def _coarse(seconds: float) -> str:
    """Seconds below two minutes, whole minutes above: a text that changes no more often than it says something new."""
    return fmt.duration(round(seconds)) if seconds < 120 else fmt.minutes(seconds)
