"""The form's look at the data of a recipe: in a thread, some time after the last edit, and once for each content."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from textual.screen import Screen
from textual.timer import Timer
from textual.worker import Worker, get_current_worker

from cockpit.planning.data_look import look_at_data
from engines.look.answer import StageLook
from recipes.load import LoadedRecipe
from recipes.stages.data_fields import ReadFields

LOOK_AFTER_S = 1.0
"""Seconds without an edit before the data is read."""


class DataEstimate:
    """What the data of a form's recipe gives; empty until it was read.

    Args:
        screen: the form.
        changed: called on the screen's thread when there is a new result.
    """

    def __init__(self, screen: Screen[Any], changed: Callable[[], None]) -> None:
        self._screen = screen
        self._changed = changed
        self._timer: Timer | None = None
        self._worker: Worker[None] | None = None
        self._asked = ""
        self._done = ""
        self._looks: Mapping[str, StageLook] = {}

    def looks(self, loaded: LoadedRecipe | None) -> Mapping[str, StageLook]:
        """The looks at the data of this recipe; empty if they are of another content."""
        return self._looks if loaded is not None and _content(loaded) == self._done else {}

    def ask(self, loaded: LoadedRecipe | None) -> None:
        """Read the data of a recipe soon, if it has not been read yet."""
        content = "" if loaded is None else _content(loaded)
        if loaded is None or content in ("", self._asked):
            return
        self._asked = content
        if self._timer is not None:
            self._timer.stop()
        if self._worker is not None:
            self._worker.cancel()
        self._timer = self._screen.set_timer(LOOK_AFTER_S, lambda: self._read(loaded, content))

    def _read(self, loaded: LoadedRecipe, content: str) -> None:
        app = self._screen.app

        def work() -> None:
            worker = get_current_worker()
            looks = look_at_data(loaded, lambda: worker.is_cancelled)
            if not worker.is_cancelled:
                app.call_from_thread(self._take, content, looks)

        self._worker = self._screen.run_worker(work, thread=True, exit_on_error=False, group="data")

    def _take(self, content: str, looks: Mapping[str, StageLook]) -> None:
        if content == self._asked:
            self._done, self._looks = content, looks
            self._changed()


def _content(loaded: LoadedRecipe) -> str:
    """Equal for recipes that read the same data in the same way; empty for one that reads no data."""
    reads = any(isinstance(stage, ReadFields) for stage in loaded.recipe.stage)
    return json.dumps(loaded.resolved, sort_keys=True) if reads else ""
