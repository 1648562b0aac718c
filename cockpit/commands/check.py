"""`cockpit check RECIPE`: all problems of a recipe, or its plan. Writes nothing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from cockpit.command_line.arguments import add_json, add_recipe
from cockpit.command_line.parser import CommandParser
from cockpit.forms.find import load_wanted
from cockpit.headless.look_lines import look_lines
from cockpit.launching.lm_eval_check import lm_eval_problems, python_of, stages_with_lm_eval
from cockpit.launching.package_check import launch_warning, package_problems
from cockpit.launching.unsloth_check import stages_with_unsloth, unsloth_problems
from cockpit.planning.base_check import lost_in_four_bits
from cockpit.planning.data_look import data_problems, look_at_data
from cockpit.planning.files import PlannedFile
from cockpit.planning.judging.gate_check import gate_notes, gate_problems
from cockpit.planning.machine import (
    Machine,
    machine_memory,
    machine_problems,
    not_looked_at,
    planned_there,
    read_machine,
)
from cockpit.planning.memory_check import (
    Memory,
    StageMemory,
    memory_problems,
    memory_warning,
    memory_words,
    recipe_memory,
)
from cockpit.planning.mixture_check import mixtures
from cockpit.planning.model_check import check_folders, check_models, refuse
from cockpit.planning.stages import Plan, StagePlan, plan
from cockpit.runs.find import runs_root
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from cockpit.text.text_table import text_table
from engines.look.answer import StageLook
from engines.words import ExitCode
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, RecipeError
from recipes.stages.decoder.operations import PLANNED_DEVICE, PLANNED_SHARE, planned_seconds
from recipes.stages.launch.fields import launch_of
from recipes.stages.pretrain import PRETRAIN


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit check`."""
    add_recipe(parser)
    add_json(parser)
    parser.add_argument("--no-data", action="store_true", help="do not read the rows of data files")
    parser.add_argument(
        "--machine",
        metavar="FILE",
        type=Path,
        help="check for the machine that FILE describes; its models and files are not looked at",
    )
    parser.exit_codes = {
        ExitCode.DONE: "the recipe has no problems",
        ExitCode.MISTAKE: "the recipe has problems; each is listed with its line",
    }
    parser.examples = (
        ("cockpit check mine.toml", "List the problems of a recipe, or its stages and the files they will write."),
        ("cockpit check demo --set base.hidden_size=512", "Show the parameter count with a changed field."),
        ("cockpit check mine.toml --machine spark.toml", "Check for another machine, before anything is downloaded."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Check; exit code 2 if the recipe has problems."""
    try:
        machine = None if args.machine is None else read_machine(args.machine)
        loaded = load_wanted(args.recipe, args.sets, runs_root(args.runs_dir), paths_here=machine is None)
        looks = _look(loaded, with_data=not args.no_data) if machine is None else {}
        refuse(loaded, [] if machine is None else machine_problems(loaded, machine))
    except OperatorError as error:
        if not args.json:
            raise
        problems = error.problems if isinstance(error, RecipeError) else []
        print_json({"ok": False, "message": error.message, "problems": [_problem(problem) for problem in problems]})
        return ExitCode.MISTAKE
    made = plan(loaded.recipe, loaded.graph, looks)
    if machine is not None:
        made = planned_there(made, loaded, machine)
    if args.json:
        data = {name: msgspec.to_builtins(look) for name, look in looks.items()}
        answer = {"ok": True, "recipe": loaded.recipe.name, "problems": [], "plan": made.to_json(), "data": data}
        if mixed := [] if machine is not None else mixtures(loaded):
            answer["mixtures"] = [one.to_json() for one in mixed]
        print_json(answer)
        return ExitCode.DONE
    _print(loaded, made, looks)
    _print_rounding(loaded)
    if machine is None:
        _print_rows(loaded, looks)
    _print_memory(
        recipe_memory(loaded, looks) if machine is None else machine_memory(loaded, machine),
        Memory.here() if machine is None else machine.memory,
    )
    if machine is not None:
        _print_elsewhere(loaded, machine)
    else:
        _print_launch(loaded)
    return ExitCode.DONE


def _look(loaded: LoadedRecipe, *, with_data: bool) -> dict[str, StageLook]:
    """Check the models and the data of a recipe for this machine.

    Raises:
        RecipeError, OperatorError: the problems.
    """
    check_models(loaded)
    check_folders(loaded)
    looks = look_at_data(loaded) if with_data else {}
    memory = memory_problems(recipe_memory(loaded, looks), loaded)
    refuse(loaded, [*data_problems(loaded, looks), *gate_problems(loaded, looks), *memory, *package_problems(loaded)])
    for stage in stages_with_unsloth(loaded)[:1]:
        say(f"asking {stage.python or sys.executable} whether Unsloth starts there; its import takes a while")
    for one in stages_with_lm_eval(loaded)[:1]:
        say(f"asking {python_of(one)} which tasks lm_eval has there; that takes it a while")
    refuse(loaded, [*unsloth_problems(loaded), *lm_eval_problems(loaded)])
    return looks


def _print_launch(loaded: LoadedRecipe) -> None:
    """What a launch on this machine would miss, and what is not known of containers."""
    for stage in loaded.recipe.stage:
        if container := launch_of(stage).container:
            say(f"not looked at: what the container of {stage.name} has; {container} starts it")
    if refused := launch_warning(loaded):
        say(f"warning: {refused}")


def _print_rounding(loaded: LoadedRecipe) -> None:
    for warning in lost_in_four_bits(loaded):
        say(f"warning: {warning}")


def _print_memory(needs: Mapping[str, StageMemory], memory: Memory | None) -> None:
    for name, one in needs.items():
        say(f"{name} needs {memory_words(one)}")
        warning = "" if memory is None else memory_warning(one, memory)
        if warning:
            say(f"warning: {name}: {warning}")


def _print_rows(loaded: LoadedRecipe, looks: Mapping[str, StageLook]) -> None:
    """What gates mean with the test rows that are here, and what mixtures take from each source."""
    for note in gate_notes(loaded, looks):
        say(note)
    for mixture in mixtures(loaded):
        for line in mixture.lines():
            say(line)
        for warning in mixture.warnings():
            say(f"warning: {mixture.stage}: {warning}")


def _print_elsewhere(loaded: LoadedRecipe, machine: Machine) -> None:
    print_out(f"\nchecked for {machine.name}")
    for name in not_looked_at(loaded):
        say(f"not looked at, must be on {machine.name}: {name}")


def _print(loaded: LoadedRecipe, made: Plan, looks: Mapping[str, StageLook]) -> None:
    print_out(f"{loaded.path}: no problems; {fmt.counted(len(made.stages), 'stage')}, in this order:\n")
    print_out("\n".join(_table(made, loaded.graph.order)))
    say("-: not known before the stage runs")
    for planned in made.stages:
        _print_stage(planned)
    stages = {stage.name: stage for stage in loaded.recipe.stage}
    for name in loaded.graph.order:
        if name in looks:
            print_out("".join(f"{line}\n" for line in look_lines(looks[name], stages[name])), end="")
            for warning in looks[name].warnings:
                say(f"warning: {name}: {warning}")
    if made.files:
        print_out("\n" + "\n".join(_files(made)))
        for file in made.files:
            if file.warning:
                for line in file.warning.splitlines():
                    say(f"warning: {file.stage}.{line}")


def _print_stage(planned: StagePlan) -> None:
    if planned.precision is not None:
        say(f"{planned.name} computes in {planned.precision}")
    if planned.kind == PRETRAIN.kind and planned.parameters is not None:
        say(f"{planned.name} has {fmt.grouped(planned.parameters)} parameters{_time_words(planned)}")


def _time_words(planned: StagePlan) -> str:
    """What a pretraining computes, and how long that takes on a known device: an estimate."""
    if planned.operations is None:
        return ""
    time = fmt.duration(planned_seconds(planned.operations))
    share = f"{fmt.percent(PLANNED_SHARE)} of its peak"
    operations = f"{fmt.number(planned.operations, 2)} operations"
    return f"; {operations}, about {time} on an {PLANNED_DEVICE} at {share} (an estimate)"


def _files(made: Plan) -> list[str]:
    titles = ("export", "file type", "size", "bits per weight", "other type")
    rows = [
        [
            file.stage,
            file.file_type,
            f"about {fmt.size_in_both(file.bytes)}",
            fmt.bits_per_weight(file.bits_per_weight),
            _others(file),
        ]
        for file in made.files
    ]
    return text_table(titles, rows, right=range(2, 5))


def _others(file: PlannedFile) -> str:
    return f"{file.fallbacks} of {file.tensors} tensors" if file.fallbacks else "-"


def _problem(problem: Problem) -> dict[str, Any]:
    fields = ("line", "column", "key", "message", "got", "allowed", "hint")
    return {"file": str(problem.path), **{name: getattr(problem, name) for name in fields}}


def _table(made: Plan, order: list[str]) -> list[str]:
    stages = sorted(made.stages, key=lambda stage: order.index(stage.name))
    titles = ("stage", "kind", "parameters", "trained", "steps", "tokens", "evaluations", "checkpoints", "size each")
    return text_table(titles, [_row(stage) for stage in stages], right=range(2, 9))


def _row(stage: StagePlan) -> list[str]:
    figures = (
        fmt.count(stage.parameters) if stage.parameters is not None else "-",
        fmt.count(stage.trainable_parameters) if stage.trainable_parameters is not None else "-",
        str(stage.steps) if stage.steps is not None else "-",
        fmt.count(stage.tokens) if stage.tokens is not None else "-",
        str(stage.evaluations) if stage.evaluations is not None else "-",
        str(stage.checkpoints) if stage.checkpoints is not None else "-",
        f"about {fmt.size(stage.checkpoint_bytes)}" if stage.checkpoint_bytes is not None else "-",
    )
    return [stage.name, stage.kind, *figures]
