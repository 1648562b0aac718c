"""Several rows in a sequence, and rows of similar lengths together: whole rows, the same loss, exact resumes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from engines.events.attempts import Phase
from engines.events.results import Evaluated
from engines.events.steps import Step
from engines.forward.order import grouped_by_length
from engines.forward.packing import packs_of
from engines.look.lengths import tokens_read
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneStage
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, weights_sha256, write_messages

pytestmark = pytest.mark.torch

PACKED = {**FINETUNE, "packing": True, "max_length": 100, "gradient_accumulation_steps": 2, "save_steps": 1}
GROUPED = {**FINETUNE, "train_sampling_strategy": "group_by_length", "save_steps": 1}


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_in_exactly_one_sequence_and_none_overflows(seed: int) -> None:
    draw = random.Random(seed)
    lengths = [draw.randint(1, 64) for _ in range(200)]
    packs = packs_of(lengths, 64)
    assert sorted(row for pack in packs for row in pack) == list(range(200))
    assert max(sum(lengths[row] for row in pack) for pack in packs) <= 64
    assert len(packs) <= 1.1 * sum(lengths) / 64 + 1
    with pytest.raises(ValueError, match="does not fit"):
        packs_of([65], 64)


def test_rows_of_similar_lengths_come_together_in_another_order_each_epoch() -> None:
    draw = random.Random(1)
    lengths = [draw.randint(1, 500) for _ in range(160)]
    orders = [grouped_by_length(lengths, 4, seed=5, epoch=epoch) for epoch in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    assert all(sorted(order) == list(range(160)) for order in orders)
    assert lengths[orders[0][0]] == max(lengths)

    def padding(order: list[int]) -> int:
        windows = [[lengths[row] for row in order[at : at + 4]] for at in range(0, 160, 4)]
        return sum(max(window) * 4 - sum(window) for window in windows)

    assert padding(orders[0]) < padding(list(range(160))) / 4


@pytest.mark.parametrize("stage", [PACKED, GROUPED], ids=["packed", "grouped"])
def test_a_resume_continues_exactly_in_the_middle_of_an_epoch(
    stage: dict[str, Any], tmp_path: Path, model: Path, messages: Path
) -> None:
    inputs = {"model": model, "data": messages}
    whole = context(tmp_path, stage, inputs)
    assert run_stage(whole) is not None
    for attempt, step in enumerate((1, 3, 6), start=2):
        again = context(tmp_path, stage, inputs, attempt=attempt, resume=resume_point(whole, step))
        assert run_stage(again) is not None
        assert trajectory(again, attempt) == trajectory(whole, 1, after=step)
        assert weights_sha256(again.out) == weights_sha256(whole.out)


def test_a_packed_epoch_has_the_tokens_and_the_loss_of_its_rows(tmp_path: Path, model: Path, messages: Path) -> None:
    """With a rate of nothing, the mean over the labels of one epoch is that of the base model."""
    frozen = {"learning_rate": 1e-30, "lora_dropout": 0.0, "max_steps": None, "num_train_epochs": 1.0}
    seen = []
    for name, stage in (("rows", FINETUNE), ("packed", PACKED)):
        ctx = context(tmp_path / name, {**stage, **frozen, "max_length": 100}, {"model": model, "data": messages})
        result = run_stage(ctx)
        assert result is not None
        steps = of_kind(ctx, Step)
        total = sum((step.loss or 0.0) * (step.loss_tokens - before) for step, before in _with_before(steps))
        seen.append(
            (steps[-1].tokens, steps[-1].loss_tokens, result.metrics["examples"], total / steps[-1].loss_tokens)
        )
        if name == "packed":
            assert len(steps) < len(of_kind(context(tmp_path / "rows", FINETUNE, {}), Step))
            assert any("packed 13 rows into" in phase.name for phase in of_kind(ctx, Phase))
    assert seen[0][:3] == seen[1][:3]
    assert seen[0][3] == pytest.approx(seen[1][3], rel=1e-6)


def test_a_validation_row_beyond_the_models_window_is_not_attended_whole(tmp_path: Path, model: Path) -> None:
    """Rows of the training fit into the window, so only the validation rows forbid one sequence."""
    import json

    import torch
    from transformers import AutoModelForCausalLM

    from tests.engines.training.by_hand import chatml_rows

    windowed = tmp_path / "model"
    shutil.copytree(model, windowed)
    config = json.loads((model / "config.json").read_text())
    config |= {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 33}
    (windowed / "config.json").write_text(json.dumps(config))
    data = tmp_path / "data"
    data.mkdir()
    for split, letters in (("train", 2), ("val", 40)):
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "abcdefgh" * (letters // 2)}]
        (data / f"{split}.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    stage = {**FINETUNE, "max_length": 256, "max_steps": 1, "eval_steps": 1, "learning_rate": 1e-30}
    ctx = context(tmp_path, stage, {"model": windowed, "data": data})
    assert run_stage(ctx) is not None
    (data / "train.jsonl").write_text((data / "val.jsonl").read_text())
    [row] = chatml_rows(windowed, data)
    assert len(row.ids) > 150
    base: Any = AutoModelForCausalLM.from_pretrained(windowed, attn_implementation="eager")
    with torch.no_grad():
        logits = base(input_ids=torch.tensor([row.ids])).logits[0, :-1]
    expected = float(torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:])))
    [found] = of_kind(ctx, Evaluated)
    assert found.loss == pytest.approx(expected, rel=1e-5)


def _with_before(steps: list[Step]) -> list[tuple[Step, int]]:
    return list(zip(steps, [0, *(step.loss_tokens for step in steps)], strict=False))


def test_a_sequence_shorter_than_the_longest_row_is_refused(tmp_path: Path, model: Path) -> None:
    messages = write_messages(tmp_path / "messages", rows=9, val=0)
    ctx = context(tmp_path, {**PACKED, "max_length": 29}, {"model": model, "data": messages})
    with pytest.raises(
        OperatorError, match=r"packing — the longest row has .* tokens, a packed sequence has max_length = 29"
    ):
        run_stage(ctx)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_the_plan_counts_the_tokens_that_the_engine_reads(
    strategy: str, tmp_path: Path, model: Path, messages: Path
) -> None:
    stage = {**FINETUNE, "train_sampling_strategy": strategy, "max_steps": 6, "learning_rate": 1e-30}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    lengths: list[int] = []
    from engines.finetune import stage as finetune

    build = finetune._order

    def noted(given: Any, dataset: Any) -> Any:
        lengths.extend(dataset.lengths)
        return build(given, dataset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "_order", noted)
        run_stage(ctx)
    planned = tokens_read(FinetuneStage.model_validate(stage), lengths, 6)
    assert planned == of_kind(ctx, Step)[-1].tokens
