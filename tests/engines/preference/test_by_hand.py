"""A training on preferences computes what the papers say: each step compared with a loop that is written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engines.events.steps import Step
from recipes.stages.dpo import LOSS_TYPES
from tests.engines.preference import by_hand
from tests.engines.preference.pairs import DPO, WHOLE, write_pairs
from tests.engines.training import tiny
from tests.engines.training.attempts import context, of_kind, run_stage

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def compared(tmp_path: Path, model: Path, pairs: Path, stage: dict[str, Any], steps: int) -> list[tuple[Step, Any]]:
    """Steps beside those of the loop by hand, which computes in float64: a preference is a small difference of log
    probabilities, so rounding to float32 in the loop would be as large as in the engine."""
    stage = {**stage, "max_steps": steps}
    ctx = context(tmp_path, stage, {"model": model, "data": pairs})
    assert run_stage(ctx) is not None
    found = of_kind(ctx, Step)
    assert len(found) == steps
    return list(zip(found, by_hand.steps(model, pairs, stage, steps, torch.float64), strict=True))


DROPOUT: dict[str, Any] = {"lora_dropout": 0.1, "disable_dropout": False}


@pytest.mark.parametrize(
    ("more", "steps"),
    [
        pytest.param(DROPOUT, 5, id="dropout"),
        pytest.param(DROPOUT, 20, id="dropout-20", marks=pytest.mark.thorough),
        pytest.param({}, 20, id="none-20", marks=pytest.mark.thorough),
        pytest.param({"padding_free": False}, 20, id="padded-20", marks=pytest.mark.thorough),
    ],
)
def test_losses_rates_norms_and_rewards_are_those_of_a_loop_by_hand(
    tmp_path: Path, model: Path, pairs: Path, more: dict[str, Any], steps: int
) -> None:
    ragged = {"gradient_accumulation_steps": 3, "warmup_steps": 3.0, "max_grad_norm": 0.4, "weight_decay": 0.1}
    stage = {**DPO, **ragged, **more, "learning_rate": 1e-3}
    both = compared(tmp_path, model, pairs, stage, steps)
    norms = [step.grad_norm or 0.0 for step, _ in both]
    assert min(norms) < 0.4 < max(norms), "some steps are clipped, and some are not"
    for step, hand in both:
        assert step.loss == pytest.approx(hand.loss, rel=1e-6), step.step
        assert step.learning_rate == pytest.approx(hand.learning_rate, rel=1e-12)
        assert step.grad_norm == pytest.approx(hand.grad_norm, rel=1e-6), step.step
        scale = 0.1 * abs(step.metrics["logps/chosen"] or 0)  # a reward is a small difference of log probabilities
        assert step.metrics["rewards/chosen"] == pytest.approx(hand.chosen, rel=1e-6, abs=1e-6 * scale), step.step
        assert step.metrics["rewards/rejected"] == pytest.approx(hand.rejected, rel=1e-6, abs=1e-6 * scale), step.step


@pytest.mark.parametrize("steps", [3, pytest.param(20, marks=pytest.mark.thorough)])
def test_all_weights_are_trained_as_by_a_loop_by_hand_against_a_copy_of_the_model(
    tmp_path: Path, model: Path, pairs: Path, steps: int
) -> None:
    ragged = {"gradient_accumulation_steps": 3, "warmup_steps": 1.0, "max_grad_norm": 4.0, "weight_decay": 0.1}
    stage = {**WHOLE, **ragged, "learning_rate": 1e-4}
    both = compared(tmp_path, model, pairs, stage, steps)
    assert both[0][0].loss == pytest.approx(0.6931471805, rel=1e-6), "no reward before the first step"
    for step, hand in both:
        assert step.loss == pytest.approx(hand.loss, rel=1e-6), step.step
        assert step.learning_rate == pytest.approx(hand.learning_rate, rel=1e-12)
        assert step.grad_norm == pytest.approx(hand.grad_norm, rel=1e-6), step.step


QUICK = ("ipo",)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.thorough) for kind in LOSS_TYPES]
)
def test_each_loss_is_the_one_of_its_paper(tmp_path: Path, model: Path, pairs: Path, kind: str) -> None:
    smooth = {"label_smoothing": 0.1} if kind in ("robust", "exo_pair", "aot", "aot_unpaired") else {}
    alone = {"per_device_train_batch_size": 1} if kind.startswith("aot") or kind == "sft" else {}
    # Adam divides gradients by their size, so a step turns the rounding of small ones into a share of the rate.
    # SPPO's squares have targets of 1 / 2 beta, by its paper far above the log ratios, which are exact to 4e-6.
    beta = 0.05 if kind == "sppo_hard" else 0.3
    stage = {**DPO, "beta": beta, "loss_type": kind, "padding_free": kind != "ipo", "learning_rate": 1e-3}
    for step, hand in compared(tmp_path, model, pairs, {**stage, **smooth, **alone}, 3):
        assert step.loss == pytest.approx(hand.loss, rel=1e-6), step.step
        assert step.grad_norm == pytest.approx(hand.grad_norm, rel=1e-6), step.step
