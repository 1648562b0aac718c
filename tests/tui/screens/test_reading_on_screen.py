"""While a journal is being read, a screen shows how much of it, and nothing that the rest could contradict."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cockpit.tui.screens.live_run import LiveRunScreen
from cockpit.tui.screens.replay import ReplayScreen
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.screens.sources import LiveSource, replay_of
from engines.words import RunStatus
from tests.patience import PATIENCE_S
from tests.tui import journals
from tests.tui.app_under_test import OneScreen, live_app, settled, text
from tests.tui.event_source import EventSource
from tests.tui.looking import until

SIZES = [(80, 24), (160, 48)]


class UnreadSource(EventSource):
    """Events of which the screen has read a part."""

    share: float | None = 0.344

    @property
    def reading(self) -> float | None:
        return self.share


@pytest.mark.parametrize("size", SIZES)
async def test_while_a_journal_is_being_read_the_screen_shows_how_much_and_no_state_step_or_eta(
    size: tuple[int, int],
) -> None:
    source = UnreadSource(journals.live(412).events, lost=True)
    app = live_app(source)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "reading 34%" in shown
        for untrue in ("lost", "running", "step", "ETA", "resume it", "%b", "loss"):
            assert untrue not in shown, untrue
        source.share = None
        await until(pilot, lambda: "step 412/820" in text(app), "the picture")
        assert "reading" not in text(app)


def first_pictures(screen: RunScreen, pictures: list[str], *, read: str) -> None:
    """Keep what the screen shows at each call of this method of its source, before the call."""
    source, inner = screen.source, getattr(screen.source, read)

    def recorded() -> bool:
        strips_now = screen._compositor.render_strips(screen.app.size) if screen.is_attached else []
        pictures.append("\n".join(strip.text for strip in strips_now))
        found: bool = inner()
        return found

    setattr(source, read, recorded)


def live(run_dir: Path) -> RunScreen:
    return LiveRunScreen(LiveSource(run_dir), run_dir)


def replay(run_dir: Path) -> RunScreen:
    return ReplayScreen(replay_of(run_dir), run_dir)


@pytest.mark.parametrize("make", [live, replay])
async def test_a_screen_is_drawn_and_says_reading_before_it_reads_a_record(
    make: Callable[[Path], RunScreen], tmp_path: Path
) -> None:
    run_dir = journals.live(412).write(tmp_path / "20261120-2130-atlas")
    screen, pictures = make(run_dir), list[str]()
    first_pictures(screen, pictures, read="poll")
    app = OneScreen(lambda: screen)
    async with app.run_test(size=(160, 48)) as pilot:
        await until(pilot, lambda: screen.source.reading is None, "the end of the journal")
        assert "reading 0%" in pictures[0]
        assert "20261120-2130-atlas" in pictures[0]
        assert not any(str(word) in pictures[0] for word in RunStatus)


async def test_a_look_for_a_supervisor_waits_until_the_screen_has_read_the_journal_and_for_the_look_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = journals.live(412).write(tmp_path / "run")
    screen = LiveRunScreen(LiveSource(run_dir), run_dir)
    looks: list[float | None] = []
    go_on = threading.Event()

    def look() -> bool:
        looks.append(screen.source.reading)
        go_on.wait(PATIENCE_S)
        return False

    monkeypatch.setattr(screen._observer, "adopt", look)
    app = OneScreen(lambda: screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(looks), "a look")
        screen._keep_supervised()
        await pilot.pause()
        assert looks == [None]
        go_on.set()
        await until(pilot, lambda: not screen._adopting, "the end of the look")
        screen._keep_supervised()
        await until(pilot, lambda: looks == [None, None], "the next look")


async def test_a_replay_offers_no_playhead_before_its_journal_is_read(tmp_path: Path) -> None:
    run_dir = journals.live(412).write(tmp_path / "run")
    screen = replay(run_dir)
    assert not any(screen.check_action(action, ()) for action in ("play", "seek", "goto"))
    while screen.source.reading is not None:
        screen.source.poll()
    assert all(screen.check_action(action, ()) for action in ("play", "seek", "goto"))
    assert screen.playback is not None
    assert len(screen.playback) == len(journals.live(412).events)
