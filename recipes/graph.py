"""A recipe as a graph: the inputs of every stage, and the order in which stages run."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recipes.fields import inputs_of
from recipes.problems import OperatorError, Problem, RecipeError, closest, printable, shown
from recipes.schema import Recipe
from recipes.stages.data_fields import DATASET
from recipes.stages.fields import STAGE_NAME, StageFields
from recipes.stages.registry import output_of, tag_of_stage

Origin = Literal["stage", "path", "hub", "run"]
"""`run` is RUN:STAGE that was not looked up: the graph was made without access to the folder of runs."""

RUN_STAGE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99}):([a-z0-9-]{1,40})(?:@(\d{1,12}))?")
"""RUN:STAGE, the output of a stage of another run, or RUN:STAGE@STEP, one of its checkpoints."""
HUB_ID = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:@[A-Za-z0-9][A-Za-z0-9._-]{0,99})?"
)
"""org/name, or org/name@REVISION: a commit, a tag or a branch that is pinned."""
_SHOWN_STAGES = 12


@dataclass(frozen=True)
class Reference:
    """What an input refers to: a stage of the recipe, an absolute path, or a hub id; `path` is set only for a path.

    For the output of another run, `path` is its folder and `manifest_sha256` identifies its content.
    """

    origin: Origin
    name: str
    path: Path | None = None
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class RunOutput:
    """An output or a checkpoint of another run: its folder, its kind (a word of `accepts`) and its identity."""

    path: Path
    output: str
    manifest_sha256: str


FindOutput = Callable[[str, str, int | None], RunOutput]
"""Finds the output of a run's stage, or its checkpoint of a step; raises OperatorError if it does not exist."""


@dataclass(frozen=True)
class Graph:
    """`order` is topological, with the file's order as tie-break. All maps have every stage as a key."""

    order: list[str]
    inputs: dict[str, dict[str, Reference]]
    parents: dict[str, list[str]]
    descendants: dict[str, set[str]]

    def ancestors(self, stage: str) -> set[str]:
        """Every stage that `stage` depends on, without itself."""
        return {name for name, below in self.descendants.items() if stage in below}


@dataclass
class Node:
    """A stage in the graph; `output` is None if the type of the stage is unknown."""

    number: int
    name: str | None
    output: str | None
    inputs: list[tuple[str, str, tuple[str, ...]]] = field(default_factory=list)
    """field, its value, and the outputs it accepts"""


Report = Callable[[int, str, str, str, str, str], None]
"""Called with the stage's number, the field, the message, got, allowed and hint."""


def resolve_graph(
    recipe: Recipe, recipe_dir: Path, check_paths: bool = True, find_output: FindOutput | None = None
) -> Graph:
    """The graph of a validated recipe.

    Args:
        recipe: a recipe with defaults applied to its stages.
        recipe_dir: the folder that paths are relative to.
        check_paths: report paths that do not exist.
        find_output: finds the outputs of other runs; None leaves them unresolved.

    Raises:
        RecipeError: every problem of the graph. `load_recipe` reports the same ones with their lines.
    """
    problems: list[Problem] = []

    def report(number: int, key: str, message: str, got: str, allowed: str, hint: str) -> None:
        name = recipe.stage[number].name
        problems.append(Problem(recipe_dir, 0, f"{name}.{key}", message, got, allowed, hint))

    graph = build_graph(
        [node_of(number, stage) for number, stage in enumerate(recipe.stage)],
        recipe_dir,
        report,
        check_paths,
        find_output,
    )
    if problems:
        raise RecipeError(problems)
    return graph


def node_of(number: int, stage: StageFields) -> Node:
    """The node of a validated stage."""
    return Node(number, stage.name, output_of(stage), named_inputs(tag_of_stage(stage), stage.model_dump()))


def named_inputs(tag: str, fields: Mapping[str, Any]) -> list[tuple[str, str, tuple[str, ...]]]:
    """The inputs of a stage: the field (`field[0]` and so on for a list), its value and the outputs it accepts."""
    found: list[tuple[str, str, tuple[str, ...]]] = []
    for spec in inputs_of(tag):
        value = fields.get(spec.path)
        if isinstance(value, str):
            found.append((spec.path, value, spec.accepts))
        elif isinstance(value, list):
            named = enumerate(value)
            found += [(f"{spec.path}[{n}]", item, spec.accepts) for n, item in named if isinstance(item, str)]
    return found


