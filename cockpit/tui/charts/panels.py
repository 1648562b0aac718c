"""The data of a run's charts, made from its state only: the same for a live run and for a replay."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cockpit.runs.series import Series
from cockpit.runs.stage_view import RunView
from cockpit.runs.state import EVAL, OwnDevices, RunState, StageView
from cockpit.text import formatting as fmt
from cockpit.text.axes import step_domain, time_domain
from cockpit.tui.charts.canvas import usual_distance
from cockpit.tui.charts.chart import ChartData
from cockpit.tui.charts.lane import Lane, LaneMark, MarkKind
from cockpit.tui.look.theme import ascii_only
from engines.events.machine import Device
from engines.words import IGNORED, StageStatus

SMOOTHING = (0.0, 0.6, 0.9, 0.97, 0.99)
STANDARD = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "step_s", "data_wait_s")
"""What every training measures; all other names are what a method measures."""
UNSMOOTHED = ("learning_rate", "data_wait_s")
FIRST_OF_METHOD = ("rewards/margins", "rewards/accuracies")
"""What a method is judged by: beside the loss, on the first page."""
GIB = 1 << 30
STEPS, TIME = "steps", "time"
GAP_TIMES = 4
"""Points further apart than this many usual distances are not joined: between them nothing was measured."""


@dataclass
class ViewOptions:
    """The operator's options for charts.

    Attributes:
        log: names of charts with a logarithmic value axis.
        smooth: index into SMOOTHING.
        zoom: share of the steps that are shown, 1 for all.
        cursor: the inspected step.
        plan: the x axis goes to the planned steps; otherwise it is fitted to the steps that exist.
        machine_is_old: the newest figures about the machine are not its present ones; their titles say so.
        lanes: the marks of each stage and axis, with the view and its number of facts that they were made of.
    """

    log: set[str]
    smooth: int = 2
    zoom: float = 1.0
    cursor: float | None = None
    plan: bool = False
    machine_is_old: bool = False
    lanes: dict[tuple[str, str], tuple[RunView, int, Lane]] = field(default_factory=dict)

    @property
    def alpha(self) -> float:
        """The weight of past values in the moving average."""
        return SMOOTHING[self.smooth]


@dataclass(frozen=True)
class Panel:
    """A chart's name and the function that makes its data."""

    name: str
    make: Callable[[], ChartData]


def panels(state: RunState, stage: StageView, options: ViewOptions, facts: Mapping[str, Any]) -> list[Panel]:
    """The charts of a stage, most important first; charts without values are left out."""
    names = state.series_names(stage.name)
    machine = [p for p in (_memory(state, stage, options), _load(state, stage, options)) if p is not None]

    def of_steps(*wanted: str) -> list[Panel]:
        return [Panel(name, _steps(state, stage, name, options, facts)) for name in wanted if name in names]

    method = sorted((name for name in names if name not in STANDARD), key=_place_of_method)
    first = [name for name in FIRST_OF_METHOD if name in method]
    found = of_steps("loss", *first, "learning_rate", "grad_norm") + machine[:1]
    rest = of_steps("tokens_per_second") + machine[1:] + of_steps("step_s", "data_wait_s")
    others = of_steps(*(name for name in method if name not in first))
    return found + others + rest if first else found + rest + others


def _place_of_method(name: str) -> tuple[int, str]:
    """Rewards first, then log probabilities, then the rest; each by name."""
    bare = name.removeprefix(EVAL)
    return next((n for n, prefix in enumerate(("rewards/", "logps/")) if bare.startswith(prefix)), 2), name


