"""A recipe as a form: sections of rows over the TOML text, with edits in place, validation and exact undo.

Pure: no screen and no files. The rows are derived from the text, and an edit replaces one value in the text, so that
comments, order and spacing stay as the author wrote them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cockpit.forms.history import History, Step
from cockpit.forms.problems import ByPlace, ByRow, attach
from cockpit.forms.recipe_data import RECIPE, RecipeData, toml_path
from cockpit.forms.rows import Head, Row, SectionHead, Spot
from cockpit.forms.values import TEXT_OR_TABLES, NoValue, read_value, same, same_number, show_value
from recipes.edit import EditError, diff_lines, set_value, unset_value
from recipes.fields import FieldSpec
from recipes.problems import OperatorError, Problem, RecipeError
from recipes.stages.registry import tag_of_table

if TYPE_CHECKING:
    from recipes.load import LoadedRecipe


class FormModel:
    """The recipe that is edited.

    Args:
        text: the recipe's text.
        path: the recipe's file; relative inputs are resolved from its folder.
        disk_text: the file's content when it was opened; `text` by default.
        runs: the folder of runs, in which inputs that are RUN:STAGE are looked up; None leaves them unchecked.
    """

    def __init__(self, text: str, path: Path, disk_text: str | None = None, runs: Path | None = None) -> None:
        self.path = path
        self._runs = runs
        self._text = text
        self._disk_text = text if disk_text is None else disk_text
        self._history = History()
        self.problems: list[Problem] = []
        self.loaded: LoadedRecipe | None = None
        self.refusal = ""
        """why the last edit was refused; empty if it was accepted"""
        self._by_row: ByRow = {}
        self._loose: ByPlace = {}
        self._disk_data = RecipeData(self._disk_text, path)
        self._data = RecipeData(text, path)
        self.check()

    # ---- the text

    @property
    def text(self) -> str:
        """The current TOML text."""
        return self._text

    @property
    def disk_text(self) -> str:
        """The file's TOML text when it was last opened or saved."""
        return self._disk_text

    @property
    def dirty(self) -> bool:
        """Whether the text differs from the file's."""
        return self._text != self._disk_text

    def diff(self) -> list[str]:
        """The difference to the file, with one line of context around each change."""
        return diff_lines(self._disk_text, self._text)

    def saved(self, path: Path) -> None:
        """Note that the text was saved to this path."""
        self.path, self._disk_text = path, self._text
        self._disk_data = self._data
        self.close_edit()

    def rebase(self, disk_text: str) -> None:
        """Note that the file's text changed; the edits stay, and differences are shown to the new text."""
        self._disk_text = disk_text
        self._disk_data = RecipeData(disk_text, self.path)

    def replace(self, text: str) -> None:
        """Replace the whole text; this can be undone."""
        self._history.remember(self._text, None)
        self._take(text)
        self.check()

    # ---- edits

    def set(self, place: int, key: str, typed: str) -> None:
        """Set a field to what was typed; empty text removes the key. One visit of a row is one undo step.

        Validation is separate (`check`), so that typing stays fast.
        """
        spec = self._data.spec(place, key)
        if spec is None:
            return
        value = read_value(typed, TEXT_OR_TABLES if spec.or_tables else spec.kind)
        if spec.kind == "float" and same_number(self._data.own(place, key), value):
            return  # 1 and 1.0 are the same number here: the file keeps its spelling
        self.put(place, key, value)

    def put(self, place: int, key: str, value: Any) -> None:
        """Set a field to a value; `NO_VALUE` removes the key. If that is refused, `refusal` contains the reason."""
        if same(self._data.own(place, key), value):
            return
        path = toml_path(place, key)
        self.refusal = ""
        before = self._history.text_before((place, key), self._text)
        try:
            text = unset_value(before, path) if isinstance(value, NoValue) else set_value(before, path, value)
        except (EditError, RecipeError) as error:
            self.refusal = error.message
            return
        if text == self._text:
            return
        self._history.remember(self._text, (place, key))
        self._take(text)
        if self._data.equals(self._disk_data):
            self._take(self._disk_text)  # typed back to the file's values: the file's spelling counts

    def reset(self, place: int, key: str) -> None:
        """Reset the row to the file's value."""
        self.close_edit()
        self.put(place, key, self._disk_data.own(place, key))
        self.close_edit()

    def close_edit(self) -> None:
        """End the visit of a row: its next edit is a new undo step."""
        self._history.leave_row(self._text)

    def undo(self) -> tuple[int, str] | None:
        """Undo the last edit, byte for byte; returns its row, or None if there is nothing to undo."""
        return self._return_to(self._history.undo(self._text))

    def redo(self) -> tuple[int, str] | None:
        """Redo the last undone edit; returns its row, or None if there is nothing to redo."""
        return self._return_to(self._history.redo(self._text))

    # ---- what is shown

    @property
    def broken(self) -> Problem | None:
        """The problem of a text that is not TOML; without rows, it is all that can be shown."""
        return self.problems[0] if not self._data.table and self.problems else None

    def heads(self) -> list[Head]:
        """The recipe and its stages, in the file's order."""
        found = [Head(RECIPE, "recipe", "", "recipe", *self._counts(RECIPE))]
        for place, stage in enumerate(self._data.stages):
            kind = stage.get("kind")
            name = stage.get("name")
            shown = name if isinstance(name, str) else f"stage {place + 1}"
            found.append(Head(place, shown, str(kind or "?"), tag_of_table(stage), *self._counts(place)))
        return found

    def sections(self, place: int) -> list[SectionHead]:
        """The sections of a stage, in the schema's order."""
        found = []
        for name, specs in self._data.sections(place).items():
            changed = sum(1 for spec in specs if self._was(place, spec) is not None)
            problems = sum(1 for spec in specs if self._by_row.get((place, spec.path)))
            found.append(SectionHead(name, changed, problems))
        return found

    def rows(self, place: int, section: str) -> list[Row]:
        """The rows of a section."""
        return [self._row(place, spec) for spec in self._data.sections(place).get(section, [])]

    def row(self, place: int, key: str) -> Row | None:
        """One row."""
        spec = self._data.spec(place, key)
        return None if spec is None else self._row(place, spec)

    def loose_problems(self, place: int | None = None) -> list[Problem]:
        """Problems that belong to no row, of one stage or of all."""
        if place is not None:
            return list(self._loose.get(place, []))
        return [problem for problems in self._loose.values() for problem in problems]

    def unknown_keys(self, place: int) -> list[str]:
        """Keys of a stage, or of the recipe, that the schema does not have: they have no row, but can be removed."""
        return self._data.unknown_keys(place)

    def remove(self, place: int, key: str) -> None:
        """Remove a key that has no row, with all under it; this can be undone. A refusal is in `refusal`."""
        self.refusal = ""
        self.close_edit()
        try:
            text = unset_value(self._text, toml_path(place, key))
        except (EditError, RecipeError) as error:
            self.refusal = error.message
            return
        self.replace(text)

    @property
    def changed_rows(self) -> int:
        """The number of rows that differ from the file."""
        return sum(head.changed for head in self.heads())

    def section_of(self, place: int, key: str) -> str:
        """The section of a row."""
        spec = self._data.spec(place, key)
        return spec.section if spec else ""

    def next_problem(self, after: Spot) -> Spot | None:
        """The next position with a problem, in the order of the form; after the last, the first."""
        spots: list[Spot] = []
        position = -1
        for head in self.heads():
            if self._loose.get(head.place):
                spots.append(Spot(head.place, "", ""))
            for section, specs in self._data.sections(head.place).items():
                for spec in specs:
                    if (head.place, spec.path) == (after.place, after.key):
                        position = len(spots)
                    elif (head.place, section) == (after.place, after.section) and position < 0 and not after.key:
                        position = len(spots) - 1
                    if self._by_row.get((head.place, spec.path)):
                        spots.append(Spot(head.place, section, spec.path))
        if not spots:
            return None
        here = Spot(after.place, after.section, after.key)
        if here in spots:
            return spots[(spots.index(here) + 1) % len(spots)]
        return spots[max(0, position) % len(spots)]

    def candidates(self, place: int, key: str) -> list[str]:
        """Candidates for a field: its choices or usual values, or the other stages whose output it accepts."""
        return self._data.candidates(place, key)

    # ---- validation

    def check(self) -> None:
        """Validate the recipe and assign every problem to its row or stage."""
        from cockpit.launching.run_outputs import outputs_in
        from recipes.load import load_recipe_text

        self.problems, self.loaded = [], None
        try:
            find_output = None if self._runs is None else outputs_in(self._runs)
            self.loaded = load_recipe_text(self._text, self.path, (), find_output)
        except RecipeError as error:
            self.problems = list(error.problems)
        except OperatorError as error:
            self.problems = [Problem(self.path, 0, "", error.message, hint=error.hint)]
        places = (RECIPE, *range(len(self._data.stages)))
        rows = {place: [spec.path for spec in self._data.specs(place)] for place in places}
        self._by_row, self._loose = attach(self.problems, self._data.index, self._data.stages, rows)

    # ---- internals

    def _take(self, text: str) -> None:
        self._text = text
        self._data = RecipeData(text, self.path)

    def _return_to(self, step: Step | None) -> tuple[int, str] | None:
        if step is None:
            return None
        self._take(step.text)
        self.check()
        return step.row or (RECIPE, "")

    def _row(self, place: int, spec: FieldSpec) -> Row:
        value, origin = self._data.effective(place, spec)
        problems = tuple(self._by_row.get((place, spec.path), ()))
        return Row(spec.path, spec, show_value(value), origin, self._was(place, spec), problems)

    def _was(self, place: int, spec: FieldSpec) -> str | None:
        now, before = self._data.effective(place, spec)[0], self._disk_data.effective(place, spec)[0]
        return None if show_value(now) == show_value(before) else show_value(before)

    def _counts(self, place: int) -> tuple[int, int]:
        specs = self._data.specs(place)
        problems = sum(1 for spec in specs if self._by_row.get((place, spec.path)))
        loose = len(self._loose.get(place, []))
        return sum(1 for spec in specs if self._was(place, spec) is not None), problems + loose
