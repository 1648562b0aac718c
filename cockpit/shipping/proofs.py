"""Checks of what the export proved about a file, and of the trainings that its weights come from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cockpit.runs.stage_view import StageView
from cockpit.runs.state import EVAL, RunState
from cockpit.runs.verify import Link
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.shipping.check import Check, fact, figure, missing, unneeded
from cockpit.shipping.subject import PARITY_FILE, Subject
from recipes import quantities
from recipes.ship.limits import ShipLimits
from recipes.stages.registry import STAGE_KINDS


def proof_checks(subject: Subject, limits: ShipLimits) -> Iterator[Check]:
    """The export proved this very file: bytes, meaning and behaviour."""
    record, source = subject.record, f"{PARITY_FILE} of stage {subject.stage}"
    if record.get("sha256") is None:
        yield missing("proofs", f"{PARITY_FILE} has no proofs of {subject.name}", source=source)
        return
    entry: Mapping[str, Any] = next((one for one in subject.manifest["files"] if one["path"] == subject.name), {})
    problems = [] if record["sha256"] == entry.get("sha256") else ["the proofs are of a file with another SHA-256"]
    if record.get("verdict") != "accepted":
        problems.append(f"the export refused the file: {'; '.join(map(str, record.get('reasons') or ['no reason']))}")
    yield fact("proofs.file", problems, measured=str(record["sha256"]), limit="accepted", source=source)
    for name in ("bytes", "meaning"):
        yield _proof(name, record.get(name), source)
    yield _behaviour(record.get("behaviour"), source)
    if limits.mean_kl is not None:
        quality = record.get("quality")
        figures = {"mean_kl": quality["mean_kl"]} if isinstance(quality, Mapping) and "mean_kl" in quality else {}
        yield figure("quality.mean_kl", figures, "mean_kl", "<=", limits.mean_kl, source=source)


def _proof(name: str, table: Any, source: str) -> Check:
    if not isinstance(table, Mapping) or not isinstance(table.get("passed"), bool):
        return missing(f"proofs.{name}", f"the export has no proof of the file's {name}", source=source)
    findings = [] if table["passed"] else [str(item) for item in table.get("findings") or ["it failed"]]
    return fact(f"proofs.{name}", findings, limit="no differences", source=source)


def _behaviour(table: Any, source: str) -> Check:
    if not isinstance(table, Mapping) or not table.get("judged"):
        reason = "the export did not compare the file's answers with its model's (parity_positions = 0)"
        return missing("proofs.behaviour", reason, source=source)
    mean_kl = table.get("mean_kl")
    measured = f"mean KL {quantities.number(mean_kl)}" if isinstance(mean_kl, float) else ""
    limit = (table.get("limits") or {}).get("mean_kl")
    allowed = f"<= {quantities.number(limit)}" if isinstance(limit, float) else ""
    problems = [str(one) for one in table.get("problems") or []]
    return fact("proofs.behaviour", problems, measured=measured, limit=allowed, source=source)


def training_checks(
    state: RunState | None, recipe: RunRecipe | None, links: Sequence[Link], limits: ShipLimits
) -> Iterator[Check]:
    """No training of the run that the file comes from was overfitted at its end."""
    trained = _trained(state, recipe, links)
    if state is None or recipe is None or not trained:
        yield unneeded("overfitting", "no training of this run made the file")
        return
    for view in trained:
        name = f"overfitting.{view.name}"
        losses = [loss for loss in state.series(view.name, f"{EVAL}loss").y if math.isfinite(loss)]
        if getattr(recipe.stage(view.name), "load_best_model_at_end", False):
            yield unneeded(name, "the training keeps its best checkpoint")
        elif len(losses) < 2 or min(losses) <= 0:
            yield unneeded(name, "the training has fewer than two validation losses")
        else:
            rise = {"eval_loss_rise": losses[-1] / min(losses) - 1}
            check = figure(name, rise, "eval_loss_rise", "<=", limits.eval_loss_rise, source="the journal")
            ends = f"from {quantities.loss(min(losses))} to {quantities.loss(losses[-1])}"
            words = "" if check.passed else f"overfitted: the validation loss rose {ends}; {check.reason}"
            yield replace(check, reason=words)


def _trained(state: RunState | None, recipe: RunRecipe | None, links: Sequence[Link]) -> list[StageView]:
    """The trainings of the run among the ancestors of the file."""
    if state is None or recipe is None:
        return []
    kinds = {kind for kind, row in STAGE_KINDS.items() if row.trains}
    names = {link.name.partition(":")[2] for link in links if link.kind in kinds}
    known = {stage.name for stage in recipe.recipe.stage}
    return [view for view in state.stages if view.name in names & known and view.kind in kinds]
