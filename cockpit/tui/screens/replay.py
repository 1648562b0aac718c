"""The screen of a replay: its playhead, and the keys that move it."""

from __future__ import annotations

from collections.abc import Callable

from cockpit.replay.playback import Playback
from cockpit.runs.health import Health
from cockpit.text.safe_text import safe_text
from cockpit.tui.dialogs.goto import GotoScreen
from cockpit.tui.look.notices import say
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.widgets.log_view import LogView
from cockpit.tui.widgets.status import Part, stage_parts
from cockpit.tui.widgets.transport import timeline, transport_line
from engines.words import RunStatus

PLAYING_ACTIONS = frozenset({"play", "seek", "edge", "event", "speed", "goto"})
"""They move the playhead, which a replay has once its journal is read."""


class ReplayScreen(RunScreen):
    """A recorded run at its playhead."""

    key_scopes = ("replay",)
    log_title = "log up to the playhead"

    def on_mount(self) -> None:
        self.query_one("#timeline").display = self.query_one("#transport").display = True
        self.query_one("#bar").display = False
        self.query_one(LogView).end_key = "pgdn"
        if self.playback is not None and self.playback.index == 0:
            self.playback.playing = True

    def _advance(self, passed_s: float) -> None:
        if self.source.reading is not None:
            self.read_new()
        elif self.playback is not None:
            self.playback.tick(min(passed_s, 1.0))

    def _stamp(self, run_state: RunStatus, health: Health) -> tuple[object, ...]:
        playback = self.playback
        played = (playback.index, playback.playing, playback.speed) if playback is not None else ()
        return (*super()._stamp(run_state, health), *played)

    def _heading(self, run_state: RunStatus, health: Health, *, frozen: bool = False) -> list[Part]:
        first = super()._heading(run_state, health, frozen=frozen)[0]
        name = Part(1, safe_text(self.run_dir.name, 40))
        return [Part(0, "▶ REPLAY", "accent"), name, first, *stage_parts(self.state, self.stage)]

    def _paint_position(self, width: int, colours: dict[str, str]) -> None:
        if self.playback is not None:
            self.show_line("timeline", timeline(self.playback, width, colours))
            self.show_line("transport", transport_line(self.playback, width, colours))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer the playhead's keys once the journal is read."""
        if action in PLAYING_ACTIONS and self.playback is not None:
            return self.source.reading is None
        return super().check_action(action, parameters)

    def action_play(self) -> None:
        if self.playback is not None:
            self.playback.toggle()
            self.last_tick_s = self.clock()
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
