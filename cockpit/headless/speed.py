"""How fast each training was, and what limited it: steps, samples and tokens per second, waits, load."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cockpit.headless.file_rows import shown
from cockpit.runs.health import SHARED_CORES
from cockpit.runs.stage_view import StageView
from cockpit.runs.state import RunState
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from recipes.stages.registry import trains

SPEED_TITLES = ("training", "steps", "last loss", "s/step", "samples/s", "tok/s", "waits", "cores", "GPU")
INPUT_BOUND = 0.1
"""The share of a step's time that it waits for data from which on the data limits a training."""
BUSY_GPU = 90.0
"""Percent of the time in which a GPU computes, from which on it limits a training."""
BUSY_CORES = 0.9
"""Cores that an engine uses from which on computing limits it; a training has at least one thread."""


@dataclass(frozen=True)
class Speed:
    """A training's pace over the steps that its output is of; None for what was not measured.

    `waits` is the share of the steps' time that waited for data, `cores` those that the engine used in the mean of
    the readings of the machine from the first step to the last (steps shorter than their interval may have none),
    `others` those that other processes used meanwhile, `gpu_percent` the mean load of its GPUs.
    """

    steps: int
    last_loss: float | None
    step_s: float | None
    samples_per_second: float | None
    tokens_per_second: float | None
    waits: float | None
    cores: float | None
    others: float | None
    all_cores: int
    gpu_percent: float | None


def speed_lines(state: RunState) -> list[str]:
    """The table of all trainings, and a line about what limits each; nothing without a training."""
    found = [(stage, speed) for stage in state.stages if (speed := speed_of(state, stage)) is not None]
    if not found:
        return []
    rows = [_row(stage, speed) for stage, speed in found]
    limits = [f"{safe_text(stage.name, 40)}: {words}" for stage, speed in found if (words := limit_words(speed))]
    return [*text_table(SPEED_TITLES, rows, range(1, len(SPEED_TITLES))), *(["", *limits] if limits else [])]


def speed_of(state: RunState, stage: StageView) -> Speed | None:
    """A training's pace; None for another stage, and before the first step."""
    last = stage.last_step
    if not trains(stage.kind) or last is None:
        return None
    seconds = state.series(stage.name, "step_s").y
    rates = state.series(stage.name, "tokens_per_second").y
    waited = state.series(stage.name, "data_wait_s").y
    total = math.fsum(_finite(seconds))
    tokens = math.fsum(_finite(rate * step for rate, step in zip(rates, seconds, strict=True)))
    sample = state.machine()
    all_cores = (sample.cores or 0) if sample is not None else 0
    load, own = (_mean_in(state, stage, name) for name in ("cpu_percent", "engine_cpu_percent"))
    cores = None if own is None or not all_cores else own / 100 * all_cores
    others = None if load is None or cores is None else max(0.0, load / 100 * all_cores - cores)
    cards = [_mean_in(state, stage, f"gpu{card.id}_util_percent") for card in state.own_devices(stage.name).devices]
    known = [percent for percent in cards if percent is not None]
    return Speed(
        steps=last.step,
        last_loss=last.loss,
        step_s=total / len(seconds) if len(seconds) else None,
        samples_per_second=stage.metrics.get("samples_per_second"),
        tokens_per_second=tokens / total if total and tokens else None,
        waits=math.fsum(_finite(waited)) / total if len(waited) and total else None,
        cores=cores,
        others=others,
        all_cores=all_cores,
        gpu_percent=sum(known) / len(known) if known else None,
    )


def limit_words(speed: Speed) -> str:
    """What limits a training, in a line with what would help; empty where it was not measured."""
    if speed.waits is not None and speed.waits >= INPUT_BOUND:
        return f"input-bound: {fmt.percent(speed.waits)} of the steps' time waits for data"
    if speed.gpu_percent is not None:
        busy = f"the GPU computes {fmt.percent(speed.gpu_percent / 100)} of the time"
        if speed.gpu_percent >= BUSY_GPU:
            return f"compute-bound: {busy}"
        return (
            f"{busy}: twice the per_device_train_batch_size with half of the gradient_accumulation_steps keeps the"
            " steps, and takes more memory"
        )
    if speed.cores is None:
        return ""
    used = f"the engine used {fmt.exact(round(speed.cores, 1))} of {speed.all_cores} cores"
    if speed.others is not None and speed.others >= SHARED_CORES:
        return f"shared: {used}, other processes {fmt.exact(round(speed.others, 1))}"
    if speed.cores < BUSY_CORES:
        return f"unknown: {used}"
    return f"compute-bound: {used}; cockpit check RECIPE --machine FILE says whether it fits a machine with a GPU"


def _row(stage: StageView, speed: Speed) -> list[str]:
    planned = f"/{stage.total_steps}" if stage.total_steps else ""
    return [
        safe_text(stage.name, 40),
        f"{speed.steps}{planned}",
        shown(speed.last_loss, fmt.loss),
        shown(speed.step_s, fmt.duration),
        shown(speed.samples_per_second, lambda rate: fmt.number(rate, 3)),
        shown(speed.tokens_per_second, fmt.count),
        shown(speed.waits, fmt.percent),
        shown(speed.cores, lambda cores: fmt.exact(round(cores, 1))),
        shown(speed.gpu_percent, lambda percent: fmt.percent(percent / 100)),
    ]


def _mean_in(state: RunState, stage: StageView, name: str) -> float | None:
    """The mean of a reading of the machine while engines of the stage made steps; None without one.

    Importing and loading are not counted: on a busy machine they take longer than a short training.
    """
    spans = [
        (track.columns["t"][0] - track.columns["step_s"][0], track.columns["t"][-1])
        for attempt in stage.attempts
        for track in attempt.tracks
        if len(track.steps)
    ]
    series = state.machine_series(name)
    values = [
        value
        for t, value in zip(series.x, series.y, strict=True)
        if math.isfinite(value) and any(begin <= t <= end for begin, end in spans)
    ]
    return sum(values) / len(values) if values else None


def _finite(values: Iterable[float] | Sequence[float]) -> Iterable[float]:
    return (value for value in values if math.isfinite(value))
