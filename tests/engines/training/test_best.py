"""Evaluation and saving by epoch, the best model at the end, and early stopping: exact, planned and resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.checkpoints import scan_attempt
from engines.events.results import Evaluated
from engines.events.steps import CheckpointCommitted, Step, StepsPlanned
from engines.events.writers import Warned
from engines.training.watch import EarlyStopping
from recipes.stages.pretrain import PretrainStage
from recipes.stages.steps import eval_every, planned_steps, save_every, times_due
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, PRETRAIN

EPOCHS = {"max_steps": None, "num_train_epochs": 2.5, "eval_strategy": "epoch", "save_strategy": "epoch"}


def _steps(ctx: Any, kind: type[Any]) -> list[int]:
    """Each once: a checkpoint is committed, and again with the loss of its evaluation."""
    return list(dict.fromkeys(event.step for event in of_kind(ctx, kind)))


@pytest.mark.torch
def test_evaluations_and_checkpoints_of_each_epoch_are_those_that_a_plan_counts(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, {**PRETRAIN, **EPOCHS}, {"data": tokens})
    result = run_stage(ctx)
    assert result is not None
    examples, stage = int(result.metrics["examples"]), ctx.stage
    last = planned_steps(stage, examples)
    assert _steps(ctx, Evaluated) == _steps(ctx, CheckpointCommitted) == [6, 12, last]
    assert [event.epoch for event in of_kind(ctx, Step) if event.step in {6, 12}] == [1.0, 2.0]
    assert times_due(eval_every(stage, examples), last) == times_due(save_every(stage, examples), last) == 3


@pytest.mark.torch
def test_without_a_strategy_the_only_checkpoint_is_at_the_end(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "save_strategy": "no", "eval_strategy": "no", "eval_steps": 2}
    ctx = context(tmp_path, stage, {"data": tokens})
    run_stage(ctx)
    assert (_steps(ctx, CheckpointCommitted), _steps(ctx, Evaluated)) == ([8], [])


class _Losses:
    """Held-out losses by step, in place of those of a model that is too small to overfit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
        from engines.training import evaluations, session

        self.now: Any
        begin = session.Session.__init__

        def remember(made: Any, *args: Any) -> None:
            begin(made, *args)
            self.now = made

        monkeypatch.setattr(session.Session, "__init__", remember)

        def loss(*_args: Any, **_more: Any) -> tuple[float, int]:
            return losses[self.now.step], 5

        monkeypatch.setattr(evaluations, "token_weighted_loss", loss)


LOSSES = {2: 3.0, 4: 2.0, 6: 2.5, 8: 2.4, 10: 2.1, 12: 1.0}
BEST = {"eval_steps": 2, "save_steps": 2, "save_total_limit": 1, "load_best_model_at_end": True}


