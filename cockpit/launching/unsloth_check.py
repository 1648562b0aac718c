"""Whether Unsloth starts in the interpreters of a recipe's stages: asked in a helper process, for `cockpit check`.

Versions alone do not say it: Unsloth looks at the machine as it is imported, and refuses one whose accelerator it or
torch cannot use. A launch asks for versions only, because the import takes as long as an engine's start.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cockpit.launching.interpreters import check_interpreters, why_no_answer
from engines.json_text import parse_json
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError, Problem, printable
from recipes.stages.finetune import FinetuneFields
from recipes.stages.kind import backend_of
from recipes.stages.training import QUANTIZED_OPTIMIZERS

ASK_TIMEOUT_S = 300.0
_QUESTION = """
import json
try:
    import unsloth
    answer = {"device": str(unsloth.DEVICE_TYPE)}
except Exception as error:
    said = (str(error).strip() or "no reason given").splitlines()[0]
    answer = {"error": f"{type(error).__name__}: {said}"}
print()
print(json.dumps(answer))
"""


@dataclass(frozen=True)
class Answer:
    """What an interpreter says of Unsloth: the kind of its device, or why it does not start."""

    device: str = ""
    error: str = ""


def stages_with_unsloth(loaded: LoadedRecipe) -> list[FinetuneFields]:
    """The stages of a recipe that Unsloth loads the model of."""
    return [
        stage for stage in loaded.recipe.stage if isinstance(stage, FinetuneFields) and backend_of(stage) == "unsloth"
    ]


def unsloth_problems(loaded: LoadedRecipe) -> list[Problem]:
    """Why stages cannot train with Unsloth on this machine, each at the line of its field."""
    answers: dict[tuple[str, tuple[str, ...]], Answer] = {}
    problems = []
    for stage in stages_with_unsloth(loaded):
        python = stage.python or sys.executable
        try:
            check_interpreters(loaded.recipe, [stage.name])
        except OperatorError as error:
            problems.append(_problem(loaded, stage, "backend", "; ".join(error.message.splitlines()), error.hint))
            continue
        key = (python, tuple(stage.devices))
        if key not in answers:
            answers[key] = ask(python, stage.devices)
        problems += [_problem(loaded, stage, *found) for found in _findings(stage, python, answers[key])]
    return problems


def ask(python: str, devices: list[str]) -> Answer:
    """What an interpreter says when it imports Unsloth as an engine does, in a folder that is removed afterwards."""
    environment = {"HF_HUB_OFFLINE": "1", **os.environ, "UNSLOTH_DISABLE_STATISTICS": "1"}
    if devices:
        environment |= {"CUDA_VISIBLE_DEVICES": ",".join(devices), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    with tempfile.TemporaryDirectory(prefix="cockpit-unsloth-") as folder:
        environment["UNSLOTH_COMPILE_LOCATION"] = str(Path(folder) / "compiled")
        try:
            found = subprocess.run(
                [python, "-c", _QUESTION],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=ASK_TIMEOUT_S,
                check=True,
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
            )
            value = parse_json(found.stdout.splitlines()[-1])
            return Answer(str(value.get("device", "")), printable(str(value.get("error", "")), 400))
        except (OSError, subprocess.SubprocessError, ValueError, LookupError, AttributeError) as error:
            return Answer(error=why_no_answer(error))


def _findings(stage: FinetuneFields, python: str, answer: Answer) -> Iterator[tuple[str, str, str]]:
    if answer.error:
        yield (
            "backend",
            f"Unsloth does not start in {printable(python, 200)}: {answer.error}",
            'install what it needs there, choose other devices, or set backend = "hf"',
        )
    elif answer.device == "cpu" and stage.optim in QUANTIZED_OPTIMIZERS:
        yield (
            "optim",
            f"Unsloth has no {stage.optim} on a machine without an accelerator",
            'set optim = "adamw_torch_fused", or backend = "hf"',
        )


def _problem(loaded: LoadedRecipe, stage: FinetuneFields, field: str, message: str, hint: str) -> Problem:
    line = loaded.line_of(stage.name, field)
    return Problem(loaded.path, line, f"{stage.name}.{field}", message, hint=hint)
