"""Every key of every screen has one meaning, and an action that exists."""

from __future__ import annotations

import pytest

from cockpit.tui.charts.chart import Chart
from cockpit.tui.look.keys import SCOPES, footer_keys
from tests.tui import journals
from tests.tui.app_under_test import OneScreen, live_app, replay_app, settled, text
from tests.tui.event_source import EventSource


@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_every_key_has_one_meaning_and_an_id_of_its_own(scope: str) -> None:
    names = [name for key in SCOPES[scope] for name in key.keys.split(",")]
    assert len(names) == len(set(names))
    assert all(key.id.startswith(f"{scope}.") for key in SCOPES[scope])
    assert all(key.help.endswith(".") for key in SCOPES[scope])
    clashes = {"ctrl+a", "ctrl+b", "ctrl+backslash", "ctrl+z"} & set(names)
    assert scope == "recipe" or not clashes


@pytest.mark.parametrize(
    ("scope", "make"),
    [
        ("run", lambda: live_app(EventSource(journals.live(20).events))),
        ("replay", lambda: replay_app(journals.live(20).events)),
    ],
)
async def test_every_key_of_the_footer_and_of_help_runs_an_action_that_exists(scope: str, make: object) -> None:
    app: OneScreen = make()  # type: ignore[operator]
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        screen = app.run_screen
        bound = {key: binding.action for key, binding in screen._bindings}
        for key in SCOPES[scope]:
            for name in key.keys.split(","):
                assert bound[name] == key.action
            method = "action_" + key.action.partition("(")[0].removeprefix("app.")
            assert hasattr(app if key.action.startswith("app.") else screen, method), key
        shown = text(app).split("\n")[-1]
        for key in footer_keys(scope)[:4]:
            assert f"{key.in_bar} {key.label}" in shown


async def test_a_screen_that_is_too_small_does_not_break() -> None:
    for size in ((20, 5), (60, 20), (81, 24), (119, 35), (200, 60)):
        app = live_app(EventSource(journals.live(50).events))
        async with app.run_test(size=size) as pilot:
            await settled(pilot)
            assert isinstance(app.run_screen.query(Chart).first(), Chart)
            await pilot.resize_terminal(100, 30)
            await settled(pilot)
            assert "step 50/820" in text(app)
