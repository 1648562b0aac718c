"""A replay on the screen: the playhead, its keys, its speed."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.replay.playback import Playback
from cockpit.tui.app import CockpitApp
from cockpit.tui.dialogs.goto import GotoScreen
from cockpit.tui.screens.run import RunScreen
from engines.events.runs import StageStarted
from engines.events.steps import Step
from tests.tui import journals
from tests.tui.app_under_test import replay_app, settled, text
from tests.tui.looking import notices, until


async def test_a_replay_shows_the_fold_up_to_the_playhead() -> None:
    events = journals.failed().events
    at = next(n for n, e in enumerate(events, 1) if isinstance(e, Step) and e.step == 300)
    app = replay_app(events, at)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "▶ REPLAY" in text(app)
        assert "step 300/820" in text(app)
        await pilot.press("right")
        await settled(pilot)
        assert "step 301/820" in text(app)
        await pilot.press("shift+right")
        await settled(pilot)
        assert "step 351/820" in text(app)
        await pilot.press("left")
        await settled(pilot)
        assert "step 350/820" in text(app)
        await pilot.press("home")
        await settled(pilot)
        assert app.run_screen.playback is not None
        assert app.run_screen.playback.index == 0
        await pilot.press("end")
        await settled(pilot)
        assert "✗ failed" in text(app)


async def test_e_goes_to_the_next_event_and_g_to_a_step() -> None:
    events = journals.failed().events
    app = replay_app(events, 1)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        playback = app.run_screen.playback
        assert playback is not None
        await pilot.press("e")
        first = playback.index
        assert first == playback.moments[0].index
        await pilot.press("e", "E")
        assert playback.index == first
        await pilot.press("g")
        await until(pilot, lambda: isinstance(app.screen, GotoScreen), "the dialog")
        await pilot.press(*"210", "enter")
        await settled(pilot)
        assert "step 210/820" in text(app)
        assert "questions has no steps; this is step 210 of atlas" in notices(app)


async def test_playing_moves_and_speed_changes() -> None:
    app = replay_app(journals.live(100).events, 20)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        playback = app.run_screen.playback
        assert playback is not None
        before = playback.index
        await pilot.press("right_square_bracket")
        assert playback.speed == 16.0
        for _ in range(5):
            await pilot.press("right_square_bracket")
        await pilot.press("space")
        await until(pilot, lambda: playback.at_end, "the end of the playback")
        assert playback.index > before
        assert not playback.playing


@pytest.mark.parametrize(("asked", "shown"), [(2.0, 2.0), (None, 8.0)])
async def test_a_replay_plays_at_the_requested_speed(tmp_path: Path, asked: float | None, shown: float) -> None:
    first, second = (journals.live(30).write(tmp_path / name) for name in ("first", "second"))
    app = CockpitApp(tmp_path, replay=first, speed=16.0)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "the replay")
        before = app.screen
        assert _playback(app).speed == 16.0
        app.open_replay(second, asked)
        await until(pilot, lambda: isinstance(app.screen, RunScreen) and app.screen is not before, "the second replay")
        assert _playback(app).speed == shown, "the first replay's speed is not used for the second"


def _playback(app: CockpitApp) -> Playback:
    assert isinstance(app.screen, RunScreen)
    assert app.screen.playback is not None
    return app.screen.playback


async def test_the_beginning_of_a_replay_shows_no_stage() -> None:
    events = journals.live(40).events
    at = next(n for n, event in enumerate(events, 1) if isinstance(event, StageStarted))
    app = replay_app(events, at)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "S T A R T I N G" in text(app)
        await pilot.press("home")
        await settled(pilot)
        assert "queued" in text(app)
        assert "S T A R T I N G" not in text(app), "the panel of the stage that stood there before"
