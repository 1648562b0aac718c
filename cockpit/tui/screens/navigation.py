"""What a screen may ask of the application that shows it: to open another one."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, cast

from textual.screen import Screen


class Navigator(Protocol):
    """The application, as its screens see it; `cockpit.tui.app` is one."""

    runs_root: Path
    """The folder of runs."""

    def open_run(self, run_dir: Path) -> None: ...

    def open_replay(self, path: Path, speed: float | None = None) -> None: ...

    def open_recipe(self, path: Path) -> None: ...

    def open_checkpoints(self, run_dir: Path) -> None: ...


def navigator(screen: Screen[None]) -> Navigator:
    """The application that shows this screen."""
    return cast("Navigator", screen.app)
