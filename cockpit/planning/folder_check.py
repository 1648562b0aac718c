"""Examine the folders that a recipe's merges and exports will read, in a child process, before a run is made.

The child reads headers, configs and tokenizers, and no weights. If it cannot run here (another interpreter has the
packages) or takes long, the stages examine the folders when they run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from recipes.load import LoadedRecipe
from recipes.problems import Problem, printable
from recipes.stages.export import ExportStage
from recipes.stages.merge import MergeStage

PATIENCE_S = 20.0
_ROOT = Path(__file__).resolve().parents[2]


def folder_problems(loaded: LoadedRecipe) -> list[Problem]:
    """The problems with the folders, each at the line that names the folder."""
    found = [job for job in (_job(loaded, stage) for stage in loaded.recipe.stage) if job is not None]
    if not found:
        return []
    problems = []
    for line in _examined([job for _, job in found]):
        stage = found[line["job"]][0]
        field = str(line["field"]).partition("[")[0]
        place = loaded.line_of(stage, field)
        problems += [
            Problem(loaded.path, place, f"{stage}.{field}", printable(text, 1000), hint=printable(line["hint"], 400))
            for text in str(line["message"]).splitlines()
        ]
    return problems


def _job(loaded: LoadedRecipe, stage: object) -> tuple[str, dict[str, Any]] | None:
    """What the child examines for a stage; None if it reads no folder that exists now."""
    if not isinstance(stage, MergeStage | ExportStage) or stage.python is not None:
        return None
    refs = loaded.graph.inputs[stage.name]
    model = refs.get("model")
    if model is None or model.path is None:
        return None
    adapters = {field: str(ref.path) for field, ref in refs.items() if field.startswith("adapter") and ref.path}
    own = isinstance(stage, ExportStage) and stage.converter == "own" and stage.adapter is None
    return stage.name, {"model": str(model.path), "adapters": adapters, "writes": own}


def _examined(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "exporters.stages.folder_check", json.dumps(jobs)]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )
        return [json.loads(line) for line in done.stdout.splitlines()] if done.returncode == 0 else []
    except (subprocess.TimeoutExpired, OSError, ValueError):
        return []
