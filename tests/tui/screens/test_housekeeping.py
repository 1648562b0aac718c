"""Keeping house from Home: every removal and rename asks first, and says what goes."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from textual.widgets import Button, Input

from cockpit.keeping.sizes import Sizes, sizes_of
from cockpit.runs.find import run_ids
from cockpit.tui.dialogs.ask import AskScreen
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.dialogs.read import TextScreen
from cockpit.tui.screens.housekeeping import NOT_SHOWN
from cockpit.tui.screens.live_run import LiveRunScreen
from cockpit.tui.widgets.run_table import RunTable
from engines.run_dir.paths import RunDir
from tests.cockpit.keeping.finished_runs import made_run
from tests.patience import PATIENCE_S
from tests.tui.looking import no_control_characters, notices, picture, until, until_seen
from tests.tui.screens.test_home import opened


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)


async def test_a_note_is_asked_for_stored_and_shown(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", "a", steps=(10, 20))
    async with opened(tmp_path / "runs") as (home, pilot):
        home.query_one(RunTable).focus()
        await until(pilot, lambda: home.run_under_cursor is not None, "the run")
        await pilot.press("N")
        await until(pilot, lambda: isinstance(pilot.app.screen, AskScreen), "the question")
        pilot.app.screen.query_one(Input).value = "baseline"
        await pilot.press("enter")
        await until(pilot, lambda: run.read_note() == "baseline", "the note")
        await until_seen(pilot, "baseline")


async def test_a_run_is_renamed(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", "a")
    async with opened(tmp_path / "runs") as (home, pilot):
        home.query_one(RunTable).focus()
        await until(pilot, lambda: home.run_under_cursor is not None, "the run")
        await pilot.press("m")
        await until(pilot, lambda: isinstance(pilot.app.screen, AskScreen), "the question")
        pilot.app.screen.query_one(Input).value = "a/b"
        await pilot.press("enter")
        await until_seen(pilot, "allowed: 1 to 60 letters")
        pilot.app.screen.query_one(Input).value = "baseline"
        await pilot.press("enter")
        await until(pilot, lambda: run_ids(tmp_path / "runs") == [f"{run.id[:-1]}baseline"], "the new name")


async def test_removing_asks_with_sizes_and_keeps_the_run_after_no(tmp_path: Path) -> None:
    made_run(tmp_path / "runs", "a", steps=(10,))
    async with opened(tmp_path / "runs") as (home, pilot):
        home.query_one(RunTable).focus()
        await until(pilot, lambda: home.run_under_cursor is not None, "the run")
        for answer, left in (("escape", 1), ("yes", 0)):
            await pilot.press("delete")
            await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
            await until_seen(pilot, "checkpoints:")
            if answer == "escape":
                await pilot.press("escape")
                await until(pilot, lambda: pilot.app.screen is home, "Home")
            else:
                pilot.app.screen.query_one("#remove", Button).press()
                await until(pilot, lambda: not run_ids(tmp_path / "runs"), "the removal")
            assert len(run_ids(tmp_path / "runs")) == left


async def test_removing_an_ancestor_says_whose_before_it_asks(tmp_path: Path) -> None:
    base = made_run(tmp_path / "runs", "base")
    made_run(tmp_path / "runs", "merged", parents=[base.out("train")])
    async with opened(tmp_path / "runs") as (home, pilot):
        home.query_one(RunTable).focus()
        home.query_one(RunTable).select(str(base.root))
        await until(pilot, lambda: home.run_under_cursor is not None, "the run")
        await pilot.press("delete")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await until_seen(pilot, "It is an ancestor of")
        assert "Remove anyway" in picture(pilot.app)
        assert no_control_characters(pilot.app)


async def test_pruning_lists_what_goes_and_sizes_are_a_table(tmp_path: Path) -> None:
    run: RunDir = made_run(tmp_path / "runs", "a", steps=(10, 20, 30))
    async with opened(tmp_path / "runs") as (home, pilot):
        home.query_one(RunTable).focus()
        await until(pilot, lambda: home.run_under_cursor is not None, "the run")
        await pilot.press("P")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        assert "step-10" in picture(pilot.app)
        pilot.app.screen.query_one("#remove", Button).press()
        await until(pilot, lambda: not run.checkpoint("train", 1, 10).exists(), "the removal")
        assert run.checkpoint("train", 1, 30).is_dir()
        await until(pilot, lambda: "folders removed" in notices(pilot.app), "the result")
        await pilot.press("u")
        await until(pilot, lambda: isinstance(pilot.app.screen, TextScreen), "the table")
        assert "checkpoints" in picture(pilot.app)


async def test_a_question_does_not_appear_over_a_screen_that_was_opened_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, measured = made_run(tmp_path / "runs", "a"), threading.Event()

    def sizes_when_allowed(of: RunDir) -> Sizes:
        measured.wait(PATIENCE_S)
        return sizes_of(of)

    monkeypatch.setattr("cockpit.tui.screens.housekeeping.sizes_of", sizes_when_allowed)
    async with opened(tmp_path / "runs") as (home, pilot):
        home.query_one(RunTable).focus()
        await until(pilot, lambda: home.run_under_cursor is not None, "the run")
        await pilot.press("delete", "enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, LiveRunScreen), "the run's screen")
        measured.set()
        await until(pilot, lambda: NOT_SHOWN in notices(pilot.app), "the notice")
        assert isinstance(pilot.app.screen, LiveRunScreen)
        await pilot.press("enter")
        assert run.root.is_dir()


async def test_the_table_of_sizes_has_a_row_for_a_run_on_a_narrow_screen(tmp_path: Path) -> None:
    run = made_run(tmp_path / "runs", "a-name-of-thirty-two-characters", steps=(10, 20))
    async with opened(tmp_path / "runs") as (_, pilot):
        await pilot.press("u")
        await until_seen(pilot, "What runs take")
        [row] = [line for line in picture(pilot.app).splitlines() if "│ │ 2026" in line or "a-name" in line]
        assert row.count("B ") >= 2, f"the sizes of {run.id} are in its row"
