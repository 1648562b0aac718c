"""Whether something can be resumed, merged or exported; if not, the reason that its disabled button shows."""

from __future__ import annotations

from collections.abc import Sequence

from cockpit.one_stage.recipe import Input
from cockpit.one_stage.sources import CheckpointRow, Item, Source
from cockpit.runs.stage_view import StageView
from engines.artifacts.sharded import is_in_shards
from engines.words import RunStatus

WHY_SHARDS = "this checkpoint is in shards: cockpit consolidate writes its whole weights"


def why_no_resume(state: RunStatus, row: CheckpointRow | None, rows: Sequence[CheckpointRow] = ()) -> str:
    """Why the run cannot be resumed from this checkpoint, or from its end without one; empty if it can."""
    if state.is_live:
        return "the run is live: stop it first"
    if row is None:
        return "" if state.can_resume else "every stage is finished: choose a checkpoint to resume from"
    if row.removed:
        return "this checkpoint was removed (save_total_limit)"
    same_step = [other for other in rows if other.stage == row.stage and other.checkpoint.step == row.checkpoint.step]
    if row.superseded and any(not other.superseded and not other.removed for other in same_step):
        return "replaced by a later attempt's checkpoint at this step"
    return ""


def why_no_merge(state: RunStatus, source: Source | None, base: Input | None = None) -> str:
    """Why there is nothing to merge; empty if there is."""
    if state.is_live:
        return "the run is live: stop it first"
    if source is None:
        return "no adapter here: a finetune stage writes one"
    if base is None:
        return "the adapter does not name its base model"
    if base.path is not None and not base.path.exists():
        return f"its base model does not exist: {base.path}"
    return ""


def why_no_export(state: RunStatus, source: Source | None) -> str:
    """Why there is nothing to quantize; empty if there is."""
    if state.is_live:
        return "the run is live: stop it first"
    if source is not None and is_in_shards(source.path):
        return WHY_SHARDS
    return "" if source else "no model here: a pretrain or merge stage writes one"


def resume_words(stages: Sequence[StageView], item: Item | None, dependents: Sequence[str] = ()) -> str:
    """What resuming from the item does, for the dialog that asks first."""
    if item is None or item.row is None:
        return "Finished stages are kept; the others run, and training resumes from its newest complete checkpoint."
    step = item.row.checkpoint.step
    stage = next(stage for stage in stages if stage.name == item.stage)
    reached = stage.at_step or step
    lines = [f"{item.stage} resumes from step {step}."]
    if reached > step:
        lines.append(f"Steps {step + 1} to {reached} are repeated; nothing is deleted.")
    if dependents:
        lines.append(f"Stages that depend on it run again: {', '.join(dependents)}.")
    return "\n".join(lines)
