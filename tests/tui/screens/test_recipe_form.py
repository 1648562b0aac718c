"""The recipe form: problems while typing, edits that keep the file, and a question before edits are lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from cockpit.forms.shelf import own_folder
from cockpit.tui.app import CockpitApp
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.dialogs.pick import PickScreen
from cockpit.tui.dialogs.read import TextScreen
from cockpit.tui.look.keys import SCOPES
from cockpit.tui.screens.recipe_form import RecipeScreen
from cockpit.tui.widgets.field_row import ChoiceBox, FieldRow
from cockpit.tui.widgets.form_lists import SectionList
from recipes.shipped import shipped_recipe
from recipes.spelling import spell
from tests.tui.looking import HOSTILE, SIZES, no_control_characters, until, until_seen

TEXT = """schema = 1   # the format
name = "two"

[[stage]]
name = "one"
kind = "fake"
max_steps = 20   # quick

[[stage]]
name = "other"
kind = "tokenizer"
data = "./text"
"""


class FormApp(CockpitApp):
    """Opens at one recipe's form, over an empty screen."""

    def __init__(self, root: Path, path: Path) -> None:
        super().__init__(root)
        self._path = path

    def open_first(self) -> None:
        self.push_screen(RecipeScreen(self._path))


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    path = tmp_path / "two.toml"
    path.write_text(TEXT)
    return path


@asynccontextmanager
async def opened(path: Path, size: tuple[int, int] = SIZES[0]) -> AsyncIterator[tuple[RecipeScreen, Pilot[None]]]:
    app = FormApp(path.parent / "runs", path)
    async with app.run_test(size=size, notifications=True) as pilot:
        form = app.screen
        assert isinstance(form, RecipeScreen)
        await until(pilot, lambda: bool(form.query(FieldRow)), "rows")
        yield form, pilot


async def go_to(form: RecipeScreen, pilot: Pilot[None], key: str, stage: int = 0) -> FieldRow:
    """The row of a field, with the focus."""
    form._show_stage(stage, form.model.section_of(stage, key), key)

    def row() -> FieldRow | None:
        found = [r for r in form.query(FieldRow) if r.row.key == key and r.is_mounted]
        return found[0] if found and found[0].editor.has_focus else None

    await until(pilot, lambda: row() is not None, f"the row of {key}")
    found = row()
    assert found is not None
    return found


def content(path: Path) -> str:
    return path.read_text()


def put(path: Path, text: str) -> None:
    path.write_text(text)


async def type_over(pilot: Pilot[None], words: str) -> None:
    """Replace a field's text."""
    box = pilot.app.focused
    assert isinstance(box, Input)
    await pilot.press("end", *["backspace"] * len(box.value), *(words if words.isalnum() else list(words)))


@pytest.mark.parametrize("size", SIZES)
async def test_a_wrong_value_shows_its_problem_while_typing_and_blocks_launch(
    recipe: Path, size: tuple[int, int]
) -> None:
    async with opened(recipe, size) as (form, pilot):
        await until_seen(pilot, "no problems")
        await go_to(form, pilot, "max_steps")
        await type_over(pilot, "0")
        await until_seen(pilot, "!1 problem")
        await until_seen(pilot, "a whole number ≥ 1")
        await pilot.press("ctrl+l")
        await until_seen(pilot, "not launched")
        assert not (recipe.parent / "runs").exists()
        await type_over(pilot, "30")
        await until_seen(pilot, "no problems")
        await until_seen(pilot, "was 20")


async def test_saving_keeps_comments_and_everything_else(recipe: Path) -> None:
    async with opened(recipe) as (form, pilot):
        await go_to(form, pilot, "max_steps")
        await type_over(pilot, "30")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: not form.model.dirty, "saved")
    assert content(recipe) == TEXT.replace("max_steps = 20   # quick", "max_steps = 30   # quick")


async def test_undo_restores_the_bytes_and_the_field(recipe: Path) -> None:
    async with opened(recipe) as (form, pilot):
        row = await go_to(form, pilot, "max_steps")
        await type_over(pilot, "31")
        await until_seen(pilot, "was 20")
        await pilot.press("ctrl+z")
        await until(pilot, lambda: form.model.text == TEXT, "the text as it was")
        box = row.editor
        assert isinstance(box, Input)
        assert box.value == "20"
        await pilot.press("ctrl+y")
        await until(pilot, lambda: form.model.text != TEXT, "done again")
        await pilot.press("ctrl+r")
        await until(pilot, lambda: form.model.text == TEXT, "put back")


