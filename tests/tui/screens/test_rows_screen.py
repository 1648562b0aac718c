"""The screen of rows: one row after another, its colours, its keys, and what a helper says."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from cockpit.forms.rows_target import RowsTarget
from cockpit.tui.app import CockpitApp
from cockpit.tui.screens.rows import RowBody, RowsScreen
from engines.look.row_view import RowsJob
from tests.engines.look.looked_at import TABLE, row, write_data, write_model
from tests.tui.looking import HOSTILE, SIZES, no_control_characters, notices, picture, until, until_seen


@asynccontextmanager
async def opened(
    folder: Path, size: tuple[int, int] = SIZES[0], **fields: Any
) -> AsyncIterator[tuple[RowsScreen, Pilot[None]]]:
    job = RowsJob({**TABLE, **fields}, str(folder / "data"), str(folder / "model"))
    app = CockpitApp(folder / "runs", rows=RowsTarget(job, sys.executable, "tuned · data"))
    async with app.run_test(size=size, notifications=True) as pilot:
        screen = app.screen
        assert isinstance(screen, RowsScreen)
        await until(pilot, lambda: screen.view is not None or bool(app._notifications), "a row")
        yield screen, pilot


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    write_model(folder / "model")
    write_data(folder / "data", [row(f"question {n}?", f"Answer {n}." + " More words." * (n * 3)) for n in range(6)])
    write_data(folder / "data", [row("held out?", "Yes.")], "val")
    return folder


@pytest.mark.parametrize("size", SIZES)
async def test_rows_are_shown_one_after_another_with_what_is_trained(place: Path, size: tuple[int, int]) -> None:
    async with opened(place, size) as (screen, pilot):
        await until_seen(pilot, "Answer 0.<|im_end|>")
        assert "train.jsonl:1" in picture(pilot.app)
        assert "10 trained" in picture(pilot.app), "nine characters and the end token"
        body = screen.query_one(RowBody)
        (answer,) = [line for line in body.lines if "Answer 0." in line.text]
        assert answer.parts[0] == ("Answer 0.<|im_end|>", "scored")
        assert {kind for line in body.lines for _, kind in line.parts} == {"template", "content", "scored"}
        await pilot.press("right")
        await until_seen(pilot, "Answer 1.")
        await pilot.press("left")
        await until_seen(pilot, "Answer 0.")
        await pilot.press("left")
        await until(pilot, lambda: "this is the first row" in notices(pilot.app), "a notice")
        await pilot.press("end")
        await until_seen(pilot, "row 6 of 6")
        await until_seen(pilot, "left out: it has")
        await until_seen(pilot, "cut: everything below is cut off")


async def test_a_text_is_found_forwards_and_a_split_is_chosen(place: Path) -> None:
    async with opened(place) as (_screen, pilot):
        await until_seen(pilot, "Answer 0.")
        await pilot.press("slash")
        await until(pilot, lambda: bool(pilot.app.screen.query(Input)), "a field")
        await pilot.press(*"question 3", "enter")
        await until_seen(pilot, "Answer 3.")
        await pilot.press("f")
        await until(pilot, lambda: "no row after this one" in notices(pilot.app), "a notice")
        await pilot.press("g", "2", "enter")
        await until_seen(pilot, "Answer 1.")
        await pilot.press("s")
        await until_seen(pilot, "held out?")


async def test_hostile_rows_are_inert(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_data(tmp_path / "data", [row("".join(HOSTILE), "".join(reversed(HOSTILE))), '{"a\x1b[2J": 1}'])
    async with opened(tmp_path, SIZES[1], max_length=4000) as (_screen, pilot):
        await until_seen(pilot, "evil")
        assert "[/bold]" in picture(pilot.app)
        assert no_control_characters(pilot.app)
        await pilot.press("right")
        await until_seen(pilot, "refused:")
        assert no_control_characters(pilot.app)


async def test_data_that_cannot_be_read_is_a_notice(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.md").write_text("no data")
    async with opened(tmp_path) as (screen, pilot):
        assert str(tmp_path / "data") in notices(pilot.app)
        assert screen.view is None


class FormApp(CockpitApp):
    """Opens at one recipe's form."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.parent / "runs")
        self._path = path

    def open_first(self) -> None:
        self.open_recipe(self._path)


async def test_a_form_shows_what_its_data_gives_and_opens_its_rows(place: Path) -> None:
    recipe = place / "r.toml"
    recipe.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "tuned"\nkind = "finetune"\nmodel = "./model"\ndata = "./data"\n'
        "max_length = 96\neval_steps = 1\nper_device_train_batch_size = 2\n"
    )
    app = FormApp(recipe)
    async with app.run_test(size=SIZES[1], notifications=True) as pilot:
        await until_seen(pilot, "train 6 rows")
        await until_seen(pilot, "val 1 row")
        assert "left out" in picture(app)
        await pilot.press("ctrl+t")
        await until_seen(pilot, "Answer 0.<|im_end|>")
