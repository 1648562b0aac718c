"""What a pretrained model writes is measured, so that a gate may judge it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.events.results import SampledText
from engines.judging.text_metrics import variety
from recipes.stages.gates import unreported
from recipes.stages.pretrain import SAMPLE_METRICS
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.tiny import PRETRAIN

pytestmark = pytest.mark.torch
GATE = [{"metric": "sample_repetition", "op": "<", "value": 0.5}]


def test_the_finished_models_samples_are_measured(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "max_steps": 2, "sample_steps": 2, "sample_prompts": ["def ", "for"], "gate": GATE}
    ctx = context(tmp_path, {**stage, "sample_max_new_tokens": 8}, {"data": tokens})
    result = run_stage(ctx)
    assert result is not None
    texts = [event.text for event in of_kind(ctx, SampledText)]
    assert len(texts) == 2
    # The last step's samples are those of the finished weights.
    assert {name: result.metrics[f"sample_{name}"] for name in variety(texts)} == variety(texts)
    assert 1 <= result.metrics["sample_tokens"] <= result.metrics["sample_tokens_p95"] <= 8
    assert 0 <= result.metrics["sample_ended"] <= 1
    assert set(SAMPLE_METRICS) >= {name for name in result.metrics if name.startswith("sample_")}


def test_a_gate_on_samples_needs_samples() -> None:
    stage = {**PRETRAIN, "gate": GATE}
    [(_, metric, _, hint)] = unreported("pretrain", stage)
    assert (metric, hint) == ("sample_repetition", "set sample_steps to a number of steps")
    assert unreported("pretrain", {**stage, "sample_steps": 5}) == []
