"""A run as one JSON object: `cockpit show --json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from cockpit.headless.hyperparameters import field_values
from cockpit.runs.health import Health
from cockpit.runs.stage_view import AttemptView, StageView
from cockpit.runs.state import RunState
from engines.events.results import Evaluated
from engines.events.steps import CheckpointCommitted
from engines.run_dir.paths import RunDir


def run_json(run: RunDir, facts: Mapping[str, Any], state: RunState, real: str, health: Health) -> dict[str, Any]:
    """The object of `show --json`; NaN and the infinities are strings, as in the journal.

    Args:
        run: the run's directory.
        facts: the content of `run.json`.
        state: the fold of the journal.
        real: the run's state after a check of its processes.
        health: how it is doing.
    """
    fields: dict[str, dict[str, Any]] = {}
    for item in field_values(run):
        fields.setdefault(item.stage, {})[item.field] = {"value": item.value, "origin": item.origin}
    value = {
        "id": run.id,
        "recipe": facts.get("recipe"),
        "state": real,
        "health": health.to_json(),
        "reason": state.reason,
        "parent": facts.get("parent"),
        "path": str(run.root),
        "note": run.read_note(),
        "started_t": state.started_t,
        "ended_t": state.ended_t,
        "busy_s": state.busy_s,
        "sets": facts.get("sets", []),
        "recipe_edited": run.recipe_was_edited(),
        "changes": [
            {"stage": c.stage, "field": c.field, "old": c.old, "new": c.new, "number": c.number} for c in state.changes
        ],
        "accepted_inputs": [msgspec.structs.asdict(item) for item in state.accepted_inputs],
        "stages": [_stage_json(run, stage, fields.get(stage.name, {})) for stage in state.stages],
        "unreadable": state.unreadable,
        "unknown": state.unknown,
        "missing": state.missing,
    }
    plain: dict[str, Any] = _finite(value)
    return plain


def _stage_json(run: RunDir, stage: StageView, fields: Mapping[str, Any]) -> dict[str, Any]:
    best = stage.best_checkpoint
    step = stage.last_step
    return {
        "name": stage.name,
        "kind": stage.kind,
        "state": stage.state,
        "reason": stage.reason,
        "attempts": [_attempt_json(attempt) for attempt in stage.attempts],
        "checkpoints": [_checkpoint_json(run, checkpoint, best=checkpoint is best) for checkpoint in stage.checkpoints],
        "best_checkpoint": None if best is None else best.path,
        "artifacts": [
            {"name": a.name, "kind": a.kind, "path": a.path, "bytes": a.bytes, "sha256": a.sha256}
            for a in stage.artifacts
        ],
        "metrics": dict(stage.metrics),
        "fields": dict(fields),
        "output_attempt": None if stage.standing is None else stage.standing.attempt,
        "busy_s": stage.busy_s,
        "cpu_s": stage.cpu_s,
        "step": stage.at_step,
        "total_steps": stage.total_steps,
        "loss": None if step is None else step.loss,
        "step_metrics": {} if step is None else dict(step.metrics),
        "evaluation": _evaluation_json(stage.evaluations[-1]) if stage.evaluations else None,
        "started_t": stage.started_t,
        "ended_t": stage.ended_t,
    }


def _evaluation_json(evaluation: Evaluated) -> dict[str, Any]:
    names = ("step", "loss", "perplexity", "tokens", "protocol")
    return {**{name: getattr(evaluation, name) for name in names}, "metrics": dict(evaluation.metrics)}


def _attempt_json(attempt: AttemptView) -> dict[str, Any]:
    origin = attempt.resumed_from
    return {
        "attempt": attempt.attempt,
        "reason": attempt.reason,
        "exit": attempt.exit,
        "detail": attempt.detail,
        "resumed_from": None
        if origin is None
        else {"attempt": origin.attempt, "step": origin.step, "sha256": origin.sha256},
        "inputs": None if attempt.inputs is None else [msgspec.structs.asdict(item) for item in attempt.inputs.inputs],
        "devices": None if attempt.devices is None else [msgspec.structs.asdict(d) for d in attempt.devices.devices],
        "processes": None
        if attempt.placed is None
        else {name: getattr(attempt.placed, name) for name in ("world_size", "strategy", "devices", "host", "run")},
        "adjusted": [msgspec.structs.asdict(change) for change in attempt.adjusted],
        "guards": [{"guard": g.guard, "step": g.step, "value": g.value, "limit": g.limit} for g in attempt.guards],
    }


def _checkpoint_json(run: RunDir, checkpoint: CheckpointCommitted, *, best: bool) -> dict[str, Any]:
    """A checkpoint. `exists`: its folder is there; what `prune` or the operator removed is not in the journal. `best`:
    it is the best one now; the journal marks every one that was the best when it was written."""
    names = ("attempt", "step", "path", "sha256", "bytes", "healthy", "loss")
    return {
        **{name: getattr(checkpoint, name) for name in names},
        "best": best,
        "exists": (run.root / checkpoint.path).is_dir(),
    }


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value
