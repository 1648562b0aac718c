"""From the form to a run, a stop and a resume: real processes, started with keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.runs.reader import read_now
from cockpit.tui.app import CockpitApp
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.screens.checkpoints import CheckpointsScreen, ItemList
from cockpit.tui.screens.home import HomeScreen
from cockpit.tui.screens.recipe_form import RecipeScreen
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.widgets.field_row import FieldRow
from cockpit.tui.widgets.recipe_list import RecipeList
from engines.run_dir.paths import RunDir
from tests.runs.harness import end_soon, step_of, wait_for_step
from tests.tui.looking import SIZES, until, until_seen

TEXT = """schema = 1
name = "small"
[[stage]]
name = "train"
kind = "fake"
max_steps = 100000
step_s = 0.02
save_steps = 10
"""


async def test_a_recipe_edited_launched_stopped_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "small.toml").write_text(TEXT)
    root = tmp_path / "runs"
    app = CockpitApp(root)
    async with app.run_test(size=SIZES[0], notifications=True) as pilot:
        await until(
            pilot, lambda: isinstance(app.screen, HomeScreen) and bool(app.screen.query_one(RecipeList).items), "Home"
        )
        app.screen.query_one(RecipeList).select(here / "small.toml")
        await pilot.press("e")
        await until(
            pilot, lambda: isinstance(app.screen, RecipeScreen) and bool(app.screen.query(FieldRow)), "the form"
        )
        form = app.screen
        assert isinstance(form, RecipeScreen)
        form._show_stage(0, "Schedule", "max_steps")
        await until(pilot, lambda: "max_steps" in form._rows and form._rows["max_steps"].editor.has_focus, "the row")
        await pilot.press("end", "backspace", "1")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await pilot.press("right", "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "the run's screen")
        run = RunDir(next(root.iterdir()))
        assert "max_steps = 100001" in run.recipe_toml.read_text()
        await until(
            pilot,
            lambda: bool(read_now(run).state.stages and read_now(run).state.stages[0].checkpoints),
            "a checkpoint",
        )

        app.open_home()
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), "Home")
        await pilot.press("tab")
        await until_seen(pilot, "x Stop")
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "how to stop")
        await pilot.press("right", "enter")
        await until(pilot, lambda: read_now(run).look() == "stopped", "stopped")

        app.open_checkpoints(run.root)
        await until(pilot, lambda: isinstance(app.screen, CheckpointsScreen), "checkpoints")
        screen = app.screen
        await until(pilot, lambda: bool(screen.query_one(ItemList).items), "its list")
        await until(pilot, lambda: bool(screen.check_action("resume", ())), "Resume can be pressed")
        await pilot.press("r")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        await pilot.press("right", "enter")
        await until(pilot, lambda: isinstance(app.screen, RunScreen), "the run's screen again")
        wait_for_step(run, step_of(run, "train") + 1, "train")
        last = end_soon(run, stage="train")
        await until(pilot, lambda: read_now(run).look() == "succeeded", "done")
        state = read_now(run).state
        assert state.stages[0].at_step == last
        assert len(state.stages[0].attempts) == 2
