"""Whether the interpreters of a recipe have the packages that its stages need, for `cockpit check`.

A launch refuses what is missing. A check says it before: at the line of the field that asks for a package, if the rest
of the engines' packages is there. Where they are missing too, the recipe is looked at beside the machine that will run
it, and one sentence says that a launch here would be refused.
"""

from __future__ import annotations

import sys

from cockpit.launching.interpreters import check_interpreters, missing_packages
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, printable
from recipes.stages.fields import StageFields
from recipes.stages.kind import backend_of
from recipes.stages.launch.fields import launch_of

ASKED_BY = {
    "bitsandbytes": ("load_in_4bit", "base_rounding", "optim"),
    "liger-kernel": ("use_liger_kernel",),
    "mlflow": ("report_to",),
    "tensorboard": ("report_to",),
    "wandb": ("report_to",),
}
"""The fields whose value makes a stage need a package, the first one that is not at its default."""


def package_problems(loaded: LoadedRecipe) -> list[Problem]:
    """Packages that a field asks for and that the stage's interpreter lacks, each at the line of the field."""
    problems = []
    for stage in _asked(loaded):
        try:
            missing, command = missing_packages(stage)
        except OperatorError:
            continue  # `launch_warning` says why the interpreter is of no use
        if not missing or not missing <= set(ASKED_BY):
            continue
        for name in sorted(missing):
            field = _field(stage, name)
            line = loaded.line_of(stage.name, field)
            python = printable(stage.python or sys.executable, 200)
            message = f"{python} lacks {name}"
            problems.append(Problem(loaded.path, line, f"{stage.name}.{field}", message, hint=f"install it: {command}"))
    return problems


def launch_warning(loaded: LoadedRecipe) -> str:
    """Why a launch on this machine would be refused; empty if its interpreters have what the stages need."""
    try:
        check_interpreters(loaded.recipe, [stage.name for stage in _asked(loaded)])
    except OperatorError as error:
        return f"a launch here would be refused: {'; '.join(error.message.splitlines())}; {error.hint}"
    return ""


def _asked(loaded: LoadedRecipe) -> list[StageFields]:
    """The stages whose interpreters can be asked; Unsloth's have a check of their own."""
    return [one for one in loaded.recipe.stage if not launch_of(one).container and backend_of(one) == "hf"]


def _field(stage: StageFields, package: str) -> str:
    set_here = [name for name in ASKED_BY[package] if getattr(stage, name, None) not in (None, False, "none", [])]
    return set_here[0] if set_here else "kind"
