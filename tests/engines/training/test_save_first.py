"""A step's checkpoint is written before its evaluation, and an evaluation that does not fit into memory is made
smaller."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.checkpoints import scan_attempt
from engines.artifacts.manifest import read_manifest
from engines.context import StopRequested
from engines.events.results import Evaluated
from engines.events.steps import CheckpointCommitted
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from engines.training import evaluations
from engines.training.loss import token_weighted_loss
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, PRETRAIN, weights_sha256

pytestmark = pytest.mark.torch

BOTH = {"eval_steps": 2, "save_steps": 2, "load_best_model_at_end": True}
EXHAUSTED = "CUDA out of memory. Tried to allocate 20.00 GiB"


class Ends:
    """Ends an evaluation of one step, once, as a stop or a kill would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        self.step, self.calls = step, 0

        def measured(*args: Any, **more: Any) -> Any:
            self.calls += 1
            if self.calls == step // BOTH["eval_steps"]:
                raise StopRequested("within the evaluation")
            return token_weighted_loss(*args, **more)

        monkeypatch.setattr(evaluations, "token_weighted_loss", measured)


def order(ctx: Any, step: int, attempt: int = 1) -> list[str]:
    """What happened at a step, in order."""
    kinds = CheckpointCommitted | Evaluated
    found = [e for e in ctx.events() if isinstance(e, kinds) and e.step == step and e.attempt == attempt]
    return ["evaluated" if isinstance(e, Evaluated) else f"saved {e.loss is not None}" for e in found]


@pytest.mark.parametrize("async_save", [True, False])
def test_a_checkpoint_is_complete_before_its_evaluation_and_has_the_loss_afterwards(
    tmp_path: Path, tokens: Path, async_save: bool
) -> None:
    """One that is written beside the training may be complete within the evaluation."""
    ctx = context(tmp_path, {**PRETRAIN, **BOTH, "async_save": async_save}, {"data": tokens})
    run_stage(ctx)
    assert order(ctx, 4)[-1] == "saved True"
    assert sorted(order(ctx, 4)) == ["evaluated", "saved False", "saved True"]
    assert async_save or order(ctx, 4)[0] == "saved False"
    first, second = (e for e in of_kind(ctx, CheckpointCommitted) if e.step == 4)
    assert (first.evaluated, second.evaluated) == (False, True)
    assert first.sha256 != second.sha256
    [checkpoint] = [c for c in scan_attempt(ctx.checkpoints)[0] if c.step == 4]
    assert (checkpoint.sha256, checkpoint.eval_loss, checkpoint.best) == (second.sha256, second.loss, second.best)
    assert "evaluation_due" not in checkpoint.position


