"""A run as lines: one live line per stage on a terminal, plain lines elsewhere, the journal's lines for --json."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Collection

from cockpit.headless.follow import Display, write_json_lines, write_out
from cockpit.runs.eta import time_left
from cockpit.runs.log_lines import headlines, line_of
from cockpit.runs.stage_view import StageView
from cockpit.runs.state import RunState
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from engines.events.attempts import AttemptEnded, Progress
from engines.events.event import kind_of
from engines.events.kinds import METRIC_KINDS, AnyEvent
from engines.events.runs import RunEnded, RunStarted, StageFailed
from engines.events.steps import CheckpointRemoved, Step, StepsPlanned
from engines.events.writers import WriterOpened
from engines.journal import Record
from engines.words import EndReason, HealthWord, RunStatus, StageStatus

EVERY_S = 10.0
"""Minimum seconds between two plain lines about one stage's progress."""
REDRAW_S = 0.1
CATCH_UP_LINES = 12
_WITHOUT_LINE = (WriterOpened, StepsPlanned, CheckpointRemoved)


def chosen_display(*, json: bool, quiet: bool) -> Display:
    """The display for a command's flags; without flags, it depends on whether stdout is a terminal."""
    if json:
        return JsonLines()
    if quiet:
        return Nothing()
    return LiveLines() if sys.stdout.isatty() else PlainLines()


class Nothing:
    """Shows nothing."""

    def begin(self, state: RunState) -> None:
        """Nothing."""

    def show(self, records: list[Record], state: RunState) -> None:
        """Nothing."""

    def tick(self, state: RunState) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class JsonLines(Nothing):
    """The journal's lines, unchanged; a record without a line is not in the journal yet."""

    def show(self, records: list[Record], state: RunState) -> None:  # noqa: ARG002 - the display's interface
        """Print the lines."""
        text = b"".join(record.line + b"\n" for record in records if record.line)
        if text:
            write_json_lines(text.decode("utf-8", "replace"))


def past_lines(state: RunState) -> list[str]:
    """Where the run is, for a follower that attaches late: how much came before, and the newest lines."""
    newest = [event_line(event) for event in state.newest_events() if has_line(event)][-CATCH_UP_LINES:]
    return [f"… {fmt.counted(state.version, 'record')} before; all lines: cockpit attach RUN --plain --all", *newest]


class PlainLines(Nothing):
    """A line for every lifecycle event, and a line about a stage's progress at most every ten seconds.

    The events' own times count, so that a replay prints the same lines as the live run.
    """

    def __init__(self) -> None:
        self._printed_t: dict[str, float] = {}
        self._reasons = _Reasons()

    def begin(self, state: RunState) -> None:
        """Print the newest lines, and a line about the running stage."""
        stage = state.current_stage
        running = stage is not None and stage.state == StageStatus.RUNNING
        lines = past_lines(state)
        if stage is not None and running:
            newest = stage.last_step or stage.progress
            t = newest.t if newest is not None else stage.started_t or 0.0
            lines.append(f"{fmt.clock(t)}  {stage_line(stage, state, None)}")
        write_out("\n".join(lines) + "\n")

    def show(self, records: list[Record], state: RunState) -> None:
        """Print the lines of the records."""
        lines: list[str] = []
        for record in records:
            event = record.event
            if isinstance(event, Step | Progress):
                lines += self._progress(event, state)
            elif has_line(event):
                lines.append(self._reasons.line(event))
        if lines:
            write_out("\n".join(lines) + "\n")

    def _progress(self, event: Step | Progress, state: RunState) -> list[str]:
        since = self._printed_t.setdefault(event.stage, event.t)
        if event.t - since < EVERY_S:
            return []
        self._printed_t[event.stage] = event.t
        view = state.stage(event.stage)
        return [f"{fmt.clock(event.t)}  {stage_line(view, state, event)}"] if view else []


class LiveLines:
    """For a terminal: a line for every lifecycle event, and below them one live line for the running stage."""

    def __init__(self) -> None:
        self._drawn = ""
        self._drawn_s = 0.0
        self._reasons = _Reasons()

    def begin(self, state: RunState) -> None:
        """Print the newest lines; the next tick draws the live line below them."""
        write_out("\n".join(past_lines(state)) + "\n")

    def show(self, records: list[Record], state: RunState) -> None:  # noqa: ARG002 - the display's interface
        """Print lifecycle lines; the next tick redraws the live line below them."""
        lines = [self._reasons.line(record.event) for record in records if has_line(record.event)]
        if lines:
            write_out("\n".join(lines) + "\n", clear=bool(self._drawn))
            self._drawn = ""

    def tick(self, state: RunState) -> None:
        """Draw the live line, a few times a second."""
        stage = state.current_stage
        now_s = time.monotonic()
        if stage is None or stage.state != StageStatus.RUNNING or now_s - self._drawn_s < REDRAW_S:
            return
        self._drawn_s = now_s
        width = shutil.get_terminal_size().columns - 1
        line = safe_text(stage_line(stage, state, None))[:width]
        if line != self._drawn:
            write_out(line, clear=True)
            self._drawn = line

    def close(self) -> None:
        """Erase the live line."""
        if self._drawn:
            self._drawn = ""
            write_out("", clear=True)


