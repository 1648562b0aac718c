"""The keys of a run's screen, live or played back; what it shows is in `run_picture`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from textual import on

from cockpit.runs.playback import Playback
from cockpit.text.safe_text import safe_text
from cockpit.tui.screens.goto import GotoScreen
from cockpit.tui.screens.navigation import navigator
from cockpit.tui.screens.panels import SMOOTHING, panels
from cockpit.tui.screens.run_picture import RUN_CSS, RunPicture
from cockpit.tui.screens.run_requests import ask, keep_supervised, stop_question
from cockpit.tui.screens.sources import LiveSource
from cockpit.tui.widgets.chart import Chart
from cockpit.tui.widgets.log_view import LogView
from engines.run_dir import RunDir
from engines.words import RunStatus, Verb

SUPERVISED_EVERY_S = 5.0


class RunScreen(RunPicture):
    """A run: see `RunPicture` for its arguments."""

    CSS = RUN_CSS

    def on_mount(self) -> None:
        """See to it, now and then, that a run which is watched has a supervisor: without one no next stage starts."""
        if isinstance(self.source, LiveSource):
            self._keep_supervised()
            self.set_interval(SUPERVISED_EVERY_S, self._keep_supervised)

    def _keep_supervised(self) -> None:
        if self.source.live:
            self.run_worker(
                partial(keep_supervised, self.app, RunDir(self.run_dir)),
                thread=True,
                exclusive=True,
                exit_on_error=False,
                group="supervision",
            )

    # ---- keys of both

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's name
        """Requests and freezing are for runs that go on."""
        if action in {"freeze", "checkpoint", "stop"}:
            return self.source.live and self.source.run_state != RunStatus.LOST
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

    def action_zoom(self, factor: float) -> None:
        self.options.zoom = min(1.0, max(1 / 1024, self.options.zoom * factor))
        self.paint()

    def action_maximise(self) -> None:
        self.maximised = not self.maximised
        self.paint()

    def action_pane(self, number: int) -> None:
        stage = self.stage
        if stage is not None and number <= len(panels(self.state, stage, self.options, self.facts)):
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
        self.maximised, self.chosen = False, 0
        self._new_picture()

    def action_log_scroll(self, by: int) -> None:
        log = self.query_one(LogView)
        log.scroll_relative(y=by, animate=False)
        log.refresh()

    def action_actions(self) -> None:
        navigator(self).open_checkpoints(self.run_dir)

    def action_copy_path(self) -> None:
        self.app.copy_to_clipboard(str(self.run_dir))
        self.app.notify(safe_text(self.run_dir), title="copied", markup=False)

    # ---- keys of a live run

    def action_freeze(self) -> None:
        self.frozen = not self.frozen
        self.tick()

    def action_inspect(self, by: int) -> None:
        stage = self.stage
        x = self.state.series(stage.name, "loss").x if stage is not None else []
        if len(x):
            here = self.options.cursor
            at = len(x) if here is None else next((n for n, value in enumerate(x) if value >= here), len(x) - 1)
            target = at + by
            self.options.cursor = x[max(0, target)] if target < len(x) else None
            self.paint()

    def action_checkpoint(self) -> None:
        self._ask(Verb.CHECKPOINT)

    def action_stop(self) -> None:
        def answered(answer: str | None) -> None:
            verb = Verb.of(answer or "")
            if verb is not None and verb.is_stop:
                self._ask(verb)

        self.app.push_screen(stop_question(self.run_dir.name), answered)

    def _ask(self, verb: Verb) -> None:
        self.run_worker(
            partial(ask, self.app, RunDir(self.run_dir), verb), thread=True, exit_on_error=False, group="requests"
        )

    def leaving(self) -> str:
        """What to tell somebody who closes this screen."""
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
            playback = self.playback
            name = stage.name if stage else None
            if playback is not None and not (playback.seek_step(step, name) or playback.seek_step(step)):
                self.app.notify(f"no step {step} in this run", markup=False, severity="warning")
            self._pause()

        self.app.push_screen(GotoScreen(), answered)

    def _seek(self, move: Callable[[Playback], object]) -> None:
        if self.playback is not None:
            move(self.playback)
            self._pause()

    def _pause(self) -> None:
        if self.playback is not None:
            self.playback.playing = False
        self.paint()

    # ---- helpers

    @on(Chart.Clicked)
    def _choose_clicked(self, event: Chart.Clicked) -> None:
        self.chosen = self.charts.index(event.chart)
        self.paint()

    def _chosen_name(self) -> str:
        stage = self.stage
        found = panels(self.state, stage, self.options, self.facts) if stage is not None else []
        return found[self.chosen].name if self.chosen < len(found) else ""

    def _new_picture(self) -> None:
        for chart in self.charts:
            chart.fit()
        self.paint(force=True)
