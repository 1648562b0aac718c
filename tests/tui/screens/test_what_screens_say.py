"""Small sentences of the screens that must be so: copying, filters, ids, toasts, dialogs, one key with one meaning."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from textual.widgets._toast import Toast

from cockpit.cli import ENVIRONMENT, build_parser
from cockpit.forms.model import FormModel
from cockpit.forms.rows import Spot
from cockpit.forms.shelf import OWN, RecipeEntry, Shelf, own_folder
from cockpit.planning.stages import Plan, StagePlan
from cockpit.runs.state import fold
from cockpit.runs.summaries import RunSummary
from cockpit.tui.app import CockpitApp
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.dialogs.goto import GotoScreen
from cockpit.tui.look.keys import SCOPES
from cockpit.tui.look.notices import say
from cockpit.tui.screens.checkpoints import CheckpointsScreen
from cockpit.tui.screens.form_text import hint
from cockpit.tui.screens.home import HomeScreen
from cockpit.tui.screens.recipe_form import RecipeScreen
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.widgets.log_view import LogView
from cockpit.tui.widgets.preview import recipe_preview, run_heading
from cockpit.tui.widgets.recipe_list import RecipeList
from cockpit.tui.widgets.run_table import RunTable, short_id
from engines.words import RunStatus
from recipes.shipped import shipped_recipe
from tests.tui import journals
from tests.tui.app_under_test import live_app, replay_app, settled, text
from tests.tui.event_source import EventSource
from tests.tui.looking import notices, picture, until, until_seen
from tests.tui.made_runs import make_run
from tests.tui.terminal import Terminal


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.delenv("STY", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def tmux_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A `tmux` first in the path, in whose session the screen runs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "tmux").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "tmux").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("cat > $HOME/copied; exit 0", "copied to tmux: /nonexistent"),
        ("echo 'unknown option -- w' >&2; exit 1", "not copied: tmux: unknown option -- w"),
    ],
)
async def test_copied_is_said_only_when_tmux_took_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tmux_that(tmp_path, monkeypatch, script)
    app = live_app(EventSource(journals.live(10).events))
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("Y")
        await until(pilot, lambda: said in notices(app), "the sentence about copying")
    if said.startswith("copied"):
        assert (tmp_path / "copied").read_text() == "/nonexistent/20261120-2130-atlas"
    else:
        assert "/nonexistent/20261120-2130-atlas" in notices(app), "it can be selected with the mouse"


async def test_a_terminal_that_does_not_answer_is_not_said_to_have_copied() -> None:
    app = live_app(EventSource(journals.live(10).events))
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("Y")
        await until(pilot, lambda: "sent to the terminal's clipboard" in notices(app), "the sentence about copying")
        assert "copied" not in notices(app)


async def test_the_screen_moves_under_a_dialog() -> None:
    journal = journals.live(50)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        await pilot.press("x")
        await until(pilot, lambda: isinstance(app.screen, ConfirmScreen), "the question")
        known = len(journal.events)
        journals.short_stage(journal, "gguf", "export", "tensors", 291)
        source.add(journal.events[known:])
        await until(pilot, lambda: "✓ gguf" in picture_of_all(app), "the new state under the dialog")
        assert isinstance(app.screen, ConfirmScreen)


def picture_of_all(app: CockpitApp) -> str:
    """The run's screen as it lies under a dialog."""
    screen = next(s for s in app.screen_stack if isinstance(s, RunScreen))
    return "\n".join(strip.text for strip in screen._compositor.render_strips(app.size))


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_a_toast_does_not_cover_the_log(size: tuple[int, int]) -> None:
    app = live_app(EventSource(journals.live(10).events))
    async with app.run_test(size=size, notifications=True) as pilot:
        await settled(pilot)
        say(app, "one\ntwo\nthree", "error")
        await until(pilot, lambda: bool(app.screen.query(Toast)), "the toast")
        await until(pilot, lambda: app.screen.query(Toast).first().region.height > 0, "its place")
        log, toast = app.run_screen.query_one(LogView).region, app.screen.query(Toast).first().region
        assert not log.overlaps(toast)
        assert toast.y >= 2, "the status line stays"