@pytest.mark.torch
@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_the_output_has_the_weights_of_the_best_checkpoint_and_says_its_step(
    tmp_path: Path, tokens: Path, model: Path, messages: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Losses(monkeypatch, LOSSES)
    base, inputs = (
        (PRETRAIN, {"data": tokens}) if kind == "pretrain" else (FINETUNE, {"model": model, "data": messages})
    )
    ctx = context(tmp_path, {**base, **BEST}, inputs)
    result = run_stage(ctx)
    assert result is not None
    assert (result.metrics["output_step"], result.metrics["steps"], result.metrics["eval_loss"]) == (4, 8, 2.0)
    name = "model.safetensors" if kind == "pretrain" else "adapter_model.safetensors"
    best, last = (resume_point(ctx, step).path / name for step in (4, 8))
    assert (ctx.out / name).read_bytes() == best.read_bytes() != last.read_bytes()
    again = context(tmp_path, {**base, **BEST}, inputs, attempt=2, resume=resume_point(ctx, 8))
    repeated = run_stage(again)
    assert repeated is not None
    assert repeated.metrics["output_step"] == 4
    assert (again.out / name).read_bytes() == best.read_bytes()


@pytest.mark.torch
def test_an_end_by_the_threshold_does_not_say_that_the_best_evaluation_has_not_improved(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Losses(monkeypatch, {2: 3.0, 4: 2.9})
    stage = {**PRETRAIN, **BEST, "max_steps": 20, "early_stopping_patience": 1, "early_stopping_threshold": 0.5}
    ctx = context(tmp_path, stage, {"data": tokens})
    run_stage(ctx)
    [said] = [event.message for event in of_kind(ctx, Warned) if "early stopping" in event.message]
    assert "early stopping at step 4: in 1 evaluation(s) in a row, eval_loss has not improved by more than 0.5" in said
    assert "the best one is 2.900, of step 4" in said


@pytest.mark.torch
def test_early_stopping_ends_the_training_there_and_a_resume_ends_at_the_same_step(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Losses(monkeypatch, LOSSES)
    stage = {**PRETRAIN, **BEST, "save_total_limit": 10, "max_steps": 20, "early_stopping_patience": 3}
    ctx = context(tmp_path, stage, {"data": tokens})
    result = run_stage(ctx)
    assert result is not None
    assert (result.metrics["steps"], result.metrics["output_step"]) == (10, 4)
    assert [event.total_steps for event in of_kind(ctx, StepsPlanned)] == [20, 10]
    assert any("early stopping at step 10" in event.message for event in of_kind(ctx, Warned))
    assert [checkpoint.step for checkpoint in scan_attempt(ctx.checkpoints)[0]] == [2, 4, 6, 8, 10]
    resumed = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(ctx, 6))
    repeated = run_stage(resumed)
    assert repeated is not None
    assert (repeated.metrics["steps"], repeated.metrics["output_step"]) == (10, 4)
    assert trajectory(resumed, 2) == trajectory(ctx, 1, 6)


def test_an_improvement_must_exceed_the_threshold_and_the_best_is_the_lowest() -> None:
    stopping = EarlyStopping(2, 0.5)
    assert [stopping.note(step, loss) for step, loss in enumerate((3.0, 2.8, 2.2, 1.9, 1.8, 1.7))] == [
        False, False, False, False, True, True,
    ]  # fmt: skip
    assert (stopping.best, stopping.best_step) == (1.7, 5)


def test_of_a_metric_that_should_rise_the_best_is_the_highest() -> None:
    stopping = EarlyStopping(2, 0.5, rises=True)
    assert [stopping.note(step, value) for step, value in enumerate((1.0, 2.0, 2.2, 2.1))] == [
        False,
        False,
        False,
        True,
    ]
    assert (stopping.best, stopping.best_step) == (2.2, 2)


@pytest.mark.torch
def test_the_best_checkpoint_is_the_one_by_the_metric_that_the_recipe_names(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Losses(monkeypatch, LOSSES)
    fields = {"metric_for_best_model": "eval_perplexity", "greater_is_better": True}
    ctx = context(tmp_path, {**PRETRAIN, **BEST, **fields}, {"data": tokens})
    result = run_stage(ctx)
    assert result is not None
    assert (result.metrics["output_step"], result.metrics["eval_loss"]) == (2, 3.0)
    assert sorted(path.name for path in ctx.checkpoints.iterdir()) == ["step-2", "step-8"]
    assert [event.best for event in of_kind(ctx, CheckpointCommitted) if event.evaluated] == [True, False, False, False]


def test_a_metric_that_no_evaluation_measures_is_refused() -> None:
    with pytest.raises(ValueError, match="an evaluation does not measure it"):
        PretrainStage.model_validate({**PRETRAIN, "metric_for_best_model": "eval_accuracy"})


@pytest.mark.parametrize(
    "fields",
    [
        {"load_best_model_at_end": True},
        {"early_stopping_patience": 2},
        {"guards": {"no_improvement": 5, "no_improvement_on": "eval_loss"}},
        {"early_stopping_patience": 2, "eval_steps": 3, "eval_strategy": "no"},
        {"load_best_model_at_end": True, "eval_steps": 3, "save_steps": 4},
        {"load_best_model_at_end": True, "eval_steps": 3, "save_steps": 3, "save_strategy": "epoch"},
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "no"},
    ],
)
def test_what_needs_evaluations_that_do_not_exist_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"needs evaluations|needs an evaluation"):
        PretrainStage.model_validate({**PRETRAIN, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"load_best_model_at_end": True, "eval_steps": 3, "save_steps": 6, "early_stopping_patience": 1},
        {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"},
    ],
)
def test_what_has_its_evaluations_is_accepted(fields: dict[str, Any]) -> None:
    assert PretrainStage.model_validate({**PRETRAIN, **fields}).evaluates
