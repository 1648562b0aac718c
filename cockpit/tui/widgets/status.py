"""The status line at the top of a run: state, stage, step, speed and ETA, as text from a state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rich.text import Text

from cockpit.runs.eta import PlannedStage, time_left
from cockpit.runs.health import Health
from cockpit.runs.state import RunState, StageView
from cockpit.text import formatting as fmt
from cockpit.text.device_line import device_line
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.theme import STATE_COLOURS, ascii_only, state_glyph
from cockpit.tui.look.wrapping import wrapped
from engines.words import HealthWord, RunStatus


class Part(NamedTuple):
    """A part of the line; when there is no room, the part with the highest rank is left out first."""

    rank: int
    text: str
    colour: str = ""


def status_line(parts: list[Part], width: int, colours: dict[str, str]) -> Text:
    """As many parts as fit, in their order, two cells apart."""
    kept = list(parts)
    while kept and 1 + sum(len(p.text) for p in kept) + 2 * (len(kept) - 1) > width and max(p.rank for p in kept) > 0:
        kept.remove(max(kept, key=lambda part: part.rank))
    line = Text(" ", no_wrap=True)
    for number, part in enumerate(kept):
        line.append("  " if number else "")
        line.append(part.text, colours.get(part.colour, ""))
    line.truncate(width, overflow="ellipsis")
    return line


def run_parts(
    state: RunState,
    run_state: RunStatus,
    health: Health,
    run_id: str,
    stage: StageView | None,
    now: float,
    *,
    frozen: bool,
    planned: Mapping[str, PlannedStage] | None = None,
) -> list[Part]:
    """The parts of a live run's line, for the stage that is shown."""
    colour = "error" if health.needs_attention else STATE_COLOURS.get(run_state, "")
    parts = [Part(0, f"{state_glyph(run_state)} {safe_text(health.word, 30)}", colour)]
    if health.sentence and not health.needs_attention:
        parts.append(Part(1, safe_text(health.sentence, 60)))
    if frozen:
        parts.append(Part(0, "‖ view frozen", "warning"))
    parts.append(Part(3, safe_text(run_id or state.run_id, 40), "foreground"))
    if state.recipe:
        parts.append(Part(9, safe_text(state.recipe, 30), "text-muted"))
    parts += stage_parts(state, stage)
    moves = run_state == RunStatus.RUNNING and not HealthWord(health.word).stands_still
    left = time_left(state, planned) if moves else None
    if left is not None:
        parts.append(Part(1, left.words.replace("±", "+-") if ascii_only() else left.words))
    if state.busy_s is not None:
        since_s = 0.0 if state.ended_t is not None else max(0.0, now - (state.last_event_t or now))
        if state.busy_s + since_s >= 60:
            parts.append(Part(10, f"wall {fmt.minutes(state.busy_s + since_s)}", "text-muted"))
    parts += machine_parts(state, stage) if run_state.is_live and not health.machine_is_old else []
    return parts


def stage_parts(state: RunState, stage: StageView | None) -> list[Part]:
    """Stage number, step, epoch and speed."""
    if stage is None:
        return []
    stages = state.stages
    number = next((n for n, s in enumerate(stages, 1) if s.name == stage.name), 0)
    parts = [Part(5, f"stage {number}/{len(stages)}")]
    if stage.at_step is not None:
        total = f"/{stage.total_steps}" if stage.total_steps is not None else ""
        parts.append(Part(0, f"step {stage.at_step}{total}"))
    step = stage.last_step
    if step is not None:
        parts.append(Part(6, f"epoch {fmt.epoch(step.epoch)}"))
        rate = state.series(stage.name, "tokens_per_second").last()
        if rate is not None:
            parts.append(Part(4, fmt.rate(rate)))
    return parts


def machine_parts(state: RunState, stage: StageView | None = None) -> list[Part]:
    """The newest machine sample, with the accelerators that the stage's engine uses."""
    sample = state.machine()
    if sample is None:
        return []
    own = state.own_devices(None if stage is None else stage.name)
    shown = own.devices if own.known else own.devices[:2]
    parts = [Part(11, device_line(device), "text-muted") for device in shown]
    if own.doubt:
        parts.append(Part(11, f"({own.doubt})", "text-muted"))
    if sample.cpu_percent is not None:
        parts.append(Part(12, f"cpu {fmt.load(sample.cpu_percent)}", "text-muted"))
    if sample.ram_total_bytes is not None and sample.ram_available_bytes is not None:
        used = sample.ram_total_bytes - sample.ram_available_bytes
        parts.append(Part(13, f"ram {fmt.of_total(used, sample.ram_total_bytes)}", "text-muted"))
    return parts


def problems(state: RunState, run_state: RunStatus, health: Health) -> list[str]:
    """The problems of the run's progress, its processes and its journal, worst first."""
    found = []
    if run_state == RunStatus.LOST:
        found.append("lost: no process of this run is alive; resume it from Actions (a)")
    if health.needs_attention:
        found.append(f"{health.word}: {health.sentence}")
    found += health.concerns
    lost = sum(gap.lost for gap in state.gaps)
    if lost:
        found.append(f"{fmt.counted(lost, 'record')} could not be written")
    if state.missing:
        found.append(f"{fmt.counted(state.missing, 'record')} missing")
    if state.unreadable:
        found.append(fmt.counted(state.unreadable, "unreadable record"))
    if state.unknown:
        found.append(f"{fmt.counted(state.unknown, 'record')} of unknown kinds or versions")
    return found


def problems_rows(found: list[str], width: int, colours: dict[str, str]) -> list[Text]:
    """Problems, wrapped: none is cut."""
    style = f"bold {colours.get('error', '')}".strip()
    separator = ", " if ascii_only() else " · "
    rows = wrapped(separator.join(safe_text(problem, 400) for problem in found), max(1, width - 4)) if found else []
    return [Text(f" {'!' if number == 0 else ' '} {row}", style=style, no_wrap=True) for number, row in enumerate(rows)]
