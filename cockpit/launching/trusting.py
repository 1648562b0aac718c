"""Trusting a run that this user did not launch on this machine: what it would start, and the refusal that lists it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator

from cockpit.provenance.trust import repair_hint, require_ours, seal, why_not_ours, why_untrusted
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.supervision.launcher import interpreter_of
from cockpit.text.safe_text import safe_text
from engines.run_dir.paths import RunDir, RunDirError
from recipes.problems import OperatorError
from recipes.stages.fields import StageFields
from recipes.stages.launch.fields import launch_of
from recipes.stages.registry import row_of

MOST_LINES = 40
_PATH_STARTS = ("/", "~", "./", "../")


def what_would_start(run: RunDir) -> list[str]:
    """A line per command that a resume could start, and per path from outside the run that it would read.

    Raises:
        RunDirError: `recipe.json` cannot be read.
    """
    plan = RunRecipe.read(run)
    lines: list[str] = []
    for stage in plan.recipe.stage:
        interpreter, launcher = interpreter_of(stage), launch_of(stage).launcher
        whose = "  (Cockpit's own interpreter)" if interpreter == sys.executable and not stage.python else ""
        command = shlex.join([*launcher, interpreter, "-m", row_of(stage).program])
        lines.append(safe_text(f"stage {stage.name} ({stage.kind}): {command}{whose}", 400))
        read = [f"{field}: {ref.path}" for field, ref in plan.inputs.get(stage.name, {}).items() if ref.path]
        named = [f"{field}: {value}" for field, value in _paths(stage.model_dump(mode="json", exclude={"python"}))]
        lines += [f"    {safe_text(line, 400)}" for line in dict.fromkeys([*_programs(stage), *read, *named])]
    for name in ("on_success", "on_failure"):
        argv = getattr(plan.recipe, name)
        lines += [safe_text(f"{name}: {shlex.join(argv)}", 400)] if argv else []
    left_out = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"… {left_out} more lines; see {run.recipe_json}"] if left_out > 0 else lines


def require_trusted_to_start(run: RunDir, what: str, then: str) -> None:
    """Refuse to start what a run that is not trusted names; the message lists it.

    Args:
        run: the run whose recipe names interpreters and paths.
        what: the act that was refused, as the message says it: "a resume".
        then: what to do after the run is trusted.

    Raises:
        OperatorError: the reason, the list, and the command that trusts the run.
    """
    reason = why_untrusted(run)
    if not reason:
        return
    try:
        listed = what_would_start(run)
    except RunDirError as error:
        listed = [str(error)]
    hint = repair_hint(run) if why_not_ours(run) else f"if these are yours: cockpit trust {run.root}; {then}"
    lines = [f"{run.id} is read-only: {reason}", f"{what} would start:", *(f"  {line}" for line in listed)]
    raise OperatorError("\n".join(lines), hint)


def trust(run: RunDir) -> None:
    """Trust the run from now on, as if this user had launched it here.

    Raises:
        OperatorError: another user owns the folder or may write it, or the record cannot be written.
    """
    require_ours(run)
    try:
        seal(run)
    except OSError as error:
        raise OperatorError(f"{run.id}: could not write its launch token: {error.strerror or error}") from error


def _programs(stage: StageFields) -> Iterator[str]:
    """What a stage runs or asks besides its engine."""
    for field in ("command", "judge_command"):
        if argv := getattr(stage, field, None):
            yield f"{field}: {shlex.join(argv)}"
    if tasks := getattr(stage, "lm_eval_tasks", None):
        yield f"lm_eval_tasks: {', '.join(tasks)}, by {getattr(stage, 'lm_eval_python', None) or 'the interpreter'}"
    if url := getattr(stage, "judge_url", None):
        yield f"judge_url: {url} gets every prompt and answer"
    if getattr(stage, "allow_code_execution", False):
        yield "allow_code_execution: runs the code of answers, in the sandbox"


def _paths(value: object, field: str = "") -> Iterator[tuple[str, str]]:
    """The texts in a stage's fields that look like paths, each with its field."""
    if isinstance(value, str) and value.startswith(_PATH_STARTS):
        yield field, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _paths(inner, f"{field}.{name}" if field else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _paths(inner, field)