async def test_a_file_that_changed_on_disk_is_not_overwritten(recipe: Path) -> None:
    async with opened(recipe) as (form, pilot):
        await go_to(form, pilot, "max_steps")
        await type_over(pilot, "30")
        theirs = TEXT.replace("20", "99")
        put(recipe, theirs)
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        assert content(recipe) == theirs
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is form, "the form again")
        assert content(recipe) == theirs
        await pilot.press("ctrl+s")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await pilot.press("right", "right", "enter")  # reload
        await until(pilot, lambda: form.model.text == theirs, "their text")
        await pilot.press("ctrl+z")
        await until(pilot, lambda: "max_steps = 30" in form.model.text, "my text again, which may now replace theirs")
        await pilot.press("ctrl+s")
        await until(pilot, lambda: "max_steps = 30" in content(recipe), "saved")


async def test_a_shipped_recipe_is_saved_as_a_copy(tmp_path: Path) -> None:
    shipped = shipped_recipe("fake")
    assert shipped is not None
    before = shipped.read_bytes()
    async with opened(shipped) as (form, pilot):
        await go_to(form, pilot, "max_steps")
        await type_over(pilot, "12")
        await pilot.press("ctrl+s")
        await until_seen(pilot, "saved as")
        copy = own_folder() / "fake.toml"
        assert "max_steps = 12" in copy.read_text()
        assert form.model.path == copy
        assert not form.model.problems
    assert shipped.read_bytes() == before


async def test_closing_asks_while_edits_would_be_lost(recipe: Path) -> None:
    async with opened(recipe) as (form, pilot):
        await go_to(form, pilot, "max_steps")
        await type_over(pilot, "30")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await pilot.press("enter")  # the first answer is the safe one
        await until(pilot, lambda: pilot.app.screen is form, "the form again")
        await pilot.press("escape")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await pilot.press("right", "enter")
        await until(pilot, lambda: form not in pilot.app.screen_stack, "left")
    assert "max_steps = 30" in content(recipe)


async def test_launching_asks_and_starts_what_is_shown_not_what_is_saved(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def launch(loaded: object, **_: object) -> None:
        from recipes.problems import OperatorError

        started.append(loaded.text)  # type: ignore[attr-defined]
        raise OperatorError("stopped by the test", "on purpose")

    monkeypatch.setattr("cockpit.launching.launch.launch", launch)
    async with opened(recipe) as (form, pilot):
        await go_to(form, pilot, "max_steps")
        await type_over(pilot, "30")
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await until_seen(pilot, "not saved")
        await pilot.press("escape")
        await until(pilot, lambda: pilot.app.screen is form, "the form again")
        assert not started
        await pilot.press("ctrl+l")
        await until(pilot, lambda: isinstance(pilot.app.screen, ConfirmScreen), "the question")
        await pilot.press("right", "enter")
        await until_seen(pilot, "stopped by the test")
    assert started == [TEXT.replace("= 20", "= 30")]
    assert content(recipe) == TEXT


async def test_choices_cycle_with_the_arrows_and_backspace_takes_the_default(recipe: Path) -> None:
    async with opened(recipe) as (form, pilot):
        row = await go_to(form, pilot, "split_digits", stage=1)
        assert isinstance(row.editor, ChoiceBox)
        await pilot.press("right")
        await until(pilot, lambda: "split_digits = false" in form.model.text, "the other choice")
        await pilot.press("left")
        await until(pilot, lambda: "split_digits = true" in form.model.text, "back")
        await pilot.press("backspace")
        await until(pilot, lambda: form.model.text == TEXT, "the default")


async def test_another_output_changes_the_sections_and_rows_and_undo_restores_them(tmp_path: Path) -> None:
    text = 'schema = 1\nname = "x"\n\n[[stage]]\nname = "tuned"\nkind = "finetune"\nmodel = "./m"\ndata = "./d"\n'
    put(tmp_path / "x.toml", text)
    async with opened(tmp_path / "x.toml") as (form, pilot):

        def sections() -> list[str]:
            return [section.name for section in form.query_one(SectionList)._items]

        await go_to(form, pilot, "output")
        assert "LoRA" in sections()
        await pilot.press("right")
        await until(pilot, lambda: "LoRA" not in sections(), "the sections of all weights")
        assert 'output = "model"' in form.model.text
        await until_seen(pilot, "was adapter")
        await pilot.press("ctrl+z")
        await until(pilot, lambda: "LoRA" in sections(), "the sections of an adapter")
        assert form.model.text == text


async def test_a_stage_that_gets_its_output_gets_its_rows(tmp_path: Path) -> None:
    put(tmp_path / "x.toml", 'schema = 1\nname = "x"\n\n[[stage]]\nname = "rows"\nkind = "prepare"\n')
    async with opened(tmp_path / "x.toml") as (form, pilot):
        await go_to(form, pilot, "output")
        await pilot.press("left")
        await until(pilot, lambda: "name" in [row.row.key for row in form.query(FieldRow)], "the other rows")
        row = next(row for row in form.query(FieldRow) if row.row.key == "output")
        await until(pilot, lambda: row.is_mounted and row.editor.has_focus, "the focus on the same field")


async def test_values_that_fit_can_be_picked(tmp_path: Path) -> None:
    shipped = shipped_recipe("demo")
    assert shipped is not None
    async with opened(shipped) as (form, pilot):
        place = next(head.place for head in form.model.heads() if head.name == "gguf")
        await go_to(form, pilot, "file_types", place)
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(pilot.app.screen, PickScreen), "the choices")
        await pilot.press("space", "enter")
        await until(pilot, lambda: pilot.app.screen is form, "the form again")
        assert 'file_types = ["F32", "F16", "Q8_0", "Q4_K_M"]' in form.model.text


