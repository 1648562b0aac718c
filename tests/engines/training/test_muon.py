"""Muon for the matrices of the layers and AdamW for the rest: by a loop written by hand, resumed, refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.events.steps import Step
from recipes.stages.finetune import FinetuneStage
from tests.engines.training import by_hand
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.test_methods import BY_HAND, FULL, check_resumes
from tests.engines.training.tiny import FINETUNE

pytestmark = pytest.mark.torch

MUON = {**FULL, **BY_HAND, "optim": "muon", "learning_rate": 1e-3, "max_grad_norm": 5.8}


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.thorough)])
def test_its_steps_are_those_of_a_loop_written_by_hand(steps: int, tmp_path: Path, model: Path, messages: Path) -> None:
    stage = {**MUON, "max_steps": steps}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(ctx)
    expected = list(by_hand.steps(model, by_hand.chatml_rows(model, messages), stage))
    others = list(
        by_hand.steps(model, by_hand.chatml_rows(model, messages), {**stage, "optim": "adamw_torch", "max_steps": 3})
    )
    assert abs(others[-1].loss - expected[2].loss) > 1e-3, "AdamW would be another training"
    for event, hand in zip(of_kind(ctx, Step), expected, strict=True):
        # Muon rounds each update to bfloat16, so a last bit of a gradient may become a 256th of an entry.
        assert event.loss == pytest.approx(hand.loss, rel=1e-4), event.step
        assert event.learning_rate == pytest.approx(hand.learning_rate, rel=1e-12), event.step


def test_a_resume_has_both_states_bit_for_bit(tmp_path: Path, model: Path, messages: Path) -> None:
    check_resumes({**MUON, "max_steps": 5, "save_steps": 3}, tmp_path, model, messages, steps=[3])


def test_an_adapter_has_no_matrices_for_it() -> None:
    with pytest.raises(ValueError, match=r'optim — muon is for the matrices of a model.*allowed.*output = "model"'):
        FinetuneStage.model_validate({**FINETUNE, "optim": "muon"})
