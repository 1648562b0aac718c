"""The screen of a live run: its supervision, and the keys that send requests to its engine."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cockpit.launching.adoption import SCREEN, Observer
from cockpit.launching.requests import parsed
from cockpit.runs.health import Health
from cockpit.runs.stage_view import StageView
from cockpit.tui.app_protocol import app_of
from cockpit.tui.dialogs.control import SEND, evaluate_question, value_question
from cockpit.tui.look.notices import say
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.screens.sources import LiveSource, Source
from cockpit.tui.widgets.log_view import LogView
from cockpit.tui.widgets.status import Part
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import RunStatus, Verb
from recipes.problems import OperatorError
from recipes.stages.registry import carries_out

TRAINING_ACTIONS = frozenset(
    {"checkpoint", "pause_or_continue", "evaluate", "sample_text", "learning_rate", "max_steps"}
)


class LiveRunScreen(RunScreen):
    """A run as it is now. Its view can stand still while it trains on.

    Args:
        source: the source of its events.
        run_dir: the run directory, for requests, the recipe's fields and checkpoints.
        clock: monotonic seconds, for tests.
    """

    key_scopes = ("run",)

    def __init__(self, source: Source, run_dir: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(source, run_dir, clock=clock)
        self.frozen = False
        self._observer = Observer(RunDir(run_dir), SCREEN)
        self._adopting = False

    def on_mount(self) -> None:
        self.query_one(LogView).end_key = "end"
        self.set_interval(SCREEN.every_s, self._keep_supervised)

    def _begin_to_read(self) -> None:
        super()._begin_to_read()
        self._keep_supervised()

    def _advance(self, passed_s: float) -> None:  # noqa: ARG002 - a replay moves its playhead by it
        if self.source.reading is not None:
            self.read_new()
            self._keep_supervised()
        elif not self.frozen:
            self.read_new()

    def _stamp(self, run_state: RunStatus, health: Health) -> tuple[object, ...]:
        return (*super()._stamp(run_state, health), self.frozen)

    def _heading(self, run_state: RunStatus, health: Health, *, frozen: bool = False) -> list[Part]:
        return super()._heading(run_state, health, frozen=frozen or self.frozen)

    def _paint_alerts(self, found: list[str], run_state: RunStatus, width: int, colours: dict[str, str]) -> None:
        if run_state == RunStatus.PAUSED and self.check_action("pause_or_continue", ()):
            found = [*found, "training is paused, and keeps its memory; p continues it"]
        super()._paint_alerts(found, run_state, width, colours)

    def leaving(self) -> str:
        """The notice for an operator who closes this screen; empty: none."""
        trains_on = self.source.live and self.source.run_state != RunStatus.LOST
        return "training continues" if trains_on else ""

    # ---- supervision

    def _keep_supervised(self) -> None:
        """Make sure that a run on the screen has a supervisor: without one the next stage never starts.

        A look may need the journal. It waits until the screen has read it, and for the look before it.
        """
        if not isinstance(self.source, LiveSource) or not self.source.live or self._adopting:
            return
        if self.may_read and self.source.reading is None:
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

    # ---- keys

    def _takes(self, action: str) -> bool:
        """Whether the running stage makes steps, so that its engine takes requests between them, and this one too."""
        stage = self.state.current_stage
        if stage is None or (stage.last_step is None and stage.total_steps is None):
            return False
        return carries_out(stage.kind, sampling=action == "sample_text")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer requests and freezing only while a run can take them."""
        if action in TRAINING_ACTIONS and not self._takes(action):
            return False
        if action in {"freeze", "stop", *TRAINING_ACTIONS}:
            reading = self.source.reading is not None
            return self.source.live and (reading or self.source.run_state != RunStatus.LOST)
        return super().check_action(action, parameters)

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

    def action_stage(self, by: int) -> None:
        stages, stage = self.state.stages, self.stage
        if stage is None:
            return
        at = next(n for n, s in enumerate(stages) if s.name == stage.name)
        self._stage_name = stages[min(len(stages) - 1, max(0, at + by))].name
        self.new_picture()

    def action_log_edge(self, end: int) -> None:
        log = self.query_one(LogView)
        if end:
            log.follow()
        else:
            log.show_oldest()

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

        stage = self.state.current_stage
        self.app.push_screen(value_question(verb, stage, prompts=self._prompts_of(stage)), answered)

    def _prompts_of(self, stage: StageView | None) -> int:
        """The number of prompts that the recipe has for samples of the stage."""
        prompts = self.fields_of(stage).get("sample_prompts")
        return len(prompts) if isinstance(prompts, list) else 0

    def action_stop(self) -> None:
        app_of(self).ask_to_stop(RunDir(self.run_dir))
