"""The result of a run as JSON, for the command that the recipe has for its end."""

from __future__ import annotations

import json
import math
from typing import Any

from cockpit.runs.stage_view import AttemptView, StageView
from cockpit.runs.state import RunState
from engines.events.steps import CheckpointCommitted
from engines.run_dir.paths import RunDir
from engines.words import RunStatus

FORMAT = 1


def run_result(run: RunDir, state: RunState, ended: RunStatus, cause: str, failed_stage: str | None) -> bytes:
    """What happened: state, cause, and of each stage its attempts, metrics, checkpoints and output.

    Args:
        run: the run.
        state: the fold of its journal; series are not needed.
        ended: the state in which it ends.
        cause: why, in a sentence; empty for a success.
        failed_stage: the stage that failed or was refused.
    """
    value = {
        "format": FORMAT,
        "run": run.id,
        "path": str(run.root),
        "recipe": state.recipe,
        "state": str(ended),
        "cause": cause,
        "failed_stage": failed_stage,
        "stages": [_stage(run, stage) for stage in state.stages],
    }
    return (json.dumps(_named(value), allow_nan=False) + "\n").encode()


def _stage(run: RunDir, stage: StageView) -> dict[str, Any]:
    newest = stage.checkpoints[-1] if stage.checkpoints else None
    return {
        "name": stage.name,
        "kind": stage.kind,
        "state": str(stage.state),
        "step": stage.at_step,
        "metrics": dict(stage.metrics),
        "attempts": [_attempt(attempt) for attempt in stage.attempts],
        "checkpoint": _checkpoint(run, newest),
        "best_checkpoint": _checkpoint(run, stage.best_checkpoint),
        "output": str(run.out(stage.name)) if stage.state.is_done else None,
    }


def _attempt(attempt: AttemptView) -> dict[str, Any]:
    return {
        "attempt": attempt.attempt,
        "reason": str(attempt.reason),
        "detail": attempt.detail,
        "resumed_from_step": attempt.resumed_from.step if attempt.resumed_from is not None else None,
        "learning_rate_scale": attempt.learning_rate_scale,
        "changed": [change.sentence for change in attempt.adjusted],
        "guards": [
            {"guard": str(trip.guard), "step": trip.step, "value": trip.value, "limit": trip.limit}
            for trip in attempt.guards
        ],
    }


def _checkpoint(run: RunDir, found: CheckpointCommitted | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "step": found.step,
        "attempt": found.attempt,
        "path": str(run.root / found.path),
        "sha256": found.sha256,
        "healthy": found.healthy,
    }


def _named(value: Any) -> Any:
    """Non-finite numbers as the journal's strings."""
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_named(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