def build_graph(
    nodes: Sequence[Node],
    recipe_dir: Path,
    report: Report,
    check_paths: bool = True,
    find_output: FindOutput | None = None,
) -> Graph:
    """The graph of stages that may have errors; each error is reported, and the result contains the valid part."""
    by_name: dict[str, Node] = {}
    for node in nodes:
        if node.name is None:
            continue
        if node.name in by_name:
            first = by_name[node.name].number + 1
            report(
                node.number,
                "name",
                "two stages have this name",
                shown(node.name),
                "a unique name",
                f"stage {first} has the same name",
            )
        else:
            by_name[node.name] = node
    inputs: dict[str, dict[str, Reference]] = {name: {} for name in by_name}
    for node in nodes:
        for key, value, accepts in node.inputs:
            run_stage = RUN_STAGE.fullmatch(value)
            if run_stage is not None:
                found = _output_of_run(node, key, run_stage, accepts, report, find_output)
            else:
                found = _reference(node, key, value, accepts, by_name, recipe_dir, report, check_paths)
            if found is not None and node.name is not None and by_name[node.name] is node:
                inputs[node.name][key] = found
    parents = {
        name: list(dict.fromkeys(ref.name for ref in refs.values() if ref.origin == "stage"))
        for name, refs in inputs.items()
    }
    order = _order(list(by_name), parents)
    if len(order) < len(by_name):
        _report_cycles(by_name, parents, inputs, report)
    return Graph(order, inputs, parents, _descendants(order, parents))


def is_path(value: str) -> bool:
    """Whether the value of an input has the form of a path."""
    return value in (".", "..", "~") or value.startswith(("/", "./", "../", "~/"))


def absolute(value: str, recipe_dir: Path) -> Path:
    """The absolute form of a path that is relative to the recipe's folder."""
    return Path((recipe_dir / Path(value).expanduser()).absolute())


def exists(path: Path) -> bool:
    """Whether a path exists; False if it cannot be examined."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether a path is a folder; False if it cannot be examined."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether a path is a regular file; False if it cannot be examined."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _reference(
    node: Node,
    key: str,
    value: str,
    accepts: tuple[str, ...],
    by_name: dict[str, Node],
    recipe_dir: Path,
    report: Report,
    check_paths: bool,
) -> Reference | None:
    """What a value refers to; reports a problem and returns None if that does not exist."""
    if is_path(value):
        path = absolute(value, recipe_dir)
        if check_paths and not exists(path):
            report(
                node.number,
                key,
                "there is no such path",
                shown(value),
                "an existing path, relative to the recipe's folder",
                "",
            )
            return None
        return Reference("path", value, path)
    if HUB_ID.fullmatch(value):
        if "model" in accepts or DATASET in accepts:
            return Reference("hub", value)
        hint = f"for a folder, write ./{printable(value)}"
        report(node.number, key, "a hub id can only be a model or a dataset", shown(value), ", ".join(accepts), hint)
        return None
    source = by_name.get(value)
    if source is None:
        allowed = "a stage, RUN:STAGE, a path that begins with / ./ ../ or ~/" + (
            ", or org/name" if "model" in accepts or DATASET in accepts else ""
        )
        fitting = [name for name, other in by_name.items() if other.output in accepts and other is not node]
        hint = closest(value, fitting) or closest(value, by_name)
        if not hint and fitting and re.fullmatch(STAGE_NAME, value):
            hint = f"possible stages: {', '.join(fitting[:_SHOWN_STAGES])}"
        report(node.number, key, "no stage has this name", shown(value), allowed, hint)
        return None
    if source.output is not None and source.output not in accepts and source is not node:
        message = f"stage {printable(value)} has the wrong type of output"
        report(node.number, key, message, source.output, _outputs(accepts), _fitting(by_name, accepts, node))
    return Reference("stage", value)


def _output_of_run(
    node: Node,
    key: str,
    named: re.Match[str],
    accepts: tuple[str, ...],
    report: Report,
    find_output: FindOutput | None,
) -> Reference | None:
    """The output of another run, or its checkpoint; reports a problem and returns None if it cannot be used."""
    value = named[0]
    if find_output is None:
        return Reference("run", value)
    try:
        found = find_output(named[1], named[2], int(named[3]) if named[3] else None)
    except OperatorError as error:
        report(node.number, key, error.message, shown(value), "RUN:STAGE, a finished stage of a run", error.hint)
        return None
    if found.output not in accepts:
        report(
            node.number, key, f"{printable(value)} has the wrong type of output", found.output, _outputs(accepts), ""
        )
        return None
    return Reference("path", value, found.path, found.manifest_sha256)


def _outputs(accepts: tuple[str, ...]) -> str:
    """The outputs of stages that a field accepts, as text."""
    return ", ".join(word for word in accepts if word != DATASET)


def _fitting(by_name: dict[str, Node], accepts: tuple[str, ...], node: Node) -> str:
    names = [name for name, other in by_name.items() if other.output in accepts and other is not node]
    return f"possible stages: {', '.join(printable(name) for name in names[:_SHOWN_STAGES])}" if names else ""


def _order(names: Sequence[str], parents: dict[str, list[str]]) -> list[str]:
    """Kahn's algorithm; of the stages that are ready, the first in the file comes first. Excludes stages in cycles."""
    place = {name: number for number, name in enumerate(names)}
    waiting = {name: len(parents[name]) for name in names}
    children = _children(parents)
    ready = [place[name] for name in names if not waiting[name]]
    order: list[str] = []
    while ready:
        name = names[heapq.heappop(ready)]
        order.append(name)
        for child in children[name]:
            waiting[child] -= 1
            if not waiting[child]:
                heapq.heappush(ready, place[child])
    return order


