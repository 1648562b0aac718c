"""What the screens of a live run and of a replay share: the picture, and the keys that change only the view.

Everything on it is computed from a `RunState`: the newest one of a live run, the one at the playhead of a replay. One
timer polls; the screen paints only what changed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingsMap
from textual.containers import Container, Horizontal, Vertical
from textual.screen import Screen

from cockpit.replay.playback import Playback
from cockpit.runs.ending import Ending, ending_of, last_lines
from cockpit.runs.eta import PlannedStage, read_plan
from cockpit.runs.health import Health
from cockpit.runs.state import RunState, StageView
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.app_protocol import app_of
from cockpit.tui.charts.arrangement import Arrangement, arrangement
from cockpit.tui.charts.chart import Chart
from cockpit.tui.charts.panels import SMOOTHING, Panel, ViewOptions, panels
from cockpit.tui.dialogs.read import TextScreen
from cockpit.tui.look.clipboard import copy
from cockpit.tui.look.covered import is_covered
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say
from cockpit.tui.look.theme import palette
from cockpit.tui.screens.sources import Source
from cockpit.tui.widgets.ending_block import CONSOLE_LINES, console_text, ending_block
from cockpit.tui.widgets.key_bar import KeyBar
from cockpit.tui.widgets.line import Lines
from cockpit.tui.widgets.log_view import LogView
from cockpit.tui.widgets.side import side_column
from cockpit.tui.widgets.stage_panel import stage_panel
from cockpit.tui.widgets.stage_strip import progress_bar, stage_strip
from cockpit.tui.widgets.status import Part, problems, problems_rows, run_parts, status_line
from engines.json_text import read_json
from engines.run_dir.paths import RunDir
from engines.words import RunStatus

TICK_S = 0.2
"""Keys, requests and new states are on the screen within this time; a tick without new events sends nothing."""
PAINT_S = 0.7
"""New steps are painted in pictures this far apart: a faster training costs the screen nothing more."""
BUDGET_S = 0.05
"""Longest time that one tick applies events before keys are handled."""
CHARTS = 6
WIDE, TALL = 120, 36
SIDE_WIDTH = 40
LOG_LINES = 500
ALERT_ROWS, ALERT_ROWS_TALL = 7, 14
"""Most rows of problems and of a run's end above the charts, on a short and on a tall screen."""