async def test_a_filter_without_a_match_is_not_a_folder_without_runs(tmp_path: Path) -> None:
    make_run(tmp_path / "runs", "atlas")
    app = CockpitApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), "Home")
        await until(pilot, lambda: bool(app.screen.query_one(RunTable).items), "the run")
        await pilot.press("slash", *"zzz")
        await until_seen(pilot, "no runs match zzz")
        await until_seen(pilot, "no recipes match zzz"[:20])
        assert "no runs yet" not in picture(app)
        await pilot.press("escape")
        await until_seen(pilot, "atlas")


@pytest.mark.parametrize("cells", [16, 18, 22])
def test_short_ids_of_different_runs_differ(cells: int) -> None:
    ids = [
        f"202611{day}-{hour}30-{name}"
        for day in ("19", "20")
        for hour in ("07", "21")
        for name in ("atlas", "atlas-2", "a-rather-long-recipe", "a-rather-long-recipe-2")
    ]
    shown = [short_id(run_id, cells) for run_id in ids]
    assert all(len(words) == cells for words in shown)
    assert len(set(shown)) == len(ids)
    assert short_id("exp-seed-1-of-the-long-sweep", 16) != short_id("exp-seed-1-of-the-long-sweet", 16)


async def test_ids_are_told_apart_at_60x20(tmp_path: Path) -> None:
    for name in ("atlas", "nexus"):
        make_run(tmp_path / "runs", name)
    app = CockpitApp(tmp_path / "runs")
    async with app.run_test(size=(60, 20)) as pilot:
        await until_seen(pilot, "-atlas")
        await until_seen(pilot, "-nexus")


async def test_the_palette_lists_only_our_commands(tmp_path: Path) -> None:
    app = CockpitApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), "Home")
        await pilot.press("ctrl+p")
        await until_seen(pilot, "Filter (/)")
        assert "Theme" not in picture(app)
        assert "Screenshot" not in picture(app)


def test_a_dumb_terminal_gets_a_sentence() -> None:
    with Terminal([sys.executable, "-m", "cockpit"], (80, 24), TERM="dumb") as terminal:
        said = terminal.read_until(b"replay --plain")
    assert b"TERM is 'dumb'" in said
    assert b"\x1b" not in said


def test_the_help_page_lists_the_environment() -> None:
    page = build_parser().format_help()
    for name in ("COCKPIT_GLYPHS", "COCKPIT_THEME", *ENVIRONMENT):
        assert f"  {name} " in page


async def test_an_unknown_key_can_be_removed_in_the_form(tmp_path: Path) -> None:
    path = tmp_path / "here" / "odd.toml"
    head = 'schema = 1\nname = "odd"\n[[stage]]\nname = "a"\nkind = "fake"\n'
    path.write_text(f"{head}max_stepz = 20\nmax_steps = 20\n[stage.retry]\nmax_atempts = 2\n")
    app = CockpitApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        app.open_recipe(path)
        await until(pilot, lambda: isinstance(app.screen, RecipeScreen), "the form")
        form = app.screen
        assert isinstance(form, RecipeScreen)
        assert form.model.unknown_keys(0) == ["max_stepz", "retry.max_atempts"]
        await pilot.press("ctrl+n")
        await until(pilot, lambda: "ctrl+k removes it" in notices(app), "the way out")
        await pilot.press("ctrl+k")
        await until_seen(pilot, "[x] max_stepz")
        await pilot.press("enter")
        await until(pilot, lambda: not form.model.problems, "no problems left")
        assert "max_stepz" not in form.model.text
        assert "max_steps = 20" in form.model.text
        await pilot.press("ctrl+z", "ctrl+z")
        await until(pilot, lambda: "max_stepz" in form.model.text, "undo restores it")


def test_no_key_of_a_shipped_recipe_is_unknown() -> None:
    from cockpit.forms.model import FormModel
    from cockpit.forms.recipe_data import RECIPE
    from recipes.shipped import shipped_recipes

    for path in shipped_recipes():
        model = FormModel(path.read_text(), path)
        assert all(not model.unknown_keys(head.place) for head in model.heads()), path
        assert RECIPE in {head.place for head in model.heads()}


async def test_a_saved_copy_hides_the_shipped_recipe_and_says_so(tmp_path: Path) -> None:
    fake = shipped_recipe("fake")
    assert fake is not None
    own_folder().mkdir(parents=True)
    (own_folder() / "fake.toml").write_text(fake.read_text())
    entries = [entry for entry in Shelf().entries() if entry.path.stem == "fake"]
    assert [(entry.group, entry.hides_shipped) for entry in entries] == [(OWN, True)]
    app = CockpitApp(tmp_path / "runs")
    async with app.run_test(size=(160, 48)) as pilot:
        await until_seen(pilot, "fake (copy)")
        app.screen.query_one(RecipeList).select(own_folder() / "fake.toml")
        await until_seen(pilot, "hides the shipped recipe")


