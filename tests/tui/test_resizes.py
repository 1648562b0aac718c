"""A terminal that changes its size all the time."""

from __future__ import annotations

import random

from cockpit.tui.charts.chart import Chart
from tests.tui import journals
from tests.tui.app_under_test import live_app, settled, text
from tests.tui.event_source import EventSource


async def test_a_storm_of_resizes_ends_with_the_whole_picture() -> None:
    draw = random.Random(20261126)
    app = live_app(EventSource(journals.live(50).events))
    async with app.run_test(size=(100, 30)) as pilot:
        await settled(pilot)
        for _ in range(25):
            await pilot.resize_terminal(draw.randrange(1, 240), draw.randrange(1, 80))
        await pilot.resize_terminal(100, 30)
        await settled(pilot)
        assert "step 50/820" in text(app)
        assert isinstance(app.run_screen.query(Chart).first(), Chart)