class RunScreen(Screen[None]):
    """A run's status, stages, charts and log; `LiveRunScreen` and `ReplayScreen` have keys of their own beside.

    Args:
        source: the source of its events.
        run_dir: the run directory, for requests, the recipe's fields and checkpoints.
        clock: monotonic seconds, for tests.
    """

    CSS = """
    #status { background: $surface; }
    #timeline, #transport, #problems { display: none; }
    #middle { height: 1fr; }
    #charts { layout: grid; grid-size: 2 2; grid-gutter: 0 1; width: 1fr; height: 2fr; }
    Chart { display: none; }
    #panel { display: none; height: 3fr; width: 1fr; }
    #side { width: 40; height: 1fr; display: none; }
    """
    """Without a class before them: of a subclass, they are rules within that subclass."""
    AUTO_FOCUS = ""
    key_scopes: tuple[str, ...] = ()
    log_title = "log"

    def __init__(self, source: Source, run_dir: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.source = source
        self.run_dir = run_dir
        self._bindings = BindingsMap.merge([self._bindings, BindingsMap(bindings(*self.key_scopes))])
        self.options = ViewOptions(log=set())
        self.maximised = False
        self.chosen = 0
        self.page = 0
        self._pages = 1
        self._stage_name: str | None = None
        self.clock = clock
        self.last_tick_s = clock()
        self._facts: dict[str, Any] | None = None
        self._painted: tuple[object, ...] = ()
        self._painted_version, self._painted_s = -1, -PAINT_S
        self._charts: list[Chart] = []
        self._console_lines: tuple[object, list[str]] | None = None
        self._alert_rows = 0
        self._planned: dict[str, PlannedStage] | None = None
        self.may_read = False
        self._reads_soon = False

    # ---- the state, stage and fields on the screen

    @property
    def playback(self) -> Playback | None:
        """The playhead of a replay; None for a live run."""
        return self.source.playback

    @property
    def state(self) -> RunState:
        """The state that is shown."""
        return self.source.state

    @property
    def stage(self) -> StageView | None:
        """The stage that is shown: the selected one, else the current one."""
        chosen = self.state.stage(self._stage_name) if self._stage_name is not None else None
        return chosen or self.state.current_stage

    @property
    def facts(self) -> dict[str, Any]:
        """The resolved recipe's fields of the stage that is shown; empty when they cannot be read."""
        return self.fields_of(self.stage)

    def fields_of(self, stage: StageView | None) -> dict[str, Any]:
        """The resolved recipe's fields of a stage; empty when they cannot be read."""
        if self._facts is None:
            self._facts = _read_facts(self.run_dir)
        found = self._facts.get(stage.name) if stage is not None else None
        return found if isinstance(found, dict) else {}

    @property
    def planned(self) -> dict[str, PlannedStage]:
        """The stages of the run's plan, for the time that later stages need."""
        if self._planned is None:
            self._planned = read_plan(RunDir(self.run_dir))
        return self._planned

    @property
    def ending(self) -> Ending:
        """Why the run ended and whose console.log says more; for a live run, that of the stage that is shown."""
        found = ending_of(self.state)
        stage = self.stage
        if found is not None and (self._stage_name is None or found.stage == self._stage_name):
            return found
        attempt = stage.current.attempt if stage is not None and stage.current is not None else None
        return Ending((), stage.name if stage is not None else None, attempt)

    @property
    def charts(self) -> list[Chart]:
        """All charts, in the order of their numbers; none before the screen is composed."""
        return self._charts

    def compose(self) -> ComposeResult:
        yield Lines(id="status")
        yield Lines(id="strip")
        yield Lines(id="bar")
        yield Lines(id="timeline")
        yield Lines(id="transport")
        yield Lines(id="problems")
        with Horizontal(id="middle"):
            with Vertical(id="main"):
                yield Lines(id="panel")
                with Container(id="charts"):
                    for number in range(1, CHARTS + 1):
                        yield Chart(id=f"chart-{number}")
            yield Lines(id="side")
        yield LogView(id="log")
        yield KeyBar(*self.key_scopes)

    def on_mount(self) -> None:
        self._charts = list(self.query(Chart))
        self.set_interval(TICK_S, self.tick)
        self.paint()
        self.call_after_refresh(self._begin_to_read)

    def _begin_to_read(self) -> None:
        """Read, now that the screen is drawn: a long journal takes seconds."""
        self.may_read = True
        self.tick()

    def on_unmount(self) -> None:
        self.source.close()

    def on_screen_resume(self) -> None:
        self.last_tick_s = self.clock()
        self.paint(force=True)

    def on_resize(self) -> None:
        self.paint(force=True)

    @on(Lines.Resized, "#panel, #side")
    def _fill(self) -> None:
        """Repaint after the layout changed a widget's size."""
        self.paint(force=True)

    # ---- time

    def tick(self) -> None:
        """Read new events within the time budget and paint what changed, also under a dialog."""
        now_s = self.clock()
        if not self.may_read or is_covered(self):
            return
        passed_s, self.last_tick_s = now_s - self.last_tick_s, now_s
        self._advance(passed_s)
        self.paint()

    def _advance(self, passed_s: float) -> None:  # noqa: ARG002 - a replay moves its playhead by it
        """Come to what is new since the last tick."""
        self.read_new()

    def read_new(self) -> None:
        """Read new events within the time budget; the rest follows after keys are handled."""
        end_s = time.monotonic() + BUDGET_S
        self.source.poll()
        while self.source.catching_up and time.monotonic() < end_s:
            self.source.poll()
        if self.source.catching_up and not self._reads_soon:
            self._reads_soon = True
            self.set_timer(0.01, self._read_on)

    def _read_on(self) -> None:
        self._reads_soon = False
        self.tick()

    def paint(self, *, force: bool = False) -> None:
        """Update every visible widget; each sends only what differs."""
        if not self.is_attached or not self._charts:
            return
        reading = self.source.reading
        if reading is not None:
            self._paint_reading(reading)
            return
        state, run_state, health = self.state, self.source.run_state, self.source.health
        self.options.machine_is_old = health.machine_is_old
        stamp, version, now_s = self._stamp(run_state, health), self.state.version, time.monotonic()
        is_due = version != self._painted_version and now_s - self._painted_s >= PAINT_S
        if not force and stamp == self._painted and not is_due:
            return
        self._painted, self._painted_version, self._painted_s = stamp, version, now_s
        self._paint_lines(run_state, health)
        self._paint_middle()
        lines = state.log(LOG_LINES)
        self.query_one(LogView).show(lines, self.log_title)

    def _paint_reading(self, share: float) -> None:
        """Show how much of the journal was read, and nothing that the rest of it could contradict."""
        parts = [Part(0, f"reading {fmt.percent(share)}", "accent"), Part(3, safe_text(self.run_dir.name, 40))]
        self.show_line("status", status_line(parts, self.size.width, palette(self.app.theme_variables)))

    def _stamp(self, run_state: RunStatus, health: Health) -> tuple[object, ...]:
        """What the picture depends on, except new records of a live run, which may wait for the next picture."""
        state, options = self.state, self.options
        minute = self.source.now() // 60 if self.source.live else 0
        facts = (
            id(state),
            0 if self.source.live else state.version,
            state.unreadable,
            state.unknown,
            run_state,
            health.line,
            health.machine_is_old,
            minute,
        )
        view = (self._stage_name, self.chosen, self.page, self.maximised)
        return (*facts, *view, tuple(sorted(options.log)), options.smooth, options.zoom, options.cursor, options.plan)

    def _paint_lines(self, run_state: RunStatus, health: Health) -> None:
        state, stage, width, colours = self.state, self.stage, self.size.width, palette(self.app.theme_variables)
        parts = self._heading(run_state, health)
        if self._pages > 1:
            rank = 8 if self.page == 0 else 2
            parts.append(Part(rank, f"charts {self.page + 1}/{self._pages} (v)", "text-muted"))
        self.show_line("status", status_line(parts, width, colours))
        self.show_line(
            "strip",
            stage_strip(state.stages, stage.name if stage else None, width, colours, lost=run_state == RunStatus.LOST),
        )
        self._paint_position(width, colours)
        found = problems(state, run_state, health)
        self._paint_alerts(found, run_state, width, colours)
        self.query_one(KeyBar).update_keys()

    def _heading(self, run_state: RunStatus, health: Health, *, frozen: bool = False) -> list[Part]:
        """The parts of the first line."""
        name, now_s = self.run_dir.name, self.source.now()
        return run_parts(self.state, run_state, health, name, self.stage, now_s, frozen=frozen, planned=self.planned)

    def _paint_position(self, width: int, colours: dict[str, str]) -> None:
        """Paint how far the stage that is shown has come."""
        stage = self.stage
        self.show_line("bar", progress_bar(stage.fraction if stage else None, width, colours))

    def _paint_alerts(self, found: list[str], run_state: RunStatus, width: int, colours: dict[str, str]) -> None:
        """Problems, and why the run ended: wrapped, with the end of console.log."""
        rows = problems_rows(found, width, colours)
        ending = self.ending if run_state == RunStatus.LOST or ending_of(self.state) is not None else None
        if ending is not None:
            most = ALERT_ROWS_TALL if self.size.height >= TALL else ALERT_ROWS
            console = self._console_of(ending)
            rows += ending_block(ending, console, width, max(2, most - len(rows)), colours, key="o")
        box = self.query_one("#problems", Lines)
        box.display, box.styles.height = bool(rows), len(rows)
        self._alert_rows = len(rows)
        box.show(rows)

    def _console_of(self, ending: Ending) -> list[str]:
        """The last lines of its console.log, read once for each state of the journal."""
        key = (ending.stage, ending.attempt, self.state.version)
        if self._console_lines is None or self._console_lines[0] != key:
            found = last_lines(RunDir(self.run_dir), ending, CONSOLE_LINES)
            self._console_lines = (key, found)
        return self._console_lines[1]

    def _paint_middle(self) -> None:
        stage, wide, tall = self.stage, self.size.width >= WIDE, self.size.height >= TALL
        colours = palette(self.app.theme_variables)
        side, panel, log = self.query_one("#side", Lines), self.query_one("#panel", Lines), self.query_one(LogView)
        side.display = wide
        log.styles.height = 11 if tall else 5
        log.display = not (
            self.maximised and (stage is None or stage.last_step is None)
        )  # an enlarged panel uses the log's rows
        with_curves = stage is not None and stage.last_step is not None
        found = self._panels()
        panel.display = not with_curves
        if not with_curves:
            found = found[:3] if wide else found[:2]
            found = found if (tall or self.size.height >= 24) and not self.maximised else []
        self._arrange(len(found), wide=wide, with_curves=with_curves)
        for number, chart in enumerate(self.charts):
            if number < len(found) and chart.display:
                chart.chosen = with_curves and number == self.chosen
                chart.show(found[number].make())
        if not with_curves:
            width = self.size.width - (SIDE_WIDTH if wide else 0)
            rows = panel.size.height or 10
            # Before the first event there is no stage: the start of a replay must not keep what stood there.
            panel.show([] if stage is None else stage_panel(stage, width, rows, colours, enlarged=self.maximised))
        if wide:
            side.show(
                side_column(self.state, stage, self.facts, self.playback, (SIDE_WIDTH, side.size.height), colours)
            )

    def _arrange(self, count: int, *, wide: bool, with_curves: bool) -> None:
        """Set which charts are visible, and their columns and rows."""
        grid, crowded = self.query_one("#charts"), self._alert_rows > 2 and self.size.height < TALL
        found = (
            arrangement(count, self.chosen, wide=wide, alone=self.maximised, crowded=crowded)
            if with_curves
            else Arrangement(list(range(count)), max(1, count), 1)
        )
        grid.display = bool(found.shown)
        grid.styles.grid_size_columns, grid.styles.grid_size_rows = found.columns, found.rows
        for number, chart in enumerate(self.charts):
            chart.display = number in found.shown

    def show_line(self, name: str, text: Text) -> None:
        self.query_one(f"#{name}", Lines).show([text])

    # ---- keys that change the view

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's name
        """Offer a page of charts only where there are several."""
        return self._pages > 1 if action == "page" else True

    def action_log_y(self) -> None:
        name = self._chosen_name()
        if name:
            self.options.log ^= {name}
            self.charts[self.chosen].fit()
        self.paint()

    def action_smooth(self) -> None:
        self.options.smooth = (self.options.smooth + 1) % len(SMOOTHING)
        self.paint()

    def action_fit(self) -> None:
        self.options.zoom = 1.0
        for chart in self.charts:
            chart.fit()
        self.paint(force=True)

    def action_plan(self) -> None:
        self.options.plan = not self.options.plan
        self.paint()

    def action_page(self) -> None:
        if self._pages > 1:
            self.page = (self.page + 1) % self._pages
            self.chosen = 0
            self.new_picture()

    def action_zoom(self, factor: float) -> None:
        self.options.zoom = min(1.0, max(1 / 1024, self.options.zoom * factor))
        self.paint()

    def action_maximise(self) -> None:
        self.maximised = not self.maximised
        self.paint()

    def action_pane(self, number: int) -> None:
        stage = self.stage
        if stage is not None and number <= len(self._panels()):
            self.chosen = number - 1
            self.paint()

    def action_follow(self) -> None:
        self._stage_name = None
        self.options.zoom, self.options.cursor = 1.0, None
        self.maximised, self.chosen, self.page = False, 0, 0
        self.new_picture()

    def action_log_scroll(self, by: int) -> None:
        self.query_one(LogView).scroll_rows(by)

    def action_output(self) -> None:
        ending, colours = self.ending, palette(self.app.theme_variables)
        title = f"{ending.stage}, attempt {ending.attempt}" if ending.stage is not None else self.run_dir.name
        self.app.push_screen(TextScreen(title, console_text(RunDir(self.run_dir), ending, colours), at_end=True))

    def action_actions(self) -> None:
        app_of(self).open_checkpoints(self.run_dir)

    def action_copy_path(self) -> None:
        say(self, copy(self.app, str(self.run_dir)))

    def leaving(self) -> str:
        """The notice for an operator who closes this screen; empty: none."""
        return ""

    # ---- helpers

    @on(Chart.Clicked)
    def _choose_clicked(self, event: Chart.Clicked) -> None:
        self.chosen = self.charts.index(event.chart)
        self.paint()

    def _chosen_name(self) -> str:
        found = self._panels()
        return found[self.chosen].name if self.chosen < len(found) else ""

    def _panels(self) -> list[Panel]:
        """The charts of this page: at most six."""
        stage = self.stage
        found = panels(self.state, stage, self.options, self.facts) if stage is not None else []
        self._pages = max(1, -(-len(found) // CHARTS))
        self.page = min(self.page, self._pages - 1)
        return found[self.page * CHARTS :][:CHARTS]

    def new_picture(self) -> None:
        for chart in self.charts:
            chart.fit()
        self.paint(force=True)


def _read_facts(run_dir: Path) -> dict[str, Any]:
    """The stages of recipe.json by name; empty when it cannot be read (there is only a journal file, for example)."""
    try:
        value = read_json(RunDir(run_dir).recipe_json)
        stages = value["recipe"]["stage"]
        return {str(stage["name"]): stage for stage in stages}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
