"""The screen of a live run or a replay, and its keys.

Everything on it is computed from a `RunState`: the newest one of a live run, the one at the playhead of a replay. One
timer polls; the screen paints only what changed.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.text import Text
from textual import on
from textual.app import ComposeResult
from textual.binding import BindingsMap
from textual.containers import Container, Horizontal, Vertical
from textual.screen import Screen

from cockpit.launching.adoption import SCREEN, Observer
from cockpit.launching.requests import parsed
from cockpit.replay.playback import Playback
from cockpit.runs.ending import Ending, ending_of, last_lines
from cockpit.runs.eta import PlannedStage, read_plan
from cockpit.runs.health import Health
from cockpit.runs.state import RunState, StageView
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.app_protocol import app_of
from cockpit.tui.charts.chart import Chart
from cockpit.tui.charts.panels import SMOOTHING, Panel, ViewOptions, panels
from cockpit.tui.dialogs.control import SEND, evaluate_question, value_question
from cockpit.tui.dialogs.goto import GotoScreen
from cockpit.tui.dialogs.read import TextScreen
from cockpit.tui.look.clipboard import copy
from cockpit.tui.look.covered import is_covered
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say
from cockpit.tui.look.theme import palette
from cockpit.tui.screens.sources import LiveSource, Source
from cockpit.tui.widgets.ending_block import CONSOLE_LINES, console_text, ending_block
from cockpit.tui.widgets.key_bar import KeyBar
from cockpit.tui.widgets.line import Lines
from cockpit.tui.widgets.log_view import LogView
from cockpit.tui.widgets.side import side_column
from cockpit.tui.widgets.stage_panel import stage_panel
from cockpit.tui.widgets.stage_strip import progress_bar, stage_strip
from cockpit.tui.widgets.status import Part, problems, problems_rows, run_parts, stage_parts, status_line
from cockpit.tui.widgets.transport import timeline, transport_line
from engines.json_text import read_json
from engines.run_dir import RunDir, RunDirError
from engines.words import RunStatus, Verb
from recipes.problems import OperatorError

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


TRAINING_ACTIONS = frozenset(
    {"checkpoint", "pause_or_continue", "evaluate", "sample_text", "learning_rate", "max_steps"}
)
PLAYING_ACTIONS = frozenset({"play", "seek", "edge", "event", "speed", "goto"})
"""They move the playhead, which a replay has once its journal is read."""


class RunScreen(Screen[None]):
    """A run's status, stages, charts and log.

    Args:
        source: the source of its events; with a `playback` it is a replay.
        run_dir: the run directory, for requests, the recipe's fields and checkpoints.
        clock: monotonic seconds, for tests.
    """

    CSS = """
    RunScreen { layout: vertical; }
    RunScreen #status { background: $surface; }
    RunScreen #timeline, RunScreen #transport, RunScreen #problems { display: none; }
    RunScreen #middle { height: 1fr; }
    RunScreen #charts { layout: grid; grid-size: 2 2; grid-gutter: 0 1; width: 1fr; height: 2fr; }
    RunScreen Chart { display: none; }
    RunScreen #panel { display: none; height: 3fr; width: 1fr; }
    RunScreen #side { width: 40; height: 1fr; display: none; }
    """
    AUTO_FOCUS = ""

    def __init__(self, source: Source, run_dir: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.source = source
        self.run_dir = run_dir
        self.key_scopes = ("replay",) if self.playback is not None else ("run",)
        self._bindings = BindingsMap.merge([self._bindings, BindingsMap(bindings(*self.key_scopes))])
        self.options = ViewOptions(log=set())
        self.frozen = False
        self.maximised = False
        self.chosen = 0
        self.page = 0
        self._pages = 1
        self._stage_name: str | None = None
        self._clock = clock
        self._last_tick_s = clock()
        self._facts: dict[str, Any] | None = None
        self._observer = Observer(RunDir(run_dir), SCREEN)
        self._painted: tuple[object, ...] = ()
        self._painted_version, self._painted_s = -1, -PAINT_S
        self._charts: list[Chart] = []
        self._console_lines: tuple[object, list[str]] | None = None
        self._alert_rows = 0
        self._planned: dict[str, PlannedStage] | None = None
        self._may_read = False
        self._reads_soon = False
        self._adopting = False

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
        if self._facts is None:
            self._facts = _read_facts(self.run_dir)
        stage = self.stage
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
        replay = self.playback is not None
        self.query_one("#timeline").display = self.query_one("#transport").display = replay
        self.query_one("#bar").display = not replay
        self.query_one(LogView).end_key = "pgdn" if replay else "end"
        self.set_interval(TICK_S, self.tick)
        if self.playback is not None and self.playback.index == 0:
            self.playback.playing = True
        self.set_interval(SCREEN.every_s, self._keep_supervised)
        self.paint()
        self.call_after_refresh(self._begin_to_read)

    def _begin_to_read(self) -> None:
        """Read, now that the screen is drawn: a long journal takes seconds."""
        self._may_read = True
        self._keep_supervised()
        self.tick()

    def on_unmount(self) -> None:
        self.source.close()

    def on_screen_resume(self) -> None:
        self._last_tick_s = self._clock()
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
        now_s = self._clock()
        if not self._may_read or is_covered(self):
            return
        passed_s, self._last_tick_s = now_s - self._last_tick_s, now_s
        if self.source.reading is not None:
            self._read()
            self._keep_supervised()
        elif self.playback is not None:
            self.playback.tick(min(passed_s, 1.0))
        elif not self.frozen:
            self._read()
        self.paint()

    def _read(self) -> None:
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
        self.query_one(LogView).show(lines, "log" if self.playback is None else "log up to the playhead")

    def _paint_reading(self, share: float) -> None:
        """Show how much of the journal was read, and nothing that the rest of it could contradict."""
        parts = [Part(0, f"reading {fmt.percent(share)}", "accent"), Part(3, safe_text(self.run_dir.name, 40))]
        self._line("status", status_line(parts, self.size.width, palette(self.app.theme_variables)))

    def _stamp(self, run_state: RunStatus, health: Health) -> tuple[object, ...]:
        """What the picture depends on, except new records of a live run, which may wait for the next picture."""
        state, playback, options = self.state, self.playback, self.options
        minute = self.source.now() // 60 if self.source.live else 0
        played = (playback.index, playback.playing, playback.speed) if playback is not None else ()
        facts = (
            id(state),
            0 if self.source.live else state.version,
            state.unreadable,
            state.unknown,
            run_state,
            health.line,
            health.machine_is_old,
            minute,
            *played,
        )
        view = (self.frozen, self._stage_name, self.chosen, self.page, self.maximised)
        return (*facts, *view, tuple(sorted(options.log)), options.smooth, options.zoom, options.cursor, options.plan)

    def _paint_lines(self, run_state: RunStatus, health: Health) -> None:
        state, stage, width, colours = self.state, self.stage, self.size.width, palette(self.app.theme_variables)
        replay = self.playback is not None
        parts = run_parts(
            state,
            run_state,
            health,
            self.run_dir.name,
            stage,
            self.source.now(),
            frozen=self.frozen,
            planned=self.planned,
        )
        if replay:
            parts = [
                Part(0, "▶ REPLAY", "accent"),
                Part(1, safe_text(self.run_dir.name, 40)),
                parts[0],
                *stage_parts(state, stage),
            ]
        if self._pages > 1:
            rank = 8 if self.page == 0 else 2
            parts.append(Part(rank, f"charts {self.page + 1}/{self._pages} (v)", "text-muted"))
        self._line("status", status_line(parts, width, colours))
        self._line(
            "strip",
            stage_strip(state.stages, stage.name if stage else None, width, colours, lost=run_state == RunStatus.LOST),
        )
        if self.playback is not None:
            self._line("timeline", timeline(self.playback, width, colours))
            self._line("transport", transport_line(self.playback, width, colours))
        else:
            self._line("bar", progress_bar(stage.fraction if stage else None, width, colours))
        found = problems(state, run_state, health)
        self._paint_alerts(found, run_state, width, colours)
        self.query_one(KeyBar).update_keys()

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
        if not with_curves and stage is not None:
            width = self.size.width - (SIDE_WIDTH if wide else 0)
            rows = panel.size.height or 10
            panel.show(stage_panel(stage, width, rows, colours, enlarged=self.maximised))
        if wide:
            side.show(
                side_column(self.state, stage, self.facts, self.playback, (SIDE_WIDTH, side.size.height), colours)
            )

    def _arrange(self, count: int, *, wide: bool, with_curves: bool) -> None:
        """Set which charts are visible, and their columns and rows."""
        grid = self.query_one("#charts")
        if not with_curves:
            shown = list(range(count))
            columns, rows = max(1, count), 1
        elif self.maximised:
            shown, columns, rows = [min(self.chosen, count - 1)], 1, 1
        elif wide:
            shown, columns, rows = list(range(count)), 3 if count > 4 else 2, 2 if count > 2 else 1
        elif self._alert_rows > 2 and self.size.height < TALL:  # two rows of charts would be too low to read
            first = min(self.chosen // 2 * 2, max(0, count - 2))
            shown, columns, rows = list(range(first, min(count, first + 2))), min(2, max(1, count)), 1
        else:
            first = 2 if self.chosen >= 4 else 0
            shown = list(range(first, min(count, first + 4)))
            columns, rows = (2 if len(shown) > 1 else 1), (2 if len(shown) > 2 else 1)
        grid.display = bool(shown)
        grid.styles.grid_size_columns, grid.styles.grid_size_rows = columns, rows
        for number, chart in enumerate(self.charts):
            chart.display = number in shown

    def _line(self, name: str, text: Text) -> None:
        self.query_one(f"#{name}", Lines).show([text])

    # ---- supervision

    def _keep_supervised(self) -> None:
        """Make sure that a run on the screen has a supervisor: without one the next stage never starts.

        A look may need the journal. It waits until the screen has read it, and for the look before it.
        """
        if not isinstance(self.source, LiveSource) or not self.source.live or self._adopting:
            return
        if self._may_read and self.source.reading is None:
            self._adopting = True
            self.run_worker(self._adopt, thread=True, exit_on_error=False, group="supervision")

    def _adopt(self) -> None:
        """Adopt the run if its supervisor died, and show a message; called in a thread."""
        try:
            self._look_and_adopt()
        finally:
            self._adopting = False

    def _look_and_adopt(self) -> None:
        with suppress(OperatorError, RunDirError):  # a directory of a newer format, or one that cannot be written
            refused = self._observer.refused
            if self._observer.adopt():
                self.app.call_from_thread(
                    say, self, f"{self.run_dir.name}: the supervisor had died; a new one took over"
                )
            elif self._observer.refused and not refused:
                text = f"{self._observer.refused}\nsee what it would start: cockpit trust {self.run_dir}"
                self.app.call_from_thread(say, self, text, "warning")

    # ---- keys of live runs and replays

    @property
    def _trains(self) -> bool:
        """Whether the running stage makes steps, so that its engine takes requests between them."""
        stage = self.state.current_stage
        return stage is not None and (stage.last_step is not None or stage.total_steps is not None)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's name
        """Offer requests and freezing only for live runs."""
        if action == "page":
            return self._pages > 1
        if action in TRAINING_ACTIONS and not self._trains:
            return False
        if action in PLAYING_ACTIONS and self.playback is not None:
            return self.source.reading is None
        if action in {"freeze", "stop", *TRAINING_ACTIONS}:
            reading = self.source.reading is not None
            return self.source.live and (reading or self.source.run_state != RunStatus.LOST)
        return True

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
            self._new_picture()

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

    def action_stage(self, by: int) -> None:
        stages, stage = self.state.stages, self.stage
        if stage is None:
            return
        at = next(n for n, s in enumerate(stages) if s.name == stage.name)
        self._stage_name = stages[min(len(stages) - 1, max(0, at + by))].name
        self._new_picture()

    def action_follow(self) -> None:
        self._stage_name = None
        self.options.zoom, self.options.cursor = 1.0, None
        self.maximised, self.chosen, self.page = False, 0, 0
        self._new_picture()

    def action_log_scroll(self, by: int) -> None:
        self.query_one(LogView).scroll_rows(by)

    def action_log_edge(self, end: int) -> None:
        log = self.query_one(LogView)
        if end:
            log.follow()
        else:
            log.show_oldest()

    def action_output(self) -> None:
        ending, colours = self.ending, palette(self.app.theme_variables)
        title = f"{ending.stage}, attempt {ending.attempt}" if ending.stage is not None else self.run_dir.name
        self.app.push_screen(TextScreen(title, console_text(RunDir(self.run_dir), ending, colours), at_end=True))

    def action_actions(self) -> None:
        app_of(self).open_checkpoints(self.run_dir)

    def action_copy_path(self) -> None:
        say(self, copy(self.app, str(self.run_dir)))

    # ---- keys of a live run

    def action_freeze(self) -> None:
        self.frozen = not self.frozen
        self.tick()

    def action_inspect(self, by: int) -> None:
        stage = self.stage
        x = self.state.series(stage.name, "loss").x if stage is not None else None
        if x:
            here = self.options.cursor
            at = len(x) if here is None else min(bisect_left(x, here), len(x) - 1)
            target = at + by
            self.options.cursor = x[max(0, target)] if target < len(x) else None
            self.paint()

    def action_checkpoint(self) -> None:
        app_of(self).request(RunDir(self.run_dir), Verb.CHECKPOINT)

    def action_pause_or_continue(self) -> None:
        verb = Verb.CONTINUE if self.source.run_state == RunStatus.PAUSED else Verb.PAUSE
        app_of(self).request(RunDir(self.run_dir), verb)

    def action_evaluate(self) -> None:
        def answered(answer: str | None) -> None:
            if answer == SEND:
                app_of(self).request(RunDir(self.run_dir), Verb.EVALUATE)

        self.app.push_screen(evaluate_question(self.state.current_stage), answered)

    def action_sample_text(self) -> None:
        self._ask_and_send(Verb.SAMPLE)

    def action_learning_rate(self) -> None:
        self._ask_and_send(Verb.LEARNING_RATE)

    def action_max_steps(self) -> None:
        self._ask_and_send(Verb.MAX_STEPS)

    def _ask_and_send(self, verb: Verb) -> None:
        def answered(text: str | None) -> None:
            if text is not None:
                value, words = parsed(verb, text)
                app_of(self).request(RunDir(self.run_dir), verb, value, words)

        self.app.push_screen(value_question(verb, self.state.current_stage), answered)

    def action_stop(self) -> None:
        app_of(self).ask_to_stop(RunDir(self.run_dir))

    def leaving(self) -> str:
        """The notice for an operator who closes this screen; empty: none."""
        return (
            "training continues"
            if self.playback is None and self.source.live and self.source.run_state != RunStatus.LOST
            else ""
        )

    # ---- keys of a replay

    def action_play(self) -> None:
        if self.playback is not None:
            self.playback.toggle()
            self._last_tick_s = self._clock()
            self.paint()

    def action_seek(self, by: int) -> None:
        self._seek(lambda playback: playback.seek_samples(by))

    def action_edge(self, end: int) -> None:
        self._seek(lambda playback: playback.seek(len(playback) if end else 0))

    def action_event(self, by: int) -> None:
        self._seek(lambda playback: playback.seek_moment(by))

    def action_speed(self, by: int) -> None:
        if self.playback is not None:
            self.playback.change_speed(by)
            self.paint()

    def action_goto(self) -> None:
        def answered(step: int | None) -> None:
            stage = self.stage
            if step is None:
                return
            if self.playback is not None:
                self._go_to_step(self.playback, step, stage.name if stage else None)
            self._pause()

        self.app.push_screen(GotoScreen(), answered)

    def _go_to_step(self, playback: Playback, step: int, stage: str | None) -> None:
        """Go to the step of this stage. Only from a stage without steps, another stage is shown, and named."""
        if playback.seek_step(step, stage):
            return
        here, name = playback.index, safe_text(stage, 40) if stage else "this run"
        if playback.seek_step(0, stage):
            playback.seek(here)
            say(self, f"{name} has no step {step} or later; e and E go to other stages", "warning")
        elif playback.seek_step(step) and self.stage is not None:
            say(self, f"{name} has no steps; this is step {step} of {safe_text(self.stage.name, 40)}")
        else:
            say(self, f"this run has no step {step} or later", "warning")

    def _seek(self, move: Callable[[Playback], object]) -> None:
        if self.playback is not None:
            move(self.playback)
            self._pause()

    def _pause(self) -> None:
        """After a jump: stop playing, and show the newest line at the playhead."""
        if self.playback is not None:
            self.playback.playing = False
        self.query_one(LogView).follow()
        self.paint()

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

    def _new_picture(self) -> None:
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
