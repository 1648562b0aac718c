"""Home: its lists, its preview, and the actions for the selected item."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from textual.app import App
from textual.pilot import Pilot

from cockpit.runs.summaries import RunSummary
from cockpit.runs.watch import RunWatch
from cockpit.tui.app import CockpitApp
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.dialogs.help import HelpScreen
from cockpit.tui.dialogs.too_small import TooSmallScreen
from cockpit.tui.look.keys import SCOPES
from cockpit.tui.screens.checkpoints import CheckpointsScreen
from cockpit.tui.screens.home import HomeScreen
from cockpit.tui.screens.recipe_form import RecipeScreen
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.widgets.recipe_list import RecipeList
from cockpit.tui.widgets.run_table import RunTable
from engines.run_dir.locks import Lock
from engines.words import RunStatus
from tests.tui.looking import HOSTILE, SIZES, no_control_characters, picture, until, until_seen
from tests.tui.made_runs import make_run


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)


@asynccontextmanager
async def opened(root: Path, size: tuple[int, int] = SIZES[0]) -> AsyncIterator[tuple[HomeScreen, Pilot[None]]]:
    app = CockpitApp(root)
    async with app.run_test(size=size, notifications=True) as pilot:
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), "Home")
        home = app.screen
        assert isinstance(home, HomeScreen)
        await until(pilot, lambda: bool(home.query_one(RecipeList).items), "recipes")
        yield home, pilot


@pytest.mark.parametrize("size", SIZES)
async def test_recipes_runs_and_the_preview_are_shown(tmp_path: Path, size: tuple[int, int]) -> None:
    make_run(tmp_path / "runs", "atlas")
    make_run(tmp_path / "runs", "nexus", state="failed")
    async with opened(tmp_path / "runs", size) as (home, pilot):
        await until_seen(pilot, "10 stages")
        seen = picture(pilot.app)
        assert "demo" in seen
        assert "-nexus" in seen
        assert "✗" in seen
        assert "✓" in seen
        await pilot.press("tab")
        await until(pilot, lambda: home.query_one(RunTable).has_focus, "the runs have the focus")
        await until_seen(pilot, "step 40/40")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, RunScreen), "the run's screen")


async def test_enter_on_a_recipe_opens_its_form_and_esc_comes_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "runs") as (home, pilot):
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, RecipeScreen), "the form")
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is home, "Home")


async def test_a_broken_recipe_is_listed_with_its_problem_and_cannot_start(tmp_path: Path) -> None:
    (tmp_path / "here" / "odd.toml").write_text('schema = 1\nname = "odd"\n[[stage]]\nname = "a"\nkind = "bake"\n')
    async with opened(tmp_path / "runs") as (home, pilot):
        home.query_one(RecipeList).select(tmp_path / "here" / "odd.toml")
        await until_seen(pilot, "cannot start")
        assert "unknown stage kind" in picture(pilot.app)
        await pilot.press("n")
        await until_seen(pilot, "odd.toml cannot start")
        assert pilot.app.screen is home
    assert not (tmp_path / "runs").exists()


async def test_starting_asks_first_and_its_first_answer_is_cancel(tmp_path: Path) -> None:
    async with opened(tmp_path / "runs") as (home, pilot):
        await pilot.press("n")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await pilot.press("enter")
        await until(pilot, lambda: pilot.app.screen is home, "Home")
    assert not (tmp_path / "runs").exists()


async def test_the_filter_narrows_both_lists_and_letters_are_text_in_it(tmp_path: Path) -> None:
    for name in ("atlas", "nexus"):
        make_run(tmp_path / "runs", name)
    async with opened(tmp_path / "runs") as (home, pilot):
        await until(pilot, lambda: len(home.query_one(RunTable).items) == 2, "both runs")
        await pilot.press("slash", "n", "e", "x", "u")
        await until(pilot, lambda: len(home.query_one(RunTable).items) == 1, "one run")
        assert "n Start" not in picture(pilot.app)
        await pilot.press("escape")
        await until(pilot, lambda: len(home.query_one(RunTable).items) == 2, "both again")


async def test_a_new_run_appears_by_itself_and_the_cursor_stays_with_its_run(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "atlas")
    async with opened(tmp_path / "runs") as (home, pilot):
        await pilot.press("tab")
        table = home.query_one(RunTable)
        await until(pilot, lambda: table.current is not None, "a run")
        make_run(tmp_path / "runs", "zz-later")
        home._scan()
        await until(pilot, lambda: len(table.items) == 2, "the new run")
        assert table.current is not None
        assert table.current.id.endswith("atlas")


async def test_a_preview_does_not_cancel_a_scan(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "atlas")
    async with opened(tmp_path / "runs") as (home, pilot):
        await pilot.press("tab")
        await until(pilot, lambda: _has_run(home) and not home._scanning, "a run, and no scan")
        home._scan()
        home._preview()  # in the same turn: the scan's thread has not started
        await until(pilot, lambda: not home._scanning, "the end of the scan")


async def test_quitting_with_a_live_run_says_that_training_continues(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs", "atlas", state=None)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({"pid": 0})
    try:
        async with opened(tmp_path / "runs") as (home, pilot):
            await until_seen(pilot, "1 live")
            await pilot.press("q")
            await until_seen(pilot, "training continues")
            await pilot.press("enter")
            await until(pilot, lambda: pilot.app.screen is home, "Home")
            await pilot.press("tab")
            await until_seen(pilot, "x Stop")
            await pilot.press("x")
            await until_seen(pilot, "Keep running")
            await pilot.press("enter")
        assert not list(run.control.glob("*.json"))
    finally:
        lock.release()


@pytest.mark.parametrize("size", [SIZES[1], pytest.param(SIZES[0], marks=pytest.mark.thorough)])
async def test_hostile_names_and_texts_are_inert(tmp_path: Path, size: tuple[int, int]) -> None:
    root = tmp_path / "runs"
    for number, words in enumerate(HOSTILE):
        made = make_run(root, f"r{number}", recipe=words, warning=words)
        made.root.rename(root / f"20261120-21{number:02d}-{words.replace('/', '')}")
    for number, words in enumerate(HOSTILE):
        text = f"schema = 1\nname = {json.dumps(words)}\ndescription = {json.dumps(words)}\n[[stage]]\n"
        (tmp_path / "here" / f"{number}-{words.replace('/', '')}.toml").write_text(text)
    async with opened(root, size) as (home, pilot):
        await until(pilot, lambda: len(home.query_one(RunTable).items) == len(HOSTILE), "the runs")
        for pane in (RecipeList, RunTable):
            lister = home.query_one(pane)
            lister.focus()
            for _ in range(len(HOSTILE) + 2):
                await pilot.press("down")
                await pilot.pause(0.2)
                assert no_control_characters(pilot.app)


@pytest.mark.parametrize("size", SIZES)
async def test_health_concerns_and_notes_are_inert_text(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "runs"
    rows = []
    for number, words in enumerate(HOSTILE):
        run = make_run(root, f"r{number}", state=None)
        text = {"health": words, "health_sentence": words, "reason": words, "note": words, "stage": words}
        facts = {"id": run.id, "path": str(run.root), "recipe": words, "concerns": (words,)}
        rows.append(RunSummary(**facts, **text, state=RunStatus.RUNNING))  # type: ignore[arg-type]
    monkeypatch.setattr(RunWatch, "poll", lambda *_args, **_options: rows)
    async with opened(root, size) as (home, pilot):
        table = home.query_one(RunTable)
        await until(pilot, lambda: len(table.items) == len(HOSTILE), "the runs")
        table.focus()
        for _ in HOSTILE:
            await pilot.press("down")
            await pilot.pause(0.2)
            assert no_control_characters(pilot.app)


@pytest.mark.parametrize("size", [SIZES[0], pytest.param(SIZES[1], marks=pytest.mark.thorough)])
async def test_every_key_of_the_bottom_line_acts(tmp_path: Path, size: tuple[int, int]) -> None:
    run = make_run(tmp_path / "runs", "atlas", state=None)
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({"pid": 0})
    try:
        for key in SCOPES["home"]:
            async with opened(tmp_path / "runs", size) as (home, pilot):
                await until_seen(pilot, "1 live")
                on_runs = key.action in {"actions", "replay", "stop"}
                if on_runs:
                    await pilot.press("tab")
                    await until(pilot, partial(_has_run, home), "a run")
                before = _state(pilot.app)
                await pilot.press(key.keys.split(",")[0])
                await until(pilot, partial(_differs, pilot.app, before), key.id)
    finally:
        lock.release()


def _has_run(home: HomeScreen) -> bool:
    return home.run_under_cursor is not None and home.query_one(RunTable).has_focus


def _state(app: App[None]) -> tuple[str, int]:
    return picture(app), len(app.screen_stack)


def _differs(app: App[None], before: tuple[str, int]) -> bool:
    return not app.is_running or _state(app) != before


async def test_help_lists_the_keys_and_checkpoints_open(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "atlas")
    async with opened(tmp_path / "runs") as (home, pilot):
        await pilot.press("question_mark")
        await until(pilot, lambda: isinstance(pilot.app.screen, HelpScreen), "help")
        assert "Quit Cockpit" in picture(pilot.app)
        await pilot.press("escape", "tab")
        await until(pilot, lambda: home.run_under_cursor is not None and home.query_one(RunTable).has_focus, "a run")
        await pilot.press("a")
        await until(pilot, lambda: isinstance(pilot.app.screen, CheckpointsScreen), "checkpoints")


async def test_a_terminal_that_is_too_small_says_so_and_recovers(tmp_path: Path) -> None:
    async with opened(tmp_path / "runs") as (home, pilot):
        await pilot.resize_terminal(50, 15)
        await until(pilot, lambda: isinstance(pilot.app.screen, TooSmallScreen), "the message")
        assert "too small" in picture(pilot.app)
        await pilot.press("escape", "n")
        await pilot.resize_terminal(80, 24)
        await until(pilot, lambda: pilot.app.screen is home, "Home")


async def test_two_thousand_runs_are_listed_and_the_ends_are_one_key_away(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    for number in range(2000):
        folder = root / f"20261120-{number:04d}-atlas"
        folder.mkdir(parents=True)
        (folder / "journal.jsonl").touch()
        (folder / "run.json").write_text(json.dumps({"format": 1, "id": folder.name, "recipe": "atlas"}))
        summary = {"id": "", "path": "", "recipe": "atlas", "state": "succeeded", "loss": 1.5}
        (folder / "exit.json").write_text(json.dumps({"format": 1, "journal_bytes": 0, "summary": summary}))
    async with opened(root) as (home, pilot):
        table = home.query_one(RunTable)
        await until(pilot, lambda: len(table.items) == 2000, "all runs")
        table.focus()
        await pilot.press("end")
        await until_seen(pilot, "20261120-0000-atlas")
        await pilot.press("home")
        await until_seen(pilot, "20261120-1999-atlas")


async def test_the_palette_offers_only_possible_actions(tmp_path: Path) -> None:
    async with opened(tmp_path / "runs") as (home, pilot):
        await pilot.press("ctrl+p")
        await pilot.press(*"checkpoints")
        await pilot.pause(0.5)
        assert "Checkpoints (a)" not in picture(pilot.app)
        await pilot.press("escape")
        make_run(tmp_path / "runs", "atlas")
        home._watch.look_again()
        home._scan()
        await until(pilot, lambda: bool(home.query_one(RunTable).items), "the run")
        await pilot.press("tab")
        await until(pilot, lambda: _has_run(home), "a run")
        await pilot.press("ctrl+p")
        await pilot.press(*"checkpoints")
        await until_seen(pilot, "Checkpoints (a)")
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, CheckpointsScreen), "checkpoints")