def test_a_run_shows_a_checkpoint_once_with_its_loss(tmp_path: Path, tokens: Path) -> None:
    from cockpit.runs.state import RunState

    ctx = context(tmp_path, {**PRETRAIN, **BOTH}, {"data": tokens})
    run_stage(ctx)
    state = RunState()
    state.apply_all(ctx.events())
    shown = state.stages[0].checkpoints
    assert [c.step for c in shown] == [2, 4, 6, 8]
    assert all(c.loss is not None for c in shown)
    assert [c.sha256 for c in shown] == [c.sha256 for c in scan_attempt(ctx.checkpoints)[0]]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_training_that_ended_within_an_evaluation_loses_no_step_and_continues_exactly(
    tmp_path: Path, tokens: Path, model: Path, messages: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, inputs = (
        (PRETRAIN, {"data": tokens}) if kind == "pretrain" else (FINETUNE, {"model": model, "data": messages})
    )
    stage = {**base, **BOTH}
    whole = context(tmp_path / "whole", stage, inputs)
    expected = run_stage(whole)
    Ends(monkeypatch, 4)
    ended = context(tmp_path / "ended", stage, inputs)
    assert run_stage(ended) is None
    assert order(ended, 4) == ["saved False"], "step 4 is kept"
    again = context(tmp_path / "ended", stage, inputs, attempt=2, resume=resume_point(ended, 4))
    found = run_stage(again)
    assert trajectory(again, 2) == trajectory(whole, 1, after=4)
    assert weights_sha256(again.out) == weights_sha256(whole.out)
    assert expected is not None
    assert found is not None
    assert found.metrics["eval_loss"] == expected.metrics["eval_loss"]
    assert [e.step for e in of_kind(again, Evaluated, 2)] == [4, 6, 8]
    known = {c.step: c.eval_loss for c in scan_attempt(whole.checkpoints)[0]}
    assert {c.step: c.eval_loss for c in scan_attempt(again.checkpoints)[0]} == {
        step: known[step] for step in (4, 6, 8)
    }


def test_an_owed_evaluation_counts_for_early_stopping(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {**PRETRAIN, **BOTH, "early_stopping_patience": 1, "early_stopping_threshold": 100.0}
    Ends(monkeypatch, 4)
    ended = context(tmp_path, stage, {"data": tokens})
    assert run_stage(ended) is None
    again = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(ended, 4))
    result = run_stage(again)
    assert result is not None
    assert result.metrics["steps"] == 4, "the second evaluation without an improvement ends the training"
    assert result.metrics["output_step"] == 4


def test_without_evaluations_a_resume_owes_none(tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way out of an evaluation that never fits."""
    Ends(monkeypatch, 4)
    ended = context(tmp_path, {**PRETRAIN, "eval_steps": 2, "save_steps": 2}, {"data": tokens})
    run_stage(ended)
    stage = {**PRETRAIN, "eval_strategy": "no", "save_steps": 2}
    again = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(ended, 4))
    assert run_stage(again) is not None
    assert of_kind(again, Evaluated, 2) == []


def small_memory(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[int]:
    """A batch of more rows than that does not fit; returns the numbers of rows of those that did."""
    from engines.forward.label_loss import LabelLoss

    each, fitted = LabelLoss.each, list[int]()

    def limited(self: Any, model: Any, batch: Any) -> Any:
        present = len(batch["lengths"]) if "lengths" in batch else len(batch["input_ids"])
        if present > rows:
            raise RuntimeError(EXHAUSTED)
        fitted.append(present)
        return each(self, model, batch)

    monkeypatch.setattr(LabelLoss, "each", limited)
    return fitted


@pytest.mark.parametrize("padding_free", [True, False])
def test_an_evaluation_that_does_not_fit_halves_its_batch_and_has_the_same_loss(
    tmp_path: Path, model: Path, messages: Path, padding_free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {**FINETUNE, "max_steps": 2, "eval_steps": 2, "padding_free": padding_free}
    inputs = {"model": model, "data": messages}
    whole = context(tmp_path / "whole", stage, inputs)
    run_stage(whole)
    fitted = small_memory(monkeypatch, 1)
    small = context(tmp_path / "small", stage, inputs)
    run_stage(small)
    assert fitted == [1, 1, 1, 1]
    [before], [after] = of_kind(whole, Evaluated), of_kind(small, Evaluated)
    assert after.loss == pytest.approx(before.loss, rel=1e-6)
    assert after.tokens == before.tokens
    warnings = [w.message for w in of_kind(small, Warned)]
    assert [w for w in warnings if "with 2 rows at once" in w]


def test_a_row_that_does_not_fit_ends_the_attempt_after_its_steps_are_saved(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_memory(monkeypatch, 0)
    ctx = context(tmp_path, {**PRETRAIN, "eval_steps": 2, "save_steps": 100}, {"data": tokens})
    with pytest.raises(RuntimeError, match="out of memory"):
        run_stage(ctx)
    saved = ctx.checkpoints / "step-2"
    assert read_manifest(saved)["position"]["evaluation_due"] is True
    assert RunDir(ctx.run_root).relative(saved) == [e.path for e in of_kind(ctx, CheckpointCommitted)][-1]


def test_amending_keeps_the_files_and_their_list(tmp_path: Path) -> None:
    from engines.artifacts.manifest import (
        ManifestError,
        amend_manifest,
        manifest_sha256,
        verify_manifest,
        write_manifest,
    )

    (tmp_path / "a").write_text("1")
    before = write_manifest(tmp_path, step=3, metrics={})
    after = amend_manifest(tmp_path, metrics={"eval_loss": float("nan")})
    assert after == manifest_sha256(tmp_path) != before
    assert verify_manifest(tmp_path) == []
    body = json.loads((tmp_path / "manifest.json").read_text())
    assert (body["step"], body["metrics"]) == (3, {"eval_loss": "NaN"})
    with pytest.raises(ManifestError, match="reserved"):
        amend_manifest(tmp_path, files=[])
