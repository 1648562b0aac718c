"""Home's preview: text about a recipe, or a run's numbers above its loss curve."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

from cockpit.runs.ending import ending_of, last_lines
from cockpit.runs.state import RunState
from cockpit.runs.summaries import RunSummary
from cockpit.text import formatting
from cockpit.text.safe_text import safe_text
from cockpit.tui.charts.chart import Chart, ChartData
from cockpit.tui.charts.panels import ViewOptions, step_window, x_end
from cockpit.tui.look.theme import palette
from cockpit.tui.widgets.preview import run_heading, shown_stage
from engines.run_dir.paths import RunDir

MIN_POINTS = 2
LOG_LINES = 60
WIDE = 120


class Tail(Static):
    """The last lines of a list, as many as fit."""

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._lines: list[str] = []

    def show(self, lines: list[str]) -> None:
        """Show the last of these lines, which must already be safe."""
        self._lines = lines
        self.on_resize()

    def on_resize(self) -> None:
        room = self.size.height - 1
        text = Text("\n".join(self._lines[-room:] if room > 0 else []))
        if self.content != text:
            self.update(text)


class PreviewPane(Vertical):
    """Shows one recipe or run; the chart only for a run with steps."""

    SCOPED_CSS: ClassVar[bool] = False  # a scope would precede ".-wide", which is a class of the screen
    DEFAULT_CSS = """
    PreviewPane > VerticalScroll { height: 1fr; padding: 0 1; scrollbar-size-vertical: 1; }
    PreviewPane > Chart { display: none; height: 1fr; min-height: 4; max-height: 16; }
    PreviewPane > #log {
        display: none; height: 1fr; padding: 1 1 0 1;
        color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis;
    }
    PreviewPane.-run > VerticalScroll { height: auto; max-height: 60%; }
    PreviewPane.-curve > Chart { display: block; }
    PreviewPane.-ended > VerticalScroll { max-height: 100%; }
    PreviewPane.-ended > Chart { display: none; }
    .-wide PreviewPane.-ended.-curve > Chart { display: block; }
    .-wide PreviewPane.-run > #log { display: block; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._title = ""

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False):
            yield Static(id="about")
        yield Chart()
        yield Tail(id="log")

    def set_title(self, title: str) -> None:
        """Set the frame's title; an unchanged title paints nothing."""
        if title != self._title:
            self._title = title
            self.border_title = Text(safe_text(title, 60))

    def show_text(self, text: Text) -> None:
        """Show text alone."""
        self.remove_class("-run", "-curve", "-ended")
        self._write(text)

    def show_run(self, run: RunSummary, state: RunState | None, now: float) -> None:
        """Show a run: its state, its numbers, and its loss curve."""
        self.add_class("-run")
        ending = ending_of(state) if state is not None else None
        console: list[str] = []
        if ending is not None:
            wide = self.app.size.width >= WIDE
            console = last_lines(RunDir(Path(run.path)), ending, 8 if wide else 3)
        self.set_class(ending is not None, "-ended")
        colours = palette(self.app.theme_variables)
        self._write(run_heading(run, state, now, colours, self.size.width - 2, console))
        lines = (
            [] if state is None else [f"{formatting.clock(e.t)} {safe_text(e.text, 200)}" for e in state.log(LOG_LINES)]
        )
        self.query_one(Tail).show(lines)
        stage = shown_stage(state)
        series = state.series(stage.name, "loss") if state is not None and stage is not None else None
        self.set_class(series is not None and len(series) >= MIN_POINTS, "-curve")
        if series is None or state is None or stage is None or len(series) < MIN_POINTS:
            return
        options = ViewOptions(log=set())
        chart = self.query_one(Chart)
        if chart.data is None or chart.data.raw is not series:
            chart.fit()
        summary = formatting.number(series.last())
        points = state.series(stage.name, "eval_loss")
        chart.show(
            ChartData(
                "loss",
                series,
                step_window(stage, options),
                summary=summary,
                points=points if len(points) else None,
                x_end=x_end(stage, options),
            )
        )

    def _write(self, text: Text) -> None:
        box = self.query_one("#about", Static)
        if box.content != text:
            box.update(text)