def step_window(stage: StageView, options: ViewOptions) -> tuple[float, float]:
    """The steps on the x axis; a zoomed window moves by quarters of its width, to repaint rarely."""
    reached = float(max((a.last_step.step for a in stage.attempts if a.last_step), default=stage.at_step or 0))
    ended = stage.state.has_ended
    x0, x1 = step_domain(stage.total_steps, reached, plan=options.plan, ended=ended)
    width = (x1 - x0) * options.zoom
    if options.zoom >= 1 or width <= 0:
        return x0, x1
    anchor = options.cursor if options.cursor is not None else reached
    quarter = width / 4
    right = min(x1, max(width, (anchor // quarter + (2 if options.cursor is not None else 1)) * quarter))
    return right - width, right


def time_window(stage: StageView, options: ViewOptions, newest_t: float) -> tuple[float, float] | None:
    """The Unix seconds on the x axis of a machine's chart: those of the steps when these are zoomed."""
    start = stage.started_t
    if start is None:
        return None
    ended = stage.ended_t is not None and stage.state != StageStatus.RUNNING
    end = stage.ended_t if ended and stage.ended_t is not None else max(start, newest_t)
    if options.zoom < 1:
        left, right = (stage.time_of_step(step) for step in step_window(stage, options))
        if right is not None and right > (left or start):
            return left or start, right
    return time_domain(start, end, ended=ended)


def x_end(stage: StageView, options: ViewOptions) -> str:
    """The label of the right edge: it says whether the axis shows the plan, or what exists of it."""
    _, right = step_window(stage, options)
    total = stage.total_steps
    if total is None or options.zoom < 1:
        return ""
    if right < total:
        return f"{fmt.count(right)} of {fmt.count(total)}"
    return f"plan {fmt.count(total)}" if options.plan and not stage.state.has_ended else ""


def _steps(
    state: RunState, stage: StageView, name: str, options: ViewOptions, facts: Mapping[str, Any]
) -> Callable[[], ChartData]:
    def make() -> ChartData:
        raw = state.series(stage.name, name)
        smoothed = name not in UNSMOOTHED and not name.startswith(EVAL)
        smooth = raw.ema(options.alpha) if options.alpha and smoothed else None
        evaluated = state.series(stage.name, EVAL + name)
        points = evaluated if len(evaluated) else None
        limit = _limit(name, facts)
        return ChartData(
            name="tok/s" if name == "tokens_per_second" else name,
            summary=_summary(name, raw, smooth, points, limit, options),
            shorter=_summary(name, raw, smooth, points, limit, options, short=True),
            x_end=x_end(stage, options),
            longest=GAP_TIMES * usual_distance(raw),
            raw=raw,
            smooth=smooth,
            old=state.superseded(stage.name, name),
            points=points,
            x=step_window(stage, options),
            label=_label(name),
            log=name in options.log,
            limit=limit,
            marks=_marks(state, stage, options, STEPS),
            cursor=options.cursor,
            floor=0.0 if name in {"grad_norm", "tokens_per_second", "learning_rate"} else None,
        )

    return make


def _summary(
    name: str,
    raw: Series,
    smooth: Series | None,
    points: Series | None,
    limit: float | None,
    options: ViewOptions,
    *,
    short: bool = False,
) -> str:
    """The values in a chart's title: the newest ones; while inspecting, those at the inspected step.

    `short` is for narrow charts: the same values, with fewer words.
    """
    value, cursor = _value(name), options.cursor
    words = ["[log]"] if name in options.log else []
    at_step = "@" if short else "at step "
    if cursor is None:
        words.append(value(raw.last()))
    else:
        point = raw.at(cursor)
        words.append(f"{value(point[1])} {at_step}{fmt.whole(point[0])}" if point else "no value here")
    if limit is not None and not (short and cursor is not None):
        words.append(f"(guard {fmt.number(limit, 3)})")
    if smooth is not None:
        at = smooth.at(cursor) if cursor is not None else None
        average = (at[1] if at is not None else None) if cursor is not None else smooth.last()
        shown = value(average) if average is not None and math.isfinite(average) else fmt.NOT_MEASURED
        alpha = "" if short else fmt.exact(options.alpha).replace("0.", ".", 1)
        words.append(f"ema{alpha} {shown}")
    if points is not None:
        words.append(_evaluation(points, value, cursor, short=short))
    return " ".join(words)


def _evaluation(points: Series, value: Callable[[float | None], str], cursor: float | None, *, short: bool) -> str:
    """The newest evaluation; while inspecting, the last one at or before the inspected step."""
    dot = ("o" if ascii_only() else "●") + ("" if short else " eval")
    if cursor is None:
        return f"{dot} {value(points.last())}"
    before = points.at(cursor)
    if before is None:
        return f"{dot} none yet"
    return f"{dot} {value(before[1])}" + ("" if short else f" @{fmt.whole(before[0])}")


def _value(name: str) -> Callable[[float | None], str]:
    if name == "learning_rate":
        return fmt.learning_rate
    if name == "tokens_per_second":
        return fmt.count
    return fmt.number


def _label(name: str) -> Callable[[float, float], str]:
    if name == "learning_rate":
        return lambda value, _step: fmt.learning_rate(value)
    return fmt.tick


def _limit(name: str, facts: Mapping[str, Any]) -> float | None:
    guards = facts.get("guards")
    value = guards.get("grad_norm") if name == "grad_norm" and isinstance(guards, dict) else None
    return float(value) if isinstance(value, int | float) else None


def _marks(state: RunState, stage: StageView, options: ViewOptions, axis: str) -> Lane:
    """What happened in the stage, for the lane of every chart whose x axis is STEPS or TIME.

    It is made again only after a new fact of the run's life.
    """
    view = state.view
    facts = state.combined
    known = options.lanes.get((stage.name, axis))
    if known is not None and known[0] is view and known[1] == facts:
        return known[2]
    applied = (event for event in state.controls if not event.effect.startswith(IGNORED))
    controls = [event for event in applied if event.stage in {None, stage.name}]
    resumed = [(a.resumed_from.step, a.started_t) for a in stage.attempts if a.resumed_from is not None]
    found: list[tuple[MarkKind, float | None, float | None]] = [
        *((MarkKind.GUARD, event.step, event.t) for event in stage.guards),
        *((MarkKind.CONTROL, event.step, event.t) for event in controls),
        *((MarkKind.RESUME, step, t) for step, t in resumed),
        *((MarkKind.CHECKPOINT, event.step, event.t) for event in stage.checkpoints),
    ]
    positions = [(kind, step if axis == STEPS else t) for kind, step, t in found]
    lane = Lane(LaneMark(float(x), kind) for kind, x in positions if x is not None)
    options.lanes[stage.name, axis] = (view, facts, lane)
    return lane


@dataclass(frozen=True)
class _Reading:
    """The readings of one quantity of the machine, and the moment that the title shows.

    Attributes:
        raw: the readings over Unix seconds.
        t: the inspected step's time, or the end of a stage that has ended; None: the newest reading.
        longest: seconds; a reading that is further away says nothing about the moment.
    """

    raw: Series
    t: float | None
    longest: float

    @property
    def value(self) -> float | None:
        """The reading at the moment; None where nothing was measured."""
        if self.t is None:
            return self.raw.last()
        found = self.raw.at(self.t)
        return found[1] if found is not None and self.t - found[0] <= self.longest else None


def _reading(state: RunState, stage: StageView, options: ViewOptions, name: str) -> _Reading:
    raw = state.machine_series(name)
    longest = GAP_TIMES * usual_distance(raw)
    if options.cursor is not None:
        return _Reading(raw, stage.time_of_step(options.cursor), longest)
    return _Reading(raw, stage.ended_t if stage.state.has_ended else None, longest)


def _memory(state: RunState, stage: StageView, options: ViewOptions) -> Panel | None:
    names = state.machine_names()
    sample = state.machine()
    if sample is None:
        return None
    own = state.own_devices(stage.name)
    device = _card(own, names, "memory_used_bytes")
    if device is not None:
        gpu = f"gpu{device.id}_memory_used_bytes"
        heat = _reading(state, stage, options, f"gpu{device.id}_temperature_c").value
        total = device.memory_total_bytes
        hot = "" if heat is None else f" {fmt.temperature(heat)}".replace("°", "" if ascii_only() else "°")
        title = _card_title(own, device, "memory")
        return _machine_panel(state, stage, options, gpu, title, lambda value: fmt.of_total(value, total) + hot)
    if "engine_rss_bytes" in names and not sample.unified:
        return _machine_panel(state, stage, options, "engine_rss_bytes", "engine memory", fmt.size)
    if "ram_used_bytes" not in names or sample.ram_total_bytes is None:
        return None
    whole = sample.ram_total_bytes
    title = "unified memory" if sample.unified else "memory"
    return _machine_panel(state, stage, options, "ram_used_bytes", title, lambda value: fmt.of_total(value, whole))


def _load(state: RunState, stage: StageView, options: ViewOptions) -> Panel | None:
    names = state.machine_names()
    own = state.own_devices(stage.name)
    device = _card(own, names, "util_percent")
    if device is not None:
        title = _card_title(own, device, "load")
        return _machine_panel(state, stage, options, f"gpu{device.id}_util_percent", title, fmt.load)
    if "cpu_percent" in names:
        return _machine_panel(state, stage, options, "cpu_percent", "cpu load", fmt.load)
    return None


def _card(own: OwnDevices, names: list[str], reading: str) -> Device | None:
    """The card whose reading a chart shows: of the engine's cards the fullest, which is the first to have no memory
    left; the machine's first where the engine's are not known."""
    measured = [device for device in own.devices if f"gpu{device.id}_{reading}" in names]
    if own.known:
        measured.sort(key=lambda device: -(device.memory_used_bytes or 0))
    return measured[0] if measured else None


def _card_title(own: OwnDevices, device: Device, quantity: str) -> str:
    """`gpu memory`, with the card's number where the machine has several."""
    title = f"gpu{device.id if own.of > 1 else ''} {quantity}"
    if own.doubt:
        return f"{title} ({own.doubt})"
    return f"{title} (fullest of {len(own.devices)})" if own.known and len(own.devices) > 1 else title


def _machine_panel(
    state: RunState,
    stage: StageView,
    options: ViewOptions,
    name: str,
    title: str,
    words: Callable[[float | None], str],
) -> Panel | None:
    reading = _reading(state, stage, options, name)
    raw = reading.raw
    if not len(raw):
        return None
    window = time_window(stage, options, raw.x[-1])
    if window is None:
        return None
    is_bytes = name.endswith("_bytes")

    def make() -> ChartData:
        biggest = (raw.extent() or (0.0, 1.0))[1]
        unit, unit_name = (GIB, "GiB") if biggest >= GIB else (1 << 20, "MiB")
        at = f" at step {fmt.whole(options.cursor)}" if options.cursor is not None else ""
        at = " (old)" if options.machine_is_old and reading.t is None else at
        return ChartData(
            name=title,
            summary=words(reading.value) + at,
            raw=raw,
            x=window,
            x_is_time=True,
            label=(lambda v, s: f"{fmt.tick(v, s)} {unit_name}") if is_bytes else (lambda v, s: fmt.tick(v, s) + "%"),
            unit=float(unit) if is_bytes else 1.0,
            floor=0.0,
            marks=_marks(state, stage, options, TIME),
            cursor=reading.t if options.cursor is not None else None,
            longest=reading.longest,
        )

    return Panel(name, make)
