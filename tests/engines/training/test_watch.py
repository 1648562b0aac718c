"""Guards over many steps: what they refuse, what they never refuse, and what a checkpoint keeps of them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.manifest import read_manifest
from engines.context import GuardTrippedError, StopRequested
from engines.events.steps import CheckpointCommitted, GuardTripped, Step
from engines.events.writers import Warned
from engines.guards import check_spike, spike_limit, window_steps
from engines.training.schedule import Schedule
from engines.training.watch import Watch
from recipes.stages.fields import ModelGuards
from tests.engines.training.attempts import committed_steps, context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import PRETRAIN

FACTOR = ModelGuards().loss_spike
rng = random.Random(7)


def _noise(spread: float, level: float = 2.0, steps: int = 400) -> list[float]:
    return [level + rng.gauss(0, spread) for _ in range(steps)]


CURVES = {
    "falling": [1.0 + 8 * 0.99**step + rng.gauss(0, 0.2) for step in range(600)],
    "heavy tails, as of batches of one short answer": [max(0.0, rng.gauss(1, 0.4)) * rng.choice([1, 1, 1, 4])
                                                        for _ in range(600)],
    "learnt by heart": [rng.expovariate(200) for _ in range(600)],
    "steps down at each epoch": [3.0 - 0.7 * (step // 100) + rng.gauss(0, 0.05) for step in range(400)],
    "constant": [0.7] * 200,
    "one odd batch in fifty": [2.0 + (9.0 if step % 50 == 49 else 0.0) for step in range(400)],
}  # fmt: skip


def _trips(losses: list[float]) -> list[int]:
    return [at for at in range(len(losses)) if check_spike(losses[:at], losses[at], FACTOR) is not None]


@pytest.mark.parametrize("name", CURVES)
def test_usual_curves_are_no_spike(name: str) -> None:
    assert _trips(CURVES[name]) == []


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.3])
def test_a_loss_that_rises_and_stays_is_a_spike_at_its_third_step(spread: float) -> None:
    height = 1.0 + 15 * 1.4826 * spread
    losses = _noise(spread, steps=200) + _noise(spread, 2.0 + height, 20)
    assert _trips(losses)[0] == 202


def test_the_limit_is_the_stated_formula() -> None:
    losses = [2.0 + 0.1 * (step % 5) for step in range(68)]
    reference = sorted(losses[:64])
    middle = (reference[31] + reference[32]) / 2
    spread = sorted(abs(loss - middle) for loss in reference)
    limit = spike_limit(losses, 4.0)
    assert limit == pytest.approx(middle + 4 * 1.4826 * (spread[31] + spread[32]) / 2)
    assert spike_limit(losses[:67], 4.0) is None
    assert spike_limit(losses, 0.0) is None


def test_a_window_is_a_share_of_all_steps_or_a_number_of_steps() -> None:
    assert [window_steps(value, 1001) for value in (0.1, 10_000.0, 1.0, 0.0001)] == [101, 10_000, 1, 1]


def _no_improvement(losses: list[float], window: float) -> list[int]:
    watch = Watch(ModelGuards(no_improvement=window))
    found = []
    for step, loss in enumerate(losses, 1):
        watch.note_step(step, loss, len(losses) + 1)
        if watch.after_step(step, len(losses) + 1) is not None:
            found.append(step)
    return found


def test_no_improvement_trips_after_its_window_and_not_while_the_loss_falls() -> None:
    falling = [5.0 - 0.01 * step for step in range(300)]
    assert _no_improvement(falling, 50) == []
    assert _no_improvement(falling + [falling[-1]] * 200, 50)[0] == 300 + 50 + 4, (
        "the mean of five steps still falls for four"
    )
    assert _no_improvement(falling + [falling[-1]] * 200, 0.5) == []


def test_no_improvement_of_evaluations_counts_from_the_best_evaluation() -> None:
    watch = Watch(ModelGuards(no_improvement=30, no_improvement_on="eval_loss"))
    found = []
    for step in range(1, 100):
        watch.note_step(step, 1.0, 100)
        if step % 10 == 0:
            watch.note_evaluation(step, 2.0 if step >= 20 else 3.0)
        if watch.after_step(step, 100) is not None:
            found.append(step)
    assert found == [50, 80], "a resume after the first has a whole window again"


def test_a_second_warm_up_rises_from_zero_once_and_then_follows_the_shape() -> None:
    schedule = Schedule("constant", warmup=0, total=100, min_rate=0.0)
    assert schedule.warm_up_again(10, 4, 2)
    assert not schedule.warm_up_again(12, 4, 2)
    assert [schedule(step) for step in (9, 10, 11, 12, 13, 14, 50)] == [1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.torch
def test_a_training_without_improvement_saves_and_ends_with_the_reason(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "learning_rate": 1e-30, "max_steps": 8, "save_steps": 100, "attention_dropout": 0.0}
    stage |= {"guards": {"no_improvement": 3}, "num_train_epochs": 9}
    ctx = context(tmp_path, {**stage, "num_train_epochs": 9.0}, {"data": tokens})
    with pytest.raises(GuardTrippedError, match="no_improvement at step") as ended:
        _run(ctx)
    (trip,) = of_kind(ctx, GuardTripped)
    assert (trip.guard, trip.limit) == ("no_improvement", 3)
    assert committed_steps(ctx, 1) == [trip.step]
    assert f"checkpoint step-{trip.step} is saved" in str(ended.value)


def _run(ctx: Any) -> None:
    from engines.pretrain.stage import run

    run(ctx)


@pytest.mark.torch
def test_a_training_whose_time_is_over_saves_and_stops_and_a_resume_continues_it_exactly(
    tmp_path: Path, tokens: Path
) -> None:
    whole = context(tmp_path / "whole", PRETRAIN, {"data": tokens})
    run_stage(whole)
    stage = {**PRETRAIN, "guards": {"wall_clock_s": 1e-9}}
    ctx = context(tmp_path / "tried", stage, {"data": tokens})
    with pytest.raises(StopRequested, match=r"wall_clock.*checkpoint step-1 is saved"):
        _run(ctx)
    assert [trip.guard for trip in of_kind(ctx, GuardTripped)] == ["wall_clock"]
    resumed = context(tmp_path / "tried", PRETRAIN, {"data": tokens}, attempt=2, resume=resume_point(ctx, 1))
    run_stage(resumed)
    assert trajectory(resumed, 2) == trajectory(whole, 1, 1)


@pytest.mark.torch
def test_a_spike_is_refused_before_the_weights_have_it_and_checkpoints_of_its_begin_are_not_healthy(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training.steps.trainer import EngineTrainer

    before = EngineTrainer.compute_loss

    def risen(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = before(self, *args, **kwargs)
        return loss + (3.0 if self.state.global_step >= 80 else 0.0)

    monkeypatch.setattr(EngineTrainer, "compute_loss", risen)
    stage = {**PRETRAIN, "max_steps": 100, "save_steps": 27, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}
    stage |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    ctx = context(tmp_path, stage, {"data": tokens})
    with pytest.raises(GuardTrippedError, match="loss_spike at step 83"):
        _run(ctx)
    assert [(event.step, event.healthy) for event in of_kind(ctx, CheckpointCommitted)] == [
        (27, True), (54, True), (81, False),
    ]  # fmt: skip
    kept = read_manifest(resume_point(ctx, 54).path)["position"]["guard_losses"]
    assert kept == [event.loss for event in of_kind(ctx, Step)][:54]


@pytest.mark.torch
def test_after_two_tripped_guards_the_rate_rises_again_and_a_resume_keeps_that(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "lr_scheduler_type": "constant", "warmup_steps": 0.0, "retry": {"warmup_steps": 4.0}}
    first = context(tmp_path, stage, {"data": tokens})
    run_stage(first)
    second = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(first, 3))
    second.guard_trips = 2
    run_stage(second)
    assert [event.learning_rate for event in of_kind(second, Step, 2)] == [
        pytest.approx(3e-3 * share) for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert any("rises from zero again over 4 steps" in event.message for event in of_kind(second, Warned))
    third = context(tmp_path, stage, {"data": tokens}, attempt=3, resume=resume_point(second, 6))
    third.guard_trips = 2
    run_stage(third)
    assert trajectory(third, 3) == trajectory(second, 2, 6)
