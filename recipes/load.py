"""Loads a recipe file: a complete recipe, or every problem that it has."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from recipes.explain import check_table, check_values, kind_words
from recipes.fields import FieldSpec, fields_of, keys_of
from recipes.graph import FindOutput, Graph, Node, absolute, build_graph, is_file, is_folder, is_path, named_inputs
from recipes.overrides import apply_overrides, belongs, near_field
from recipes.problems import Problem, RecipeError, closest, either, shown
from recipes.schema import Recipe
from recipes.source import Source
from recipes.stages.fake import FakeStage
from recipes.stages.gates import unreported
from recipes.stages.registry import STAGE_KINDS, STAGE_TYPES, kind_of, output_word, tag_of_table, tags_of
from recipes.toml_read import parse, read_text
from recipes.toml_scan import KeyPath

MAX_STAGES = 256
MAX_PROBLEMS = 500
"""The check ends here: a hostile file can have a hundred thousand problems, which would take seconds."""
SOURCE = "source"
STANDARD_LIBRARY = "python-stdlib"
"""A value of the field `source` that is not a folder."""
OPTIONAL = "optional"
"""The key of a table that allows its folder to be missing."""
COMMAND_FOLDER = "command_folder"
"""The folder of a stage's command; the recipe's own unless the recipe names another."""
_WITHOUT_DEFAULT = ("name", "kind", "output")


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe ready to run.

    `recipe` and `resolved` contain every value: the stage's own, else the kind's default, else the schema's. Every path
    in them is absolute. `resolved` is JSON data, and `Recipe.model_validate(resolved)` equals `recipe`.
    """

    recipe: Recipe
    text: str
    path: Path
    resolved: dict[str, Any]
    overrides: tuple[str, ...]
    graph: Graph
    source: Source

    def line_of(self, stage: str | None, field: str) -> int:
        """The line that sets a field (dotted for nested tables): 0 for an override, else the header's if none does."""
        if stage is None:
            return self.source.line((field,))
        number = next(number for number, item in enumerate(self.recipe.stage) if item.name == stage)
        parts: list[str | int] = []
        for part in field.split("."):
            name, _, index = part.removesuffix("]").partition("[")
            parts += [name, int(index)] if index.isdigit() else [part]
        return self.source.line(("stage", number, *parts), tag_of_table(self.resolved["stage"][number]))

    def origins(self) -> dict[str, dict[str, str]]:
        """What set each field, by stage: `recipe`, `defaults` or `--set`; fields at the schema's default are left
        out."""
        found: dict[str, dict[str, str]] = {}
        for number, table in enumerate(self.resolved["stage"]):
            tag = str(tag_of_table(table))
            fields = {spec.path: self.source.origin(number, tag, spec.path) for spec in fields_of(tag)}
            found[str(table["name"])] = {path: origin for path, origin in fields.items() if origin is not None}
        return found


def load_recipe(
    path: Path | str, sets: Sequence[str] = (), find_output: FindOutput | None = None, *, paths_here: bool = True
) -> LoadedRecipe:
    """Read, check and complete a recipe file.

    Args:
        path: the file.
        sets: overrides, each `STAGE.FIELD=VALUE`.
        find_output: finds the outputs of other runs (RUN:STAGE); None leaves them unresolved.
        paths_here: whether the recipe's files and folders must exist here; no for a run on another machine.

    Raises:
        OperatorError: the file cannot be read.
        RecipeError: every problem of the recipe, each with its line.
    """
    path = Path(path)
    return load_recipe_text(read_text(path), path, sets, find_output, paths_here=paths_here)


def load_recipe_text(
    text: str,
    path: Path | str,
    sets: Sequence[str] = (),
    find_output: FindOutput | None = None,
    *,
    paths_here: bool = True,
) -> LoadedRecipe:
    """Check and complete a recipe given as text; `path` is the file's, for relative paths and messages.

    Raises:
        RecipeError: every problem of the recipe.
    """
    path = Path(path)
    data, index = parse(text, path)
    check = _Check(Source(path, index, data), path.parent, find_output, paths_here)
    check.problems |= dict.fromkeys(apply_overrides(check.source, sets))
    graph = check.everything()
    if check.problems:
        raise RecipeError(list(check.problems))
    recipe = Recipe.model_validate(check.completed())
    resolved = recipe.model_dump(mode="json", by_alias=True)
    return LoadedRecipe(recipe, text, path, resolved, tuple(sets), graph, check.source)