async def test_q_closes_the_screen_everywhere(tmp_path: Path) -> None:
    for scope, keys in SCOPES.items():
        for key in keys:
            if "q" in key.keys.split(","):
                assert key.id in {"app.back", "home.quit"}, scope
    run = make_run(tmp_path / "runs", "atlas")
    app = CockpitApp(tmp_path / "runs")
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), "Home")
        home = app.screen
        for opened, kind in (
            (lambda: app.open_checkpoints(run.root), CheckpointsScreen),
            (lambda: app.open_run(run.root), RunScreen),
            (lambda: app.open_replay(run.root), RunScreen),
            (lambda: app.open_recipe(shipped_recipe("fake") or Path()), RecipeScreen),
        ):
            opened()
            await until(pilot, lambda kind=kind: isinstance(app.screen, kind), kind.__name__)  # type: ignore[misc]
            await pilot.press("q")
            await until(pilot, lambda: app.screen is home, "Home again")


async def test_going_to_a_step_stays_in_the_stage_or_says_that_it_has_no_such_step() -> None:
    journal = journals.begun()
    journals.training(journal, "atlas", last=300, total=300)
    journals.training(journal, "nexus", last=900, total=900)
    at = next(n for n, e in enumerate(journal.events, 1) if getattr(e, "step", 0) == 100)
    app = replay_app(journal.events, at)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("g")
        await until(pilot, lambda: isinstance(app.screen, GotoScreen), "the dialog")
        await pilot.press(*"800", "enter")
        await until(pilot, lambda: "atlas has no step 800" in notices(app), "the answer")
        await settled(pilot)
        assert "step 100/300" in text(app)
        await pilot.press("g")
        await until(pilot, lambda: isinstance(app.screen, GotoScreen), "the dialog")
        await pilot.press(*"250", "enter")
        await settled(pilot)
        assert "step 250/300" in text(app)


async def test_a_finished_run_shows_no_load_as_if_it_were_present() -> None:
    app = live_app(EventSource(journals.finished().events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        status = text(app).split("\n")[0]
        assert "succeeded" in status
        assert "cpu" not in status
        assert "ram" not in status
        assert "gpu" not in status


@pytest.mark.parametrize("width", range(24, 70, 3))
def test_a_glyph_is_on_the_line_of_its_word(width: int) -> None:
    state = fold(journals.live(20).events)
    run = RunSummary(id="r", path="/r", recipe="demo", state=RunStatus.RUNNING)
    lines = run_heading(run, state, 0.0, {}, width).plain.split("\n")
    strip = [line.rstrip() for line in lines if "questions" in line or "gguf" in line or "atlas" in line]
    assert all(len(line) <= width for line in strip)
    for name, glyph in (("questions", "✓"), ("base-merged", "✓"), ("gguf", "○")):
        assert any(f"{glyph} {name}" in line for line in lines), (name, lines)


def test_the_problem_of_a_field_stands_before_its_help(tmp_path: Path) -> None:
    words = 'schema = 1\nname = "x"\n[[stage]]\nname = "a"\nkind = "fake"\nlearning_rate = 2\n'
    model = FormModel(words, tmp_path / "x.toml")
    lines = hint(model, Spot(0, "", "learning_rate"), {}).plain.split("\n")
    assert "got 2" in lines[0]
    assert any(line.startswith("learning_rate — ") for line in lines[1:])


@pytest.mark.parametrize("width", [30, 44, 45, 54, 55, 100])
def test_a_stage_of_a_recipe_has_one_line_with_the_numbers_that_fit(width: int) -> None:
    entry = RecipeEntry(Path("demo.toml"), "shipped", "demo", stages=(("tokenizer", "tokenizer"), ("base", "pretrain")))
    plan = Plan("demo", [StagePlan("base", "pretrain", parameters=3_670_000, steps=700, tokens=717_000)])
    lines = recipe_preview(entry, plan, {}, width).plain.split("\n")
    base = next(line for line in lines if "pretrain" in line)
    assert "3.67M params" in base
    assert ("700 steps" in base, "717k tok" in base) == (width >= 45, width >= 55), base
    assert len(base) <= max(width, 34)
