"""The application with one run screen, and functions that read the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from textual.app import App
from textual.pilot import Pilot
from textual.strip import Strip

from cockpit.replay.playback import Playback
from cockpit.tui.app import CockpitApp
from cockpit.tui.screens.live_run import LiveRunScreen
from cockpit.tui.screens.replay import ReplayScreen
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.screens.sources import ReplaySource
from engines.events.kinds import AnyEvent
from tests.tui.event_source import EventSource


class OneScreen(CockpitApp):
    """Opens the given screen."""

    def __init__(self, make: Callable[[], RunScreen], root: Path = Path("/nonexistent")) -> None:
        super().__init__(root)
        self._make = make

    def open_first(self) -> None:
        self.push_screen(self._make())

    @property
    def run_screen(self) -> RunScreen:
        screen = next(s for s in self.screen_stack if isinstance(s, RunScreen))
        assert isinstance(screen, RunScreen)
        return screen

    @property
    def live_screen(self) -> LiveRunScreen:
        screen = self.run_screen
        assert isinstance(screen, LiveRunScreen)
        return screen

    @property
    def replay_screen(self) -> ReplayScreen:
        screen = self.run_screen
        assert isinstance(screen, ReplayScreen)
        return screen


def live_app(source: EventSource, run_dir: Path = Path("/nonexistent/20261120-2130-atlas")) -> OneScreen:
    return OneScreen(lambda: LiveRunScreen(source, run_dir))


def replay_app(events: Iterable[AnyEvent], index: int | None = None) -> OneScreen:
    def make() -> RunScreen:
        playback = Playback(list(events))
        playback.seek(len(playback) if index is None else index)
        return ReplayScreen(ReplaySource(playback), Path("/nonexistent/20261120-2130-atlas"))

    return OneScreen(make)


def strips(app: App[None]) -> list[Strip]:
    return app.screen._compositor.render_strips(app.size)


def text(app: App[None]) -> str:
    return "\n".join(strip.text.rstrip() for strip in strips(app))


async def settled(pilot: Pilot[None]) -> None:
    """Wait until all messages are handled, all events are polled, and the picture no longer changes."""
    app = pilot.app
    assert isinstance(app, OneScreen)
    seen: list[str] = []
    while len(seen) < 200:
        await pilot.pause()
        app.run_screen.tick()
        await pilot.pause(0.01)
        seen.append(text(app))
        if len(seen) > 3 and seen[-1] == seen[-2] == seen[-3]:
            return