class _Check:
    """One pass over a parsed recipe. Each stage is completed with its defaults, then checked."""

    def __init__(self, source: Source, folder: Path, find_output: FindOutput | None, paths_here: bool) -> None:
        self.source = source
        self.folder = folder
        self.find_output = find_output
        self.paths_here = paths_here
        self.problems: dict[Problem, None] = {}
        self.defaults: dict[str, dict[str, Any]] = {}
        self.stages: list[dict[str, Any]] = []

    def add(
        self, path: KeyPath, message: str, got: str = "", allowed: str = "", hint: str = "", tag: str | None = None
    ) -> None:
        self.problems[self.source.problem(path, message, got, allowed, hint, tag)] = None
        if len(self.problems) >= MAX_PROBLEMS:
            raise RecipeError(list(self.problems))

    def everything(self) -> Graph:
        """Check the recipe; the graph is complete only if there are no problems."""
        self._check_top()
        self._check_numbers()
        self._check_defaults()
        nodes: list[Node] = []
        for number, table in enumerate(self._tables()):
            tag = tag_of_table(table)
            self.stages.append(self._with_defaults(table, tag))
            self._check_stage(number, tag)
            nodes.append(self._node(number, tag))

        def report(number: int, key: str, message: str, got: str, allowed: str, hint: str) -> None:
            field, _, item = key.removesuffix("]").partition("[")
            path = ("stage", number, field, int(item)) if item else ("stage", number, key)
            self.add(path, message, got, allowed, hint, tag_of_table(self.stages[number]))

        return build_graph(nodes, self.folder, report, self.paths_here, self.find_output)

    def completed(self) -> dict[str, Any]:
        """The recipe's data with defaults applied to its stages and absolute paths."""
        for stage in self.stages:
            tag = tag_of_table(stage)
            for spec in fields_of(tag) if tag else []:
                value = stage.get(spec.path)
                if spec.accepts and isinstance(value, list):
                    stage[spec.path] = [self._absolute(item) for item in value]
                elif spec.accepts and isinstance(value, str):
                    stage[spec.path] = self._absolute(value)
                elif _names_folder(value, spec):
                    stage[spec.path] = str(absolute(value, self.folder))
                elif spec.or_tables and isinstance(value, list):
                    for table, item in _folders_in(value, spec):
                        table[item.path] = str(absolute(table[item.path], self.folder))
                elif spec.file and value is not None:
                    stage[spec.path] = self._absolute(value)
            if stage.get("command") and stage.get(COMMAND_FOLDER) is None:
                stage[COMMAND_FOLDER] = str(absolute(".", self.folder))
        top = {key: value for key, value in self.source.data.items() if key != "defaults"}
        return {**top, "stage": self.stages}

    def _absolute(self, value: Any) -> Any:
        return str(absolute(value, self.folder)) if isinstance(value, str) and is_path(value) else value

    def _check_top(self) -> None:
        data = self.source.data
        top = {key: value for key, value in data.items() if key not in ("stage", "defaults")}
        # True and 1.0 equal 1 in Python, and so in pydantic's Literal[1].
        if "schema" in top and not (type(top["schema"]) is int and top["schema"] == 1):
            hint = "a newer version of Cockpit may read it" if type(top["schema"]) is int and top["schema"] > 1 else ""
            self.add(
                ("schema",), "this version of Cockpit does not read this recipe format", shown(top["schema"]), "1", hint
            )
            top["schema"] = 1

        def report(loc: KeyPath, message: str, got: str, allowed: str, hint: str) -> None:
            self.add(loc, message, got, allowed, hint)

        check_table(Recipe, {**top, "stage": [FakeStage(name="x")]}, None, report)

    def _check_numbers(self) -> None:
        """Report longer integers than TOML's 64 bits: Python reads them, but JSON readers and engines cannot."""
        pending: list[tuple[KeyPath, Any]] = [((), self.source.data)]
        while pending:
            path, value = pending.pop()
            if isinstance(value, dict):
                pending.extend(((*path, key), item) for key, item in value.items())
            elif isinstance(value, list):
                pending.extend(((*path, number), item) for number, item in enumerate(value))
            elif type(value) is int and not -(2**63) <= value < 2**63:
                self.add(path, "too large", shown(value), "a number of at most 64 bits")

    def _check_defaults(self) -> None:
        tables = self.source.data.get("defaults", {})
        if not isinstance(tables, dict):
            self.add(("defaults",), "wrong type", kind_words(tables), "tables such as [defaults.finetune]")
            return
        for kind, table in tables.items():
            if kind not in STAGE_KINDS:
                self.add(
                    ("defaults", kind), "unknown stage kind", "", ", ".join(STAGE_KINDS), closest(kind, STAGE_KINDS)
                )
            elif not isinstance(table, dict):
                self.add(("defaults", kind), "wrong type", kind_words(table), f"a table [defaults.{kind}]")
            else:
                self.defaults[kind] = table
                self._check_kind(kind, table)

    def _check_kind(self, kind: str, table: Mapping[str, Any]) -> None:
        """The defaults of one kind, whether or not the recipe has a stage of it."""
        tags = tags_of(kind)
        known = dict.fromkeys(key for tag in tags for key in keys_of(tag) if key not in _WITHOUT_DEFAULT)
        for key in table:
            if key in _WITHOUT_DEFAULT:
                self.add(("defaults", kind, key), "this key cannot have a default; set it in every stage")
            elif key not in known:
                specs = [spec for tag in tags for spec in fields_of(tag)]
                hint = belongs(key) or closest(key, known) or near_field(key, specs)
                self.add(("defaults", kind, key), f"{kind} has no such key", hint=hint)

        def report(loc: KeyPath, message: str, got: str, allowed: str, hint: str) -> None:
            self.add(("defaults", kind, *loc), message, got, allowed, hint)

        for tag in tags:
            check_values(STAGE_TYPES[tag], _settable(table, tag), tag, report)

    def _tables(self) -> list[dict[str, Any]]:
        """The stage tables; anything else in their place is reported."""
        stages = self.source.data.get("stage")
        if stages is None:
            self.add(("stage",), "required: a recipe has at least one stage", "", "[[stage]] tables")
            return []
        if not isinstance(stages, list) or not stages:
            self.add(("stage",), "wrong type", kind_words(stages), "[[stage]] tables")
            return []
        if len(stages) > MAX_STAGES:
            self.add(("stage", MAX_STAGES), "too many stages", str(len(stages)), f"at most {MAX_STAGES}")
        for number, table in enumerate(stages):
            if not isinstance(table, dict):
                self.add(("stage", number), "wrong type", kind_words(table), "[[stage]] tables")
        return [table if isinstance(table, dict) else {} for table in stages[:MAX_STAGES]]

    def _with_defaults(self, table: Mapping[str, Any], tag: str | None) -> dict[str, Any]:
        """A stage with the defaults of its kind: its own key wins, a list replaces a list, tables merge."""
        own = copy.deepcopy(dict(table))
        if tag is None:
            return own
        return _merged(_settable(self.defaults.get(own["kind"], {}), tag), own)

    def _check_stage(self, number: int, tag: str | None) -> None:
        stage = self.stages[number]
        here: KeyPath = ("stage", number)

        def report(loc: KeyPath, message: str, got: str, allowed: str, hint: str) -> None:
            self.add((*here, *loc), message, got, allowed, hint, tag)

        if tag is None:
            if stage or isinstance(self.source.data["stage"][number], dict):
                self._check_unknown(here, stage)
            return
        check_table(STAGE_TYPES[tag], stage, tag, report)
        for gate, metric, allowed, hint in unreported(tag, stage):
            report(
                ("gate", gate, "metric"),
                f"a {kind_of(tag)} stage with these fields does not report it",
                shown(metric),
                allowed,
                hint,
            )
        for spec in fields_of(tag):
            self._check_paths(stage.get(spec.path), spec, report)

    def _check_paths(self, value: Any, spec: FieldSpec, report: Callable[[KeyPath, str, str, str, str], None]) -> None:
        """Check that the files and folders of a field exist."""
        if spec.file and isinstance(value, str):
            self._check_file(value, spec, report)
        if spec.or_tables and isinstance(value, list) and self.paths_here:
            for table, item in _folders_in(value, spec):
                if table.get(OPTIONAL) is not True:
                    loc: KeyPath = (spec.path, _index(value, table), item.path)
                    self._check_folder(table[item.path], spec, loc, report)
        elif value != "" and not spec.new_folder and self.paths_here and _names_folder(value, spec):
            self._check_folder(value, spec, (spec.path,), report)

    def _check_folder(
        self, value: str, spec: FieldSpec, loc: KeyPath, report: Callable[[KeyPath, str, str, str, str], None]
    ) -> None:
        """Check that a folder exists."""
        place = absolute(value, self.folder)
        if not is_folder(place) and not (spec.or_file and is_file(place)):
            what = "file or folder" if spec.or_file else "folder"
            allowed, hint = f"an existing {what}, relative to the recipe's folder", ""
            if spec.path == SOURCE:
                allowed += f', or "{STANDARD_LIBRARY}"'
                hint = closest(value, [STANDARD_LIBRARY])
            if len(loc) > 1:
                hint = "; ".join(filter(None, (hint, f"set {OPTIONAL} = true to leave it out where it is missing")))
            report(loc, f"there is no such {what}", shown(value), allowed, hint)

    def _check_file(self, value: str, spec: FieldSpec, report: Callable[[KeyPath, str, str, str, str], None]) -> None:
        """Check a field that is one of some words, or the path of a file."""
        if not is_path(value):
            if value not in ("", *spec.suggests):
                report((spec.path,), "no such name", shown(value), spec.allowed, closest(value, spec.suggests))
        elif self.paths_here and not is_file(absolute(value, self.folder)):
            report((spec.path,), "there is no such file", shown(value), spec.allowed, "")

    def _check_unknown(self, here: KeyPath, stage: Mapping[str, Any]) -> None:
        """Check a stage of an unknown type: only its name, kind and output."""
        if "name" not in stage:
            self.add((*here, "name"), "required: unique name; other stages use it as an input")
        else:
            name = {"name": stage["name"]}

            def report(loc: KeyPath, message: str, got: str, allowed: str, hint: str) -> None:
                self.add((*here, *loc), message, got, allowed, hint)

            check_values(STAGE_TYPES["fake"], name, "fake", report)
        kind = stage.get("kind")
        row = STAGE_KINDS.get(kind) if isinstance(kind, str) else None
        if row is None:
            message = "required: what the stage does" if "kind" not in stage else "unknown stage kind"
            got = "" if "kind" not in stage else shown(kind)
            hint = closest(kind, STAGE_KINDS) if isinstance(kind, str) else ""
            self.add((*here, "kind"), message, got, either(list(STAGE_KINDS)), hint)
            return
        outputs = list(row.types)
        output = stage.get("output")
        message = "required: what the stage makes" if "output" not in stage else "not one of the choices"
        got = "" if "output" not in stage else shown(output)
        hint = closest(output, outputs) if isinstance(output, str) else ""
        self.add((*here, "output"), message, got, either(outputs), hint)

    def _node(self, number: int, tag: str | None) -> Node:
        stage = self.stages[number]
        name = stage.get("name")
        inputs = named_inputs(tag, stage) if tag else []
        return Node(number, name if isinstance(name, str) and name else None, output_word(tag) if tag else None, inputs)


def _names_folder(value: Any, spec: FieldSpec) -> TypeGuard[str]:
    """Whether the value of a field is the path of a folder."""
    return spec.folder and isinstance(value, str) and not (spec.path == SOURCE and value == STANDARD_LIBRARY)


def _folders_in(tables: list[Any], spec: FieldSpec) -> list[tuple[dict[str, Any], FieldSpec]]:
    """The tables of a list that name a folder, each with the field that does."""
    return [
        (table, item)
        for table in tables
        if isinstance(table, dict)
        for item in spec.items
        if item.folder and isinstance(value := table.get(item.path), str) and value not in ("", STANDARD_LIBRARY)
    ]


def _index(tables: list[Any], table: dict[str, Any]) -> int:
    return next(number for number, one in enumerate(tables) if one is table)


def _settable(table: Mapping[str, Any], tag: str) -> dict[str, Any]:
    """The defaults of a kind that this type of stage has fields for."""
    keys = [key for key in keys_of(tag) if key not in _WITHOUT_DEFAULT]
    return {key: copy.deepcopy(value) for key, value in table.items() if key in keys}


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    for key, value in above.items():
        under = below.get(key)
        below[key] = _merged(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return below