async def test_next_problem_goes_to_the_row_wherever_it_is(recipe: Path) -> None:
    put(recipe, TEXT + "vocab_size = 2\n")
    async with opened(recipe) as (form, pilot):
        await pilot.press("ctrl+n")

        def there() -> bool:
            row = form.query(FieldRow)
            return any(r.row.key == "vocab_size" and r.editor.has_focus for r in row)

        await until(pilot, there, "the row of the problem")


@pytest.mark.parametrize("size", [SIZES[0], pytest.param(SIZES[1], marks=pytest.mark.thorough)])
async def test_every_key_of_the_bottom_line_acts(recipe: Path, size: tuple[int, int]) -> None:
    for key in SCOPES["recipe"]:
        async with opened(recipe, size) as (form, pilot):
            called = counted(form, key.action)
            await go_to(form, pilot, "max_steps")
            await pilot.press(key.keys.split(",")[0])
            await until(pilot, partial(bool, called), key.id)


def counted(form: RecipeScreen, action: str) -> list[str]:
    """A list that grows whenever the action is called."""
    called: list[str] = []
    real = getattr(form, f"action_{action}")

    def act() -> None:
        called.append(action)
        real()

    setattr(form, f"action_{action}", act)
    return called


async def test_the_difference_is_shown(recipe: Path) -> None:
    async with opened(recipe) as (form, pilot):
        await go_to(form, pilot, "max_steps")
        await type_over(pilot, "30")
        await pilot.press("ctrl+d")
        await until(pilot, lambda: isinstance(pilot.app.screen, TextScreen), "the difference")
        await until_seen(pilot, "- max_steps = 20")
        await until_seen(pilot, "+ max_steps = 30")


@pytest.mark.parametrize("size", [SIZES[1], pytest.param(SIZES[0], marks=pytest.mark.thorough)])
async def test_hostile_text_is_shown_and_does_nothing(tmp_path: Path, size: tuple[int, int]) -> None:
    words = " ".join(HOSTILE)
    path = tmp_path / "[red]x[b] evil.toml"
    stages = "".join(f'[[stage]]\nname = {spell(w)}\nkind = "fake"\ndata = {spell(w)}\n' for w in HOSTILE)
    path.write_text(f"schema = 1\nname = {spell(words)}\ndescription = {spell(words)}\n{spell('[/x]')} = 1\n{stages}")
    async with opened(path, size) as (form, pilot):
        for head in form.model.heads():
            form._show_stage(head.place)
            await pilot.pause()
            assert no_control_characters(pilot.app)
        await pilot.press("ctrl+n")
        await pilot.press("ctrl+l")
        await until_seen(pilot, "not launched")
        assert no_control_characters(pilot.app)
        row = await go_to(form, pilot, "data", 1)
        assert row.row.problems
        await pilot.press("ctrl+d")
        await pilot.pause()
        assert no_control_characters(pilot.app)


async def test_a_toml_error_is_shown_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("schema = 1\nname = \n")
    app = FormApp(tmp_path, path)
    async with app.run_test(size=SIZES[0], notifications=True) as pilot:
        await until_seen(pilot, "broken.toml:2")
        await pilot.press("ctrl+s", "ctrl+n", "ctrl+l", "ctrl+f")
        await pilot.pause()
    assert path.read_text() == "schema = 1\nname = \n"