def _children(parents: dict[str, list[str]]) -> dict[str, list[str]]:
    children: dict[str, list[str]] = {name: [] for name in parents}
    for name, above in parents.items():
        for parent in above:
            children[parent].append(name)
    return children


def _descendants(order: Sequence[str], parents: dict[str, list[str]]) -> dict[str, set[str]]:
    below: dict[str, set[str]] = {name: set() for name in parents}
    children = _children(parents)
    for name in reversed(order):
        for child in children[name]:
            below[name] |= {child} | below[child]
    return below


def _report_cycles(
    by_name: dict[str, Node], parents: dict[str, list[str]], inputs: dict[str, dict[str, Reference]], report: Report
) -> None:
    """Report one cycle for each group of stages that wait for each other, at the input that closes it."""
    done: set[str] = set()
    for start in by_name:
        trail: list[str] = []
        on_trail: dict[str, int] = {}
        choices = [iter([start])]
        while choices:
            name = next(choices[-1], None)
            if name is None:
                choices.pop()
                if trail and len(choices) == len(trail):
                    done.add(trail[-1])
                    del on_trail[trail.pop()]
                continue
            if name in on_trail:
                _report_cycle(trail[on_trail[name] :], by_name, inputs, report)
            elif name not in done:
                on_trail[name] = len(trail)
                trail.append(name)
                choices.append(iter(parents[name]))


def _report_cycle(
    cycle: list[str], by_name: dict[str, Node], inputs: dict[str, dict[str, Reference]], report: Report
) -> None:
    """Report `cycle`, which leads from each stage to one that it waits for, in the opposite order: that of the data."""
    first = min(range(len(cycle)), key=lambda number: by_name[cycle[number]].number)
    cycle = cycle[first:] + cycle[:first]
    names = [cycle[0], *reversed(cycle)]
    key = next(key for key, ref in inputs[cycle[0]].items() if ref.name == cycle[1 % len(cycle)])
    listed = names if len(names) <= _SHOWN_STAGES else [*names[:_SHOWN_STAGES], "…", names[-1]]
    message = "the stages wait for each other: " + " → ".join(printable(name) for name in listed)
    report(by_name[cycle[0]].number, key, message, shown(cycle[1 % len(cycle)]), "inputs without a cycle", "")
