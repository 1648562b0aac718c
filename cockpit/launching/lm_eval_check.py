"""Whether lm_eval is installed where evaluate stages want it, and has their tasks: asked in a helper process.

A launch asks for the version only: the list of tasks takes the program half a minute.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from cockpit.launching.interpreters import why_no_answer
from engines.json_text import parse_json
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, closest, printable
from recipes.stages.evaluate import HOW_TO_HAVE_LM_EVAL, EvaluateStage

ASK_TIMEOUT_S = 600.0
_QUESTION = """
import json, sys
from importlib import metadata
given = json.loads(sys.argv[1])
answer = {}
try:
    answer["version"] = metadata.version("lm_eval")
    answer["hf"] = all(metadata.version(name) for name in ("torch", "transformers"))
    if given["tasks"]:
        from lm_eval.tasks import TaskManager
        manager = TaskManager(include_path=given["include_path"])
        answer["unknown"] = [one for one in given["tasks"] if not manager.match_tasks([one])]
        answer["known"] = sorted(manager.all_tasks) if answer["unknown"] else []
except metadata.PackageNotFoundError as error:
    answer["lacks"] = str(error.name)
except Exception as error:
    answer["error"] = f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
print()
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Answer:
    """What an interpreter says of lm_eval.

    Attributes:
        version: of lm_eval; empty without it.
        lacks: a distribution that is missing.
        error: why it does not start.
        unknown: tasks that it does not have.
        known: those that it has; asked only where some are unknown.
    """

    version: str = ""
    lacks: str = ""
    error: str = ""
    unknown: list[str] = field(default_factory=list)
    known: list[str] = field(default_factory=list)


def stages_with_lm_eval(loaded: LoadedRecipe) -> list[EvaluateStage]:
    """The stages of a recipe that have tasks of lm_eval."""
    return [stage for stage in loaded.recipe.stage if isinstance(stage, EvaluateStage) and stage.lm_eval_tasks]


def python_of(stage: EvaluateStage) -> str:
    """The interpreter that runs lm_eval for a stage."""
    return stage.lm_eval_python or stage.python or sys.executable


def require_lm_eval(loaded: LoadedRecipe, names: list[str]) -> None:
    """Refuse a launch whose stages cannot start lm_eval.

    Raises:
        OperatorError: it is not installed.
    """
    for stage in stages_with_lm_eval(loaded):
        if stage.name in names:
            for _, message, hint in _findings(stage, ask(stage, tasks=False)):
                raise OperatorError(f"{stage.name}: {message}", hint)


def lm_eval_problems(loaded: LoadedRecipe) -> list[Problem]:
    """Why stages cannot run their tasks of lm_eval on this machine, each at the line of its field."""
    return [
        Problem(loaded.path, loaded.line_of(stage.name, name), f"{stage.name}.{name}", message, hint=hint)
        for stage in stages_with_lm_eval(loaded)
        for name, message, hint in _findings(stage, ask(stage, tasks=True))
    ]


def ask(stage: EvaluateStage, *, tasks: bool) -> Answer:
    """What the stage's interpreter says, about its tasks too if wanted."""
    question = {"tasks": stage.lm_eval_tasks if tasks else [], "include_path": stage.lm_eval_include_path}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        found = subprocess.run(
            [python_of(stage), "-c", _QUESTION, json.dumps(question)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ASK_TIMEOUT_S,
            check=True,
            env={"HF_HUB_OFFLINE": "1", **environment},
            stdin=subprocess.DEVNULL,
        )
        value = parse_json(found.stdout.splitlines()[-1])
        version, lacks, error = (printable(str(value.get(key) or ""), 300) for key in ("version", "lacks", "error"))
        unknown, known = ([printable(str(one), 200) for one in value.get(key) or []] for key in ("unknown", "known"))
        return Answer(version, lacks, error, unknown, known)
    except (OSError, subprocess.SubprocessError, ValueError, LookupError, AttributeError, TypeError) as failed:
        return Answer(error=why_no_answer(failed))


def _findings(stage: EvaluateStage, answer: Answer) -> Iterator[tuple[str, str, str]]:
    python = printable(python_of(stage), 200)
    if answer.lacks:
        what = "lm_eval is not installed" if not answer.version else f"lm_eval {answer.version} needs {answer.lacks}"
        yield "lm_eval_tasks", f"{what} in {python}", HOW_TO_HAVE_LM_EVAL
    elif answer.error:
        yield "lm_eval_tasks", f"lm_eval does not start in {python}: {answer.error}", HOW_TO_HAVE_LM_EVAL
    for one in answer.unknown:
        near = closest(one, answer.known)
        also = "" if stage.lm_eval_include_path is None else ", and lm_eval_include_path neither"
        ls = f"{python} -m lm_eval ls tasks"
        yield (
            "lm_eval_tasks",
            f"lm_eval {answer.version} has no such task{also}; got {one!r}",
            f"{near}; {ls} lists them" if near else f"{ls} lists them",
        )