class _Reasons:
    """Lines of events. A reason that the line of an attempt gave is not repeated by its stage and its run."""

    def __init__(self) -> None:
        self._given: set[str] = set()

    def line(self, event: AnyEvent) -> str:
        """An event's line, safe to print."""
        if isinstance(event, AttemptEnded) and event.detail:
            self._given.add(event.detail)
        return event_line(event, self._given if isinstance(event, StageFailed | RunEnded) else ())


def has_line(event: AnyEvent) -> bool:
    """Whether an event gets a line. An attempt that succeeded has none, because its stage's line follows."""
    if isinstance(event, AttemptEnded) and event.reason == EndReason.SUCCEEDED:
        return False
    return kind_of(event) not in METRIC_KINDS and not isinstance(event, _WITHOUT_LINE)


def event_line(event: AnyEvent, given: Collection[str] = ()) -> str:
    """An event's line, safe to print, without the reasons that were already given."""
    line = line_of(event)
    text = line.text
    for reason in given:
        stage, by = _stage_of(event)
        text = text.replace(f": {stage}: {reason}", by).replace(f": {reason}", "")
    mark = {"good": "✓", "warn": "!", "error": "✗"}.get(line.level, "·")
    if isinstance(event, RunStarted | RunEnded):
        mark = "■" if isinstance(event, RunEnded) else "▶"
    return f"{fmt.clock(line.t)} {mark} {safe_text(text, 400)}"


def _stage_of(event: AnyEvent) -> tuple[str, str]:
    """The stage that the reason of an end begins with, and what stands for both where the reason was given before."""
    if isinstance(event, StageFailed):
        return event.stage, ""
    stage = event.reason.partition(":")[0] if isinstance(event, RunEnded) else ""
    stopped = isinstance(event, RunEnded) and event.state == RunStatus.STOPPED
    return stage, f": {stage}" if stopped else f": stage {stage} failed"


def stage_line(stage: StageView, state: RunState, event: Step | Progress | None) -> str:
    """One line about a running stage: step, loss, learning rate, tokens per second and time left, or its progress.

    Args:
        stage: the stage.
        state: the run it belongs to.
        event: the event that the line reports; None for the stage's newest.
    """
    step = event if isinstance(event, Step) else None if event is not None else stage.last_step
    if step is not None:
        parts = _of_step(stage, state, step)
    else:
        progress = event if isinstance(event, Progress) else stage.progress
        parts = _of_progress(stage, state, progress)
    return "  ".join([safe_text(stage.name, 40), *parts])


def _of_step(stage: StageView, state: RunState, step: Step) -> list[str]:
    total = f"/{stage.total_steps}" if stage.total_steps else ""
    parts = [f"step {step.step}{total}", f"loss {fmt.loss(step.loss)}{headlines(step.metrics, '  ')}"]
    if step.learning_rate is not None:
        parts.append(f"lr {fmt.learning_rate(step.learning_rate)}")
    recent = [y for y in state.series(stage.name, "tokens_per_second").y[-8:] if y == y]
    if recent:
        parts.append(fmt.rate(sum(recent) / len(recent)))
    return [*parts, *_eta(state)]


def _eta(state: RunState) -> list[str]:
    """The time left; what the supervisor said instead while the engine makes no progress."""
    stage = state.current_stage
    if stage is not None and stage.current is not None and stage.current.present_stall is not None:
        return [HealthWord.STALLED]
    left = time_left(state)
    return [left.words] if left is not None else []


def _of_progress(stage: StageView, state: RunState, progress: Progress | None) -> list[str]:
    phase = [safe_text(stage.phase, 60)] if stage.phase else []
    if progress is None:
        return phase or ["starting"]
    share = f" ({fmt.percent(progress.done / progress.total)})" if progress.total else ""
    done = fmt.of_unit(progress.done, progress.total or None, safe_text(progress.unit, 20))
    parts = [*phase, f"{done}{share}"]
    return [*parts, *_eta(state)]
