"""A recipe as a form: sections of rows over the TOML text, edited in place, checked whole, undone byte for byte.

Pure: no screen and no files. The text is the truth; rows are read off it, and an edit replaces one value in it, so that
comments, order and spacing stay as the author wrote them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cockpit.forms.problems import RECIPE, attach
from cockpit.forms.rows import (
    Head,
    Row,
    SectionHead,
    Spot,
    data_of,
    effective_value,
    is_number,
    ordered_sections,
    own_value,
    produces,
    same,
    stages_of,
    toml_path,
)
from cockpit.forms.values import NoValue, read_value, show_value
from recipes.edit import EditError, diff_lines, set_value, unset_value
from recipes.fields import FieldSpec, recipe_fields
from recipes.problems import OperatorError, Problem, RecipeError
from recipes.stages.registry import tag_of_table
from recipes.toml_read import parse
from recipes.toml_scan import TomlIndex

if TYPE_CHECKING:
    from recipes.load import LoadedRecipe

MAX_UNDO = 500


@dataclass(frozen=True)
class _Snapshot:
    text: str
    spot: tuple[int, str] | None


class FormModel:
    """The recipe being edited.

    Args:
        text: the recipe's text.
        path: where it is from; relative inputs are looked up from its folder.
        disk_text: what the file held when it was opened; `text` itself unless given.
    """

    def __init__(self, text: str, path: Path, disk_text: str | None = None) -> None:
        self.path = path
        self._text = text
        self._disk_text = text if disk_text is None else disk_text
        self._undo: list[_Snapshot] = []
        self._redo: list[_Snapshot] = []
        self._open_edit: tuple[int, str] | None = None
        self.problems: list[Problem] = []
        self.loaded: LoadedRecipe | None = None
        self.refusal = ""
        """why the last edit could not be made; empty when it was"""
        self._by_row: dict[tuple[int, str], list[Problem]] = {}
        self._loose: dict[int, list[Problem]] = {}
        self._disk_data: dict[str, Any] = data_of(self._disk_text, path)
        self._data: dict[str, Any] = {}
        self._index = TomlIndex()
        self._take(text)
        self.check()

    # ---- the text

    @property
    def text(self) -> str:
        """The TOML as it stands."""
        return self._text

    @property
    def disk_text(self) -> str:
        """The TOML that the file held when it was opened or saved."""
        return self._disk_text

    @property
    def dirty(self) -> bool:
        """Whether the text differs from the disk's."""
        return self._text != self._disk_text

    def diff(self) -> list[str]:
        """The difference to the disk, a line of context around each change."""
        return diff_lines(self._disk_text, self._text)

    def saved(self, path: Path) -> None:
        """The text is on disk now, under this path."""
        self.path, self._disk_text = path, self._text
        self._disk_data = self._data
        self.close_edit()

    def rebase(self, disk_text: str) -> None:
        """The file holds other text now; the edits stay, and differences are told from the new text."""
        self._disk_text = disk_text
        self._disk_data = data_of(disk_text, self.path)

    def replace(self, text: str) -> None:
        """Take other text as a whole; it can be undone."""
        self._remember(None)
        self._take(text)
        self.check()

    # ---- edits

    def set(self, place: int, key: str, typed: str) -> None:
        """Put what was typed into the text; nothing typed takes the key out. One undo step per row visited.

        Validation is separate (`check`), so that typing stays quick.
        """
        spec = self._spec(place, key)
        if spec is None:
            return
        value = read_value(typed, spec.kind)
        own = own_value(self._data, place, key)
        if spec.kind == "float" and is_number(own) and is_number(value) and own == value:
            return  # 1 and 1.0 are one number here: the file keeps its own spelling
        self._put(place, key, value)

    def put(self, place: int, key: str, value: Any) -> None:
        """Put a value into the text."""
        self._put(place, key, value)

    def reset(self, place: int, key: str) -> None:
        """Put the row back to what it is on disk."""
        self.close_edit()
        self._put(place, key, own_value(self._disk_data, place, key))
        self.close_edit()

    def close_edit(self) -> None:
        """The row was left: the next edit of it is an undo step of its own."""
        if self._open_edit is not None and self._undo and self._undo[-1].text == self._text:
            self._undo.pop()  # what was typed was taken back by hand
        self._open_edit = None

    def undo(self) -> tuple[int, str] | None:
        """Take the last edit back, byte for byte; where it was, or None when there is nothing to undo."""
        return self._travel(self._undo, self._redo)

    def redo(self) -> tuple[int, str] | None:
        """Do again what was undone."""
        return self._travel(self._redo, self._undo)

    @property
    def can_undo(self) -> bool:
        return bool(self._undo)

    @property
    def can_redo(self) -> bool:
        return bool(self._redo)

    # ---- what is shown

    @property
    def broken(self) -> Problem | None:
        """The problem of text that is not TOML at all: there is nothing to show but it."""
        return self.problems[0] if not self._data and self.problems else None

    def heads(self) -> list[Head]:
        """The recipe itself and its stages, in the file's order."""
        found = [Head(RECIPE, "recipe", "", "recipe", *self._counts(RECIPE))]
        for place, stage in enumerate(stages_of(self._data)):
            kind = stage.get("kind")
            name = stage.get("name")
            shown = name if isinstance(name, str) else f"stage {place + 1}"
            found.append(Head(place, shown, str(kind or "?"), tag_of_table(stage), *self._counts(place)))
        return found

    def sections(self, place: int) -> list[SectionHead]:
        """The sections of a stage, in the schema's order."""
        found = []
        for name, specs in self._specs(place).items():
            changed = sum(1 for spec in specs if self._was(place, spec) is not None)
            problems = sum(1 for spec in specs if self._by_row.get((place, spec.path)))
            found.append(SectionHead(name, changed, problems))
        return found

    def rows(self, place: int, section: str) -> list[Row]:
        """The rows of a section."""
        return [self._row(place, spec) for spec in self._specs(place).get(section, [])]

    def row(self, place: int, key: str) -> Row | None:
        """One row."""
        spec = self._spec(place, key)
        return None if spec is None else self._row(place, spec)

    def loose_problems(self, place: int | None = None) -> list[Problem]:
        """Problems that belong to no row: of a stage, or of all."""
        if place is not None:
            return list(self._loose.get(place, []))
        return [problem for problems in self._loose.values() for problem in problems]

    @property
    def changed_rows(self) -> int:
        """How many rows differ from the disk."""
        return sum(head.changed for head in self.heads())

    def section_of(self, place: int, key: str) -> str:
        """The section that a row stands in."""
        spec = self._spec(place, key)
        return spec.section if spec else ""

    def next_problem(self, after: Spot) -> Spot | None:
        """The next place with a problem, in the order of the form, round from the end to the start."""
        spots: list[Spot] = []
        position = -1
        for head in self.heads():
            if self._loose.get(head.place):
                spots.append(Spot(head.place, "", ""))
            for section, specs in self._specs(head.place).items():
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
        """Words that fit a field: its choices, or the other stages whose output it accepts."""
        spec = self._spec(place, key)
        if spec is None:
            return []
        if spec.choices:
            return [str(choice) for choice in spec.choices]
        names = []
        for other, stage in enumerate(stages_of(self._data)):
            name = stage.get("name")
            if other != place and isinstance(name, str) and produces(stage) in spec.accepts:
                names.append(name)
        return names

    # ---- validation

    def check(self) -> None:
        """Validate the whole recipe and put every problem where it belongs."""
        from recipes.load import load_recipe_text

        self.problems, self.loaded = [], None
        try:
            self.loaded = load_recipe_text(self._text, self.path)
        except RecipeError as error:
            self.problems = list(error.problems)
        except OperatorError as error:
            self.problems = [Problem(self.path, 0, "", error.message, hint=error.hint)]
        rows = {
            head.place: [s.path for specs in self._specs(head.place).values() for s in specs] for head in self.heads()
        }
        self._by_row, self._loose = attach(self.problems, self._index, stages_of(self._data), rows)

    # ---- inside

    def _take(self, text: str) -> None:
        self._text = text
        try:
            self._data, self._index = parse(text, self.path)
        except RecipeError:
            self._data, self._index = {}, TomlIndex()

    def _put(self, place: int, key: str, value: Any) -> None:
        own = own_value(self._data, place, key)
        if same(own, value):
            return
        path = toml_path(place, key)
        self.refusal = ""
        # While a row is typed into, each text is made from the one before the row was entered: a value that is cleared
        # and typed anew keeps its place and its comment.
        typing = self._open_edit == (place, key) and bool(self._undo)
        before = self._undo[-1].text if typing else self._text
        try:
            text = unset_value(before, path) if isinstance(value, NoValue) else set_value(before, path, value)
        except (EditError, RecipeError) as error:
            self.refusal = error.message
            return
        if text == self._text:
            return
        self._remember((place, key))
        self._take(text)
        if repr(self._data) == repr(self._disk_data):
            self._take(self._disk_text)  # typed back to what it was: the file's own spelling, so nothing is changed

    def _remember(self, spot: tuple[int, str] | None) -> None:
        self._redo.clear()
        if spot is None or spot != self._open_edit:
            self._undo.append(_Snapshot(self._text, spot))
            del self._undo[:-MAX_UNDO]
        self._open_edit = spot

    def _travel(self, source: list[_Snapshot], target: list[_Snapshot]) -> tuple[int, str] | None:
        if not source:
            return None
        step = source.pop()
        target.append(_Snapshot(self._text, step.spot))
        self._take(step.text)
        self._open_edit = None
        self.check()
        return step.spot or (RECIPE, "")

    def _specs(self, place: int) -> dict[str, list[FieldSpec]]:
        if place == RECIPE:
            return {"Recipe": recipe_fields()}
        stages = stages_of(self._data)
        tag = tag_of_table(stages[place]) if 0 <= place < len(stages) else None
        return ordered_sections(tag) if tag else {}

    def _spec(self, place: int, key: str) -> FieldSpec | None:
        return next((s for specs in self._specs(place).values() for s in specs if s.path == key), None)

    def _row(self, place: int, spec: FieldSpec) -> Row:
        value, origin = effective_value(self._data, place, spec)
        problems = tuple(self._by_row.get((place, spec.path), ()))
        return Row(spec.path, spec, show_value(value), origin, self._was(place, spec), problems)

    def _was(self, place: int, spec: FieldSpec) -> str | None:
        now, before = effective_value(self._data, place, spec)[0], effective_value(self._disk_data, place, spec)[0]
        return None if show_value(now) == show_value(before) else show_value(before)

    def _counts(self, place: int) -> tuple[int, int]:
        specs = [spec for specs in self._specs(place).values() for spec in specs]
        problems = sum(1 for spec in specs if self._by_row.get((place, spec.path)))
        loose = len(self._loose.get(place, []))
        return sum(1 for spec in specs if self._was(place, spec) is not None), problems + loose
