"""Lines of the run table: they fit every width, and text in them is inert."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.runs.summaries import RunSummary
from cockpit.tui.app import CockpitApp
from cockpit.tui.widgets.run_table import RunTable, columns, step_words
from engines.words import RunStatus
from tests.tui.looking import HOSTILE


@pytest.mark.parametrize("width", range(30, 160))
def test_every_line_fits_its_width_exactly(width: int) -> None:
    at = columns(width)
    shown = [at.recipe, at.state, at.stage, at.step, at.loss, at.time]
    assert 3 + at.id + sum(cells + 1 for cells in shown if cells) <= max(width, 8 + 3 + 14)


def test_long_step_counts_are_shortened_not_cut() -> None:
    run = RunSummary(id="a", path="/a", recipe="r", state=RunStatus.RUNNING, step=12_000, total_steps=500_000)
    assert step_words(run, 12) == "12000/500000"
    assert step_words(run, 9) == "12k/500k"


async def test_hostile_summaries_are_drawn_in_one_line_of_the_width() -> None:
    app = CockpitApp(Path("/nonexistent"))
    async with app.run_test(size=(80, 24)) as pilot:
        table = app.screen.query_one(RunTable)
        for words in HOSTILE:
            run = RunSummary(id=words, path=words, recipe=words, state=RunStatus(words), stage=words, loss=float("nan"))
            for width in (40, 60, 90, 140):
                line = table.draw_item(run, width)
                assert line.plain.isprintable()
                assert line.cell_len <= width
        await pilot.pause()


async def test_a_live_run_shows_how_it_is_doing_in_the_place_of_its_state() -> None:
    app = CockpitApp(Path("/nonexistent"))
    async with app.run_test(size=(80, 24)) as pilot:
        table = app.screen.query_one(RunTable)
        for health, word in (("suspended", "suspended"), ("hung", "hung"), ("waiting for data", "waiting")):
            run = RunSummary(id="a", path="/a", recipe="r", state=RunStatus.RUNNING, health=health)
            line = table.draw_item(run, 120).plain
            assert f" {word} " in line
            assert "running" not in line
        ended = RunSummary(id="a", path="/a", recipe="r", state=RunStatus.FAILED, health="running")
        assert " failed " in table.draw_item(ended, 120).plain
        await pilot.pause()
