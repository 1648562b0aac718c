"""The gates of a stage: conditions on its metrics that must pass before its output may be used."""

from __future__ import annotations

from collections.abc import Mapping

from engines.context import StageContext
from engines.events.results import GateChecked
from engines.words import GateResult
from recipes import quantities
from recipes.stages.fields import StageFields


def check_gates(ctx: StageContext[StageFields], metrics: Mapping[str, float | None]) -> str:
    """Check every gate and write the result to the journal; returns the failed gates as text, or the empty string."""
    refused = []
    for gate in ctx.stage.gate:
        value = metrics.get(gate.metric)
        met = None if value is None else holds(value, gate.op, gate.value)
        ctx.emit(
            GateChecked(
                stage=ctx.stage_name,
                metric=gate.metric,
                op=gate.op,
                limit=gate.value,
                value=value,
                result=GateResult.NOT_MEASURED if met is None else GateResult.PASS if met else GateResult.FAIL,
                stretch=gate.stretch,
                stretch_met=None if value is None or gate.stretch is None else holds(value, gate.op, gate.stretch),
            )
        )
        if not met:
            shown = "not measured" if value is None else quantities.number(value, 6)
            refused.append(f"{gate.metric} {gate.op} {quantities.exact(gate.value)} (got {shown})")
    return "; ".join(refused)


def holds(value: float, op: str, limit: float) -> bool:
    """Whether `value op limit` is true; false for a NaN."""
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[op]
