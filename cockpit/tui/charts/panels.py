"""The data of a run's charts, made from its state only: the same for a live run and for a replay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cockpit.runs.series import Series
from cockpit.runs.state import RunState, StageView
from cockpit.text import formatting as fmt
from cockpit.tui.charts.axes import step_domain, time_domain
from cockpit.tui.charts.chart import ChartData
from cockpit.tui.look.theme import ascii_only
from engines.words import StageStatus

SMOOTHING = (0.0, 0.6, 0.9, 0.97, 0.99)
SMOOTHED = ("loss", "grad_norm", "tokens_per_second", "step_s")
GIB = 1 << 30


@dataclass
class ViewOptions:
    """The operator's options for charts.

    Attributes:
        log: names of charts with a logarithmic value axis.
        smooth: index into SMOOTHING.
        zoom: share of the steps that are shown, 1 for all.
        cursor: the inspected step.
    """

    log: set[str]
    smooth: int = 2
    zoom: float = 1.0
    cursor: float | None = None

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
    """The charts of a stage, most important first, at most six; charts without values are left out."""
    names = state.series_names(stage.name)
    first = [name for name in ("loss", "learning_rate", "grad_norm") if name in names]
    found = [Panel(name, _steps(state, stage, name, options, facts)) for name in first]
    machine = [p for p in (_memory(state, stage), _load(state, stage)) if p is not None]
    found += machine[:1]
    if "tokens_per_second" in names:
        found.append(Panel("tokens_per_second", _steps(state, stage, "tokens_per_second", options, facts)))
    found += machine[1:]
    if "step_s" in names and len(found) < 6:
        found.append(Panel("step_s", _steps(state, stage, "step_s", options, facts)))
    extra = [n for n in names if n not in {"loss", "learning_rate", "grad_norm", "tokens_per_second", "step_s"}]
    found += [Panel(n, _steps(state, stage, n, options, facts)) for n in extra[: max(0, 6 - len(found))]]
    return found[:6]


def step_window(stage: StageView, options: ViewOptions) -> tuple[float, float]:
    """The steps on the x axis; a zoomed window moves by quarters of its width, to repaint rarely."""
    reached = float(stage.at_step or 0)
    x0, x1 = step_domain(stage.total_steps, reached)
    width = (x1 - x0) * options.zoom
    if options.zoom >= 1 or width <= 0:
        return x0, x1
    anchor = options.cursor if options.cursor is not None else reached
    quarter = width / 4
    right = min(x1, max(width, (anchor // quarter + (2 if options.cursor is not None else 1)) * quarter))
    return right - width, right


def _steps(
    state: RunState, stage: StageView, name: str, options: ViewOptions, facts: Mapping[str, Any]
) -> Callable[[], ChartData]:
    def make() -> ChartData:
        raw = state.series(stage.name, name)
        smooth = raw.ema(options.alpha) if options.alpha and name in SMOOTHED else None
        points = state.series(stage.name, "eval_loss") if name == "loss" else None
        points = points if points is not None and len(points) else None
        limit = _limit(name, facts)
        return ChartData(
            name="tok/s" if name == "tokens_per_second" else name,
            summary=_summary(name, raw, smooth, points, limit, options),
            raw=raw,
            smooth=smooth,
            old=state.superseded(stage.name, name),
            points=points,
            x=step_window(stage, options),
            label=_label(name),
            log=name in options.log,
            limit=limit,
            marks=_marks(stage),
            cursor=options.cursor,
            floor=0.0 if name in {"grad_norm", "tokens_per_second", "learning_rate"} else None,
        )

    return make


def _summary(
    name: str, raw: Series, smooth: Series | None, points: Series | None, limit: float | None, options: ViewOptions
) -> str:
    value = _value(name)
    if options.cursor is not None:
        point = raw.at(options.cursor)
        words = [f"{value(point[1])} at step {fmt.whole(point[0])}" if point else "no value here"]
    else:
        words = [value(raw.last())]
    if smooth is not None:
        at = smooth.at(options.cursor) if options.cursor is not None else None
        shown = at[1] if at is not None else smooth.last()
        words.append(
            f"ema{fmt.exact(options.alpha)}".replace("0.", ".") + (f" {value(shown)}" if name == "loss" else "")
        )
    if points is not None:
        words.append(f"{'o' if ascii_only() else '●'} eval {value(points.last())}")
    if limit is not None:
        words.append(f"(guard {fmt.number(limit, 3)})")
    if name in options.log:
        words.insert(0, "[log]")
    return " ".join(words)


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


def _marks(stage: StageView) -> list[tuple[float, str]]:
    diamond = "*" if ascii_only() else "◆"
    marks = [(float(guard.step), "!") for guard in stage.guards]
    return marks + [(float(c.step), diamond) for c in stage.checkpoints]


def _memory(state: RunState, stage: StageView) -> Panel | None:
    names = state.machine_names()
    sample = state.machine()
    if sample is None:
        return None
    gpu = next((n for n in names if n.startswith("gpu") and n.endswith("_memory_used_bytes")), None)
    if gpu is not None and sample.devices:
        device = next((d for d in sample.devices if gpu == f"gpu{d.id}_memory_used_bytes"), sample.devices[0])
        heat = [] if device.temperature_c is None else [f"{fmt.temperature(device.temperature_c)}"]
        words = [fmt.of_total(device.memory_used_bytes, device.memory_total_bytes), *heat]
        return _machine_panel(
            state, stage, gpu, "gpu memory", " ".join(words).replace("°", "" if ascii_only() else "°")
        )
    if "engine_rss_bytes" in names and not sample.unified:
        return _machine_panel(state, stage, "engine_rss_bytes", "engine memory", fmt.size(sample.engine_rss_bytes))
    if "ram_used_bytes" not in names or sample.ram_total_bytes is None or sample.ram_available_bytes is None:
        return None
    used = sample.ram_total_bytes - sample.ram_available_bytes
    title = "unified memory" if sample.unified else "memory"
    return _machine_panel(state, stage, "ram_used_bytes", title, fmt.of_total(used, sample.ram_total_bytes))


def _load(state: RunState, stage: StageView) -> Panel | None:
    names, sample = state.machine_names(), state.machine()
    if sample is None:
        return None
    for name in names:
        if name.startswith("gpu") and name.endswith("_util_percent"):
            value = state.machine_series(name).last()
            return _machine_panel(state, stage, name, "gpu load", fmt.load(value))
    if "cpu_percent" in names:
        value = sample.cpu_percent
        return _machine_panel(state, stage, "cpu_percent", "cpu load", fmt.load(value))
    return None


def _machine_panel(state: RunState, stage: StageView, series: str, title: str, summary: str) -> Panel | None:
    raw = state.machine_series(series)
    start = stage.started_t
    if not len(raw) or start is None:
        return None
    end = stage.ended_t if stage.ended_t is not None and stage.state != StageStatus.RUNNING else max(start, raw.x[-1])
    is_bytes = series.endswith("_bytes")

    def make() -> ChartData:
        biggest = (raw.extent() or (0.0, 1.0))[1]
        unit, unit_name = (GIB, "GiB") if biggest >= GIB else (1 << 20, "MiB")
        return ChartData(
            name=title,
            summary=summary,
            raw=raw,
            x=time_domain(start, end),
            x_is_time=True,
            label=(lambda v, s: f"{fmt.tick(v, s)} {unit_name}") if is_bytes else (lambda v, s: fmt.tick(v, s) + "%"),
            unit=float(unit) if is_bytes else 1.0,
            floor=0.0,
        )

    return Panel(series, make)
