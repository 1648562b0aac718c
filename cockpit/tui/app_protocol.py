"""The part of the application that screens use: open another screen, start a run, send a request to a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from textual.screen import Screen

from engines.run_dir.paths import RunDir
from engines.words import Verb

if TYPE_CHECKING:
    from cockpit.forms.rows_target import RowsTarget
    from cockpit.planning.stages import Plan
    from cockpit.talking.target import ChatTarget
    from recipes.load import LoadedRecipe


class AppProtocol(Protocol):
    """The methods that screens call; `cockpit.tui.app.CockpitApp` implements them."""

    runs_root: Path
    """The folder that contains the runs."""

    def open_run(self, run_dir: Path) -> None: ...

    def open_replay(self, path: Path, speed: float | None = None) -> None: ...

    def open_recipe(self, path: Path) -> None: ...

    def open_rows(self, target: RowsTarget) -> None: ...

    def open_chat(self, target: ChatTarget) -> None: ...

    def open_checkpoints(self, run_dir: Path) -> None: ...

    def ask_to_launch(self, loaded: LoadedRecipe, figures: Plan | None, note: str = "") -> None: ...

    def start(self, work: Callable[[], RunDir]) -> None: ...

    def ask_to_stop(self, run: RunDir) -> None: ...

    def request(self, run: RunDir, verb: Verb, value: float | None = None, text: str = "") -> None: ...


def app_of(screen: Screen[Any]) -> AppProtocol:
    """The application that shows this screen."""
    return cast("AppProtocol", screen.app)
