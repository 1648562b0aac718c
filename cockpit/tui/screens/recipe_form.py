"""A recipe as a form: its stages, a stage's sections, and a section's rows, each with its editor."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events, on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import Screen
from textual.timer import Timer
from textual.widgets import Input, Static

from cockpit.forms.model import FormModel
from cockpit.forms.recipe_data import RECIPE
from cockpit.forms.rows import Spot
from cockpit.forms.rows_target import rows_of_recipe
from cockpit.forms.save import ChangedOnDiskError, is_read_only, save_copy, save_recipe
from cockpit.forms.shelf import copy_path
from cockpit.forms.values import read_value, show_value
from cockpit.planning.stages import Plan, plan
from cockpit.text.formatting import counted
from cockpit.text.safe_text import safe_text
from cockpit.tui.app_protocol import app_of
from cockpit.tui.dialogs.confirm import Answer, ConfirmScreen
from cockpit.tui.dialogs.pick import PickScreen
from cockpit.tui.dialogs.read import TextScreen
from cockpit.tui.look.keys import bindings
from cockpit.tui.look.notices import say, say_error
from cockpit.tui.look.theme import palette
from cockpit.tui.screens import form_text
from cockpit.tui.screens.data_estimate import DataEstimate
from cockpit.tui.widgets.field_row import FieldRow
from cockpit.tui.widgets.form_lists import SectionList, StageList
from cockpit.tui.widgets.key_bar import KeyBar
from cockpit.tui.widgets.line_list import LineList
from recipes.problems import OperatorError
from recipes.toml_read import read_text

CHECK_AFTER_S = 0.1
"""Seconds between the last key and the check of the whole recipe."""


class RecipeScreen(Screen[None]):
    """The form of one recipe file."""

    key_scopes: ClassVar[tuple[str, ...]] = ("recipe", "lists")
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(b.key, b.action, b.description, show=False, id=b.id, priority=True) for b in bindings("recipe")),
        Binding("d", "diff", "Diff", show=False),
        Binding("escape,q", "leave", "Back", show=False),
    ]
    CSS = """
    RecipeScreen { layout: vertical; }
    RecipeScreen > #title { height: 1; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; }
    RecipeScreen > Horizontal { height: 1fr; }
    RecipeScreen #left { width: 20; }
    RecipeScreen StageList { border: round $frame; height: 1fr; }
    RecipeScreen SectionList { border: round $frame; height: 1fr; }
    RecipeScreen #middle { width: 1fr; }
    RecipeScreen #rows { border: round $frame; height: 1fr; }
    RecipeScreen StageList, RecipeScreen SectionList, RecipeScreen #rows, RecipeScreen #diff, RecipeScreen #estimate {
        border-title-color: $text-muted;
    }
    RecipeScreen StageList:focus, RecipeScreen SectionList:focus, RecipeScreen #rows:focus-within {
        border: round $border; border-title-color: $foreground;
    }
    RecipeScreen #hint { border: round $frame; height: 7; padding: 0 1; }
    RecipeScreen #right { width: 50; display: none; }
    RecipeScreen #diff { border: round $frame; height: 1fr; padding: 0 1; }
    RecipeScreen #estimate { border: round $frame; height: auto; min-height: 6; padding: 0 1; }
    RecipeScreen #cost {
        height: 1; background: $surface; color: $text-muted; text-wrap: nowrap; text-overflow: ellipsis;
    }
    RecipeScreen.-wide #left { width: 28; }
    RecipeScreen.-wide #right { display: block; }
    """

    def __init__(self, path: Path, runs: Path | None = None) -> None:
        super().__init__()
        self.path = path
        self._runs = runs
        self.model = FormModel("", path)
        self.read_only = False
        self.unreadable = ""
        self._rows: dict[str, FieldRow] = {}
        self._here = Spot(RECIPE, "", "")
        self._due: Timer | None = None
        self._data = DataEstimate(self, self._show_facts)
        self._open()

    def _open(self) -> None:
        try:
            self.model = FormModel(read_text(self.path), self.path, runs=self._runs)
            self.read_only = is_read_only(self.path)
        except OperatorError as error:
            self.unreadable = error.message

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        with Horizontal():
            with Vertical(id="left"):
                yield StageList(self.model.heads(), id="stages")
                yield SectionList(id="sections")
            with Vertical(id="middle"):
                yield VerticalScroll(id="rows", can_focus=False)
                yield Static(id="hint")
            with Vertical(id="right"):
                with VerticalScroll(id="diff", can_focus=False):
                    yield Static(id="diff_text")
                yield Static(id="estimate")
        yield Static(id="cost")
        yield KeyBar("recipe")

    async def on_mount(self) -> None:
        with self.app.batch_update():  # one repaint instead of one for each part
            await self._open_first()

    async def _open_first(self) -> None:
        for selector, title in (
            ("#stages", "Stages"),
            ("#sections", "Sections"),
            ("#diff", "Changes"),
            ("#estimate", "Estimate"),
        ):
            self.query_one(selector).border_title = title
        self.query_one(StageList).focus()
        stages = [head.place for head in self.model.heads() if head.place != RECIPE]
        self._show_facts()
        place, section = self._choose(stages[0] if stages else RECIPE)
        await self._mount_rows(place, section, "")

    # ---- the current stage, section and row

    def _show_stage(self, place: int, section: str = "", key: str = "") -> None:
        self.call_later(self._mount_rows, *self._choose(place, section), key)

    def _choose(self, place: int, section: str = "") -> tuple[int, str]:
        """Select a stage and a section (without one, the first other than "Stage"); returns both."""
        self.query_one(StageList).select(place)
        sections = self.model.sections(place)
        chosen = section or next((s.name for s in sections if s.name != "Stage"), sections[0].name if sections else "")
        self._here = Spot(place, "", "")
        lister = self.query_one(SectionList)
        with self.prevent(LineList.Moved):
            lister.set_items(sections)
            lister.select(chosen)
        return place, chosen

    async def _mount_rows(self, place: int, section: str, key: str) -> None:
        """Show the rows of one section; with only a dozen widgets, every key stays fast."""
        rows = self.query_one("#rows", VerticalScroll)
        found = self.model.rows(place, section)
        if (place, section) != (self._here.place, self._here.section) or [row.key for row in found] != [*self._rows]:
            self.model.close_edit()
            self._here = Spot(place, section, "")
            self._rows = {row.key: FieldRow(row) for row in found}
            head = next((h for h in self.model.heads() if h.place == place), None)
            where = safe_text(head.name, 40) if head else ""
            rows.border_title = Text(f"{where} · {section}" if section else where)
            async with self.batch():
                await rows.remove_children()
                await rows.mount_all(self._rows.values())
        if key in self._rows:
            self._rows[key].editor.focus()
        self._show_hint()

    @on(LineList.Moved, "#stages")
    def _stage_moved(self) -> None:
        current = self.query_one(StageList).current
        if current is not None and current.place != self._here.place:
            self._show_stage(current.place)

    @on(LineList.Moved, "#sections")
    def _section_moved(self) -> None:
        current = self.query_one(SectionList).current
        if current is not None and current.name != self._here.section:
            self.call_later(self._mount_rows, self._here.place, current.name, "")

    @on(LineList.Chosen, "#stages")
    def _into_sections(self) -> None:
        self.query_one(SectionList).focus()

    @on(LineList.Chosen, "#sections")
    def _into_rows(self) -> None:
        if self._rows:
            next(iter(self._rows.values())).editor.focus()

    @on(FieldRow.Moved)
    def _next_row(self, event: FieldRow.Moved) -> None:
        keys = list(self._rows)
        place = keys.index(event.key) + event.by if event.key in keys else 0
        if 0 <= place < len(keys):
            self._rows[keys[place]].editor.focus()

    @on(FieldRow.Entered)
    def _entered(self, event: FieldRow.Entered) -> None:
        if event.key != self._here.key:
            self.model.close_edit()
        self._here = Spot(self._here.place, self._here.section, event.key)
        self._show_hint()

    # ---- edits

    @on(FieldRow.Edited)
    def _edited(self, event: FieldRow.Edited) -> None:
        self.model.set(self._here.place, event.key, event.text)
        if self.model.refusal:
            say(self, self.model.refusal, "warning")
        self._show_row(event.key, keep_text=True)
        if self._due is not None:
            self._due.stop()
        self._due = self.set_timer(CHECK_AFTER_S, self._check)

    def _check(self) -> None:
        self.model.check()
        self._refresh(keep_text=True)

    def _check_now(self) -> None:
        """Check the text as typed so far, without a delay."""
        if self._due is not None:
            self._due.stop()
            self._due = None
        self._check()

    def _refresh(self, *, keep_text: bool) -> None:
        """Show everything again; `keep_text` keeps the text in the focused editor."""
        self.query_one(StageList).set_items(self.model.heads())
        with self.prevent(LineList.Moved):
            self.query_one(SectionList).set_items(self.model.sections(self._here.place))
        for key in self._rows:
            self._show_row(key, keep_text=keep_text)
        self._follow_type()
        self._show_hint()
        self._show_facts()

    def _follow_type(self) -> None:
        """Show the section again if its rows changed: another output has other sections and rows."""
        place, section, key = self._here.place, self._here.section, self._here.key
        if section and section not in [one.name for one in self.model.sections(place)]:
            self._show_stage(place)
        elif [row.key for row in self.model.rows(place, section)] != [*self._rows]:
            self.call_later(self._mount_rows, place, section, key)

    def _show_row(self, key: str, *, keep_text: bool) -> None:
        row = self.model.row(self._here.place, key)
        if row is not None and key in self._rows:
            focused = self._rows[key].is_mounted and self._rows[key].editor.has_focus
            self._rows[key].show(row, keep_text=keep_text and focused)

    @on(FieldRow.Asked)
    def _asked(self, event: FieldRow.Asked) -> None:
        self._pick(event.key)

    def action_pick(self) -> None:
        if self._here.key:
            self._pick(self._here.key)

    def _pick(self, key: str) -> None:
        row = self.model.row(self._here.place, key)
        words = self.model.candidates(self._here.place, key)
        if row is None:
            return
        if not words:
            self._next_row(FieldRow.Moved(key, 1))
            return
        many = row.spec.kind == "list"
        listed = read_value(row.text, "list") if many else None
        marked = [word for word in listed if word in words] if isinstance(listed, list) else None

        def take(answer: list[str] | None) -> None:
            if answer is not None:
                text = show_value(answer) if many else (answer[0] if answer else "")
                self._take_value(key, text)

        self.app.push_screen(PickScreen(f"{key}: {row.spec.help}", words, marked if many else None), take)

    def _take_value(self, key: str, text: str) -> None:
        self.model.close_edit()
        self.model.set(self._here.place, key, text)
        self.model.close_edit()
        self.model.check()
        self._refresh(keep_text=False)

    def action_undo(self) -> None:
        self._travelled(self.model.undo(), "nothing to undo")

    def action_redo(self) -> None:
        self._travelled(self.model.redo(), "nothing to redo")

    def _travelled(self, spot: tuple[int, str] | None, otherwise: str) -> None:
        if spot is None:
            say(self, otherwise)
            return
        self._refresh(keep_text=False)
        place, key = spot
        section = self.model.section_of(place, key)
        if section and (place, section) != (self._here.place, self._here.section):
            self._show_stage(place, section, key)
        elif key in self._rows:
            self._rows[key].editor.focus()

    def action_reset(self) -> None:
        if self._here.key:
            self.model.reset(self._here.place, self._here.key)
            self.model.check()
            self._refresh(keep_text=False)

    # ---- finding

    def action_next_problem(self) -> None:
        self._check_now()
        spot = self.model.next_problem(self._here)
        if spot is None:
            say(self, "no problems")
            return
        if spot.key:
            self._show_stage(spot.place, spot.section, spot.key)
            return
        self._show_stage(spot.place)
        loose = self.model.loose_problems(spot.place)
        way = "\nctrl+k removes it" if self.model.unknown_keys(spot.place) else ""
        say(self, f"{loose[0]}{way}", "warning")

    def action_remove_unknown(self) -> None:
        """Ask which keys without a row to remove from the stage."""
        place = self._here.place
        keys = self.model.unknown_keys(place)
        if not keys:
            say(self, "no unknown keys here")
            return

        def remove(answer: list[str] | None) -> None:
            for key in answer or []:
                self.model.remove(place, key)
                if self.model.refusal:
                    say(self, self.model.refusal, "warning")
            self._refresh(keep_text=False)

        self.app.push_screen(PickScreen("Remove keys that the schema does not have", keys, marked=keys), remove)

    def action_find(self) -> None:
        spots: dict[str, Spot] = {}
        for head in self.model.heads():
            for section in self.model.sections(head.place):
                for row in self.model.rows(head.place, section.name):
                    spots[f"{head.name}.{row.key}"] = Spot(head.place, section.name, row.key)

        def go(answer: list[str] | None) -> None:
            if answer:
                spot = spots[answer[0]]
                self._show_stage(spot.place, spot.section, spot.key)

        self.app.push_screen(PickScreen("Go to a field", list(spots), search=True), go)

    def action_diff(self) -> None:
        self.app.push_screen(
            TextScreen(
                f"{self.model.path.name}: unsaved changes",
                form_text.difference(self.model, palette(self.app.theme_variables)),
            )
        )

    # ---- saving, launching and closing, with their questions

    def action_save(self) -> None:
        self._check_now()
        self._save()

    def _save(self) -> bool:
        """Save the recipe, or a copy of a read-only one; returns False when it is not saved (yet)."""
        model = self.model
        if self.unreadable:
            say(self, self.unreadable, "error")
            return False
        if self.read_only:
            return self._save_copy("the original is read-only and unchanged")
        if not model.dirty:
            say(self, "nothing to save")
            return True
        try:
            save_recipe(model.path, model.text, model.disk_text)
        except ChangedOnDiskError as error:
            self._ask_about_change(error)
            return False
        except OperatorError as error:
            say_error(self, error)
            return False
        model.saved(model.path)
        self._refresh(keep_text=False)
        say(self, self._saved_words())
        return True

    def _save_copy(self, why: str) -> bool:
        path = copy_path(self.model.path.stem)
        try:
            save_copy(path, self.model.text)
        except OperatorError as error:
            say_error(self, error)
            return False
        self.model.saved(path)
        self.path, self.read_only = path, False
        self.model.check()  # relative paths start at the copy's folder now
        self._refresh(keep_text=False)
        say(self, f"saved as {path}; {why}\n{self._saved_words()}")
        return True

    def _saved_words(self) -> str:
        count, name = len(self.model.problems), self.model.path.name
        return f"{name} saved" if not count else f"{name} saved; it cannot start yet: {counted(count, 'problem')}"

    def _ask_about_change(self, error: ChangedOnDiskError) -> None:
        disk_text = error.text

        def answered(answer: str | None) -> None:
            if answer == "copy":
                self._save_copy("the changed file is not overwritten")
            elif answer == "reload" and disk_text is not None:
                self.model.replace(disk_text)
                self.model.rebase(disk_text)
                self._refresh(keep_text=False)
                say(self, "reloaded; ctrl+z restores your edits")

        answers = [Answer("back", "Back"), Answer("copy", "Save a copy")]
        if disk_text is not None:
            answers.append(Answer("reload", "Reload the file", danger=True))
        body = (
            f"{error.message}.\n"
            "The file is not overwritten. Save your text as a copy, or reload the file (undo restores your edits)."
        )
        self.app.push_screen(ConfirmScreen("The file changed on disk", body, answers), answered)

    def action_launch(self) -> None:
        """Ask, then start the recipe as the form shows it; refused while it has problems."""
        self._check_now()
        model = self.model
        if model.problems or model.loaded is None:
            if model.problems:
                say(self, f"not launched: {counted(len(model.problems), 'problem')}\n{model.problems[0]}", "error")
                self.action_next_problem()
            else:
                say(self, f"not launched: {self.unreadable}", "error")
            return
        unsaved = (
            "The edits are not saved: the run uses the text as shown, and the file is not changed."
            if model.dirty
            else ""
        )
        app_of(self).ask_to_launch(model.loaded, self._plan(), unsaved)

    def action_rows(self) -> None:
        """Show the rows that the selected stage reads; refused while the recipe has problems."""
        self._check_now()
        loaded = self.model.loaded
        head = next((head for head in self.model.heads() if head.place == self._here.place), None)
        if self.model.problems or loaded is None:
            say(self, "the rows cannot be shown while the recipe has problems", "warning")
            return
        try:
            target = rows_of_recipe(loaded, head.name if head is not None and head.place != RECIPE else None)
        except OperatorError as error:
            say_error(self, error)
        else:
            app_of(self).open_rows(target)

    def action_leave(self) -> None:
        """Close the form; ask first when edits would be lost."""
        if not self.model.dirty:
            self.app.pop_screen()
            return

        def answered(answer: str | None) -> None:
            if answer == "discard" or (answer == "save" and self._save()):
                self.app.pop_screen()

        answers = [
            Answer("stay", "Keep editing"),
            Answer("save", "Save and close"),
            Answer("discard", "Discard", danger=True),
        ]
        changed = self.model.changed_rows
        body = f"{changed} {'field has' if changed == 1 else 'fields have'} unsaved changes."
        self.app.push_screen(ConfirmScreen("Close the form?", body, answers), answered)

    def _plan(self) -> Plan | None:
        """The estimate of a valid recipe; None while it has problems."""
        loaded = self.model.loaded
        return plan(loaded.recipe, loaded.graph, self._data.looks(loaded)) if loaded is not None else None

    # ---- title, estimate and hint

    def _show_facts(self) -> None:
        colours, figures = palette(self.app.theme_variables), self._plan()
        self._data.ask(self.model.loaded)
        looks = self._data.looks(self.model.loaded)
        self.query_one("#title", Static).update(form_text.title(self.model, colours, self.read_only, self.unreadable))
        self.query_one("#cost", Static).update(Text(f" {form_text.cost(figures)}", no_wrap=True))
        self.query_one("#diff_text", Static).update(form_text.difference(self.model, colours))
        self.query_one("#estimate", Static).update(form_text.estimate(figures, looks, colours))

    def _show_hint(self) -> None:
        spot = self._here if self._here.key in self._rows else Spot(self._here.place, self._here.section, "")
        self.query_one("#hint", Static).update(form_text.hint(self.model, spot, palette(self.app.theme_variables)))

    def on_screen_resume(self, _event: events.ScreenResume) -> None:
        self._show_hint()

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        event.stop()
