"""What keeps a processor from waiting for a GPU, and a GPU's memory from copies that nothing needs.

Counted on the CPU, where each of these waits is a call of its own; no test here runs on CUDA.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engines.events.steps import Step
from engines.forward.joining import join
from engines.forward.label_loss import IGNORED, LOSS_TOKENS, OWN_KEYS, SCORED_AT, LabelLoss, counted
from engines.training import session as sessions
from engines.training.arguments import training_arguments
from engines.training.devices import peak_memory
from engines.training.loss import Example, one_sequence, pad_batch
from engines.training.precision import keep_input_types
from engines.training.reports import report
from recipes.stages.pretrain import PretrainStage
from tests.engines.training.attempts import context, of_kind, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, PRETRAIN

pytestmark = pytest.mark.torch

ROWS = [
    Example([1, 2, 3, 4, 5], [IGNORED, IGNORED, 3, 4, 5]),
    Example([6, 7, 8], [IGNORED, 7, 8]),
    Example([9, 10, 11, 12], [IGNORED, IGNORED, IGNORED, 12]),
]


@pytest.mark.parametrize("padding_free", [True, False])
def test_between_two_steps_no_position_is_searched_on_the_device(
    tmp_path: Path, model: Path, messages: Path, padding_free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {**FINETUNE, "max_steps": 2, "padding_free": padding_free}
    whole = context(tmp_path / "whole", stage, {"model": model, "data": messages})
    run_stage(whole)
    nonzero = torch.Tensor.nonzero

    def search(self: torch.Tensor, *more: Any) -> Any:
        import traceback

        places = {frame.name for frame in traceback.extract_stack()}
        assert "counted" in places or "training_step" not in places, "the collate function has searched already"
        return nonzero(self, *more)

    monkeypatch.setattr(torch.Tensor, "nonzero", search)
    again = context(tmp_path / "again", stage, {"model": model, "data": messages})
    assert run_stage(again) is not None
    assert trajectory(again, 1) == trajectory(whole, 1)


def test_what_a_batch_says_of_its_labels_is_what_its_labels_are() -> None:
    padded, flat = pad_batch(ROWS), one_sequence(ROWS)
    for labels in (padded.labels, flat["labels"]):
        known = counted(labels)
        assert known[LOSS_TOKENS] == 6
        assert known[SCORED_AT].tolist() == [at for at in range(labels.shape[1] - 1) if (labels[:, at + 1] >= 0).any()]
    assert flat[SCORED_AT].tolist() == counted(flat["labels"])[SCORED_AT].tolist()


def test_joined_micro_batches_know_their_labels_too() -> None:
    [empty, joined] = join([one_sequence(ROWS[:2]), one_sequence(ROWS[2:])], 100)
    assert (empty[LOSS_TOKENS], joined[LOSS_TOKENS]) == (0, 6)
    assert joined[SCORED_AT].tolist() == counted(joined["labels"])[SCORED_AT].tolist()


@pytest.mark.parametrize("known", [True, False])
def test_the_loss_of_padded_rows_needs_no_mask(known: bool, model: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    loss = LabelLoss(loaded)
    batch = pad_batch(ROWS, pad_id=77)
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    seen: list[Any] = []
    loaded.register_forward_pre_hook(lambda _m, _a, named: seen.append(named), with_kwargs=True)
    found = loss.each(loaded, {**given, **(counted(batch.labels) if known else {})})
    assert all(named.get("attention_mask") is None and not OWN_KEYS & named.keys() for named in seen)
    alone = [loss.each(loaded, one_sequence([row])) for row in ROWS]
    assert sorted(found.tolist()) == pytest.approx(sorted(torch.cat(alone).tolist()), rel=1e-6)


def test_batches_move_without_waiting_where_memory_is_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = PretrainStage.model_validate(PRETRAIN)
    here = training_arguments(stage, tmp_path, bf16=False)
    assert (here.dataloader_pin_memory, here.accelerator_config.non_blocking) == (False, False)
    made: dict[str, Any] = {}

    def note(self: Any, **fields: Any) -> None:
        made.update(fields)
        self.n_gpu = 1

    from transformers import TrainingArguments

    kind = type("Noted", (TrainingArguments,), {"__init__": note, "n_gpu": 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    training_arguments(stage, tmp_path, bf16=False, kind=kind)
    assert (made["dataloader_pin_memory"], made["accelerator_config"]) == (True, {"non_blocking": True})


@pytest.mark.parametrize(("dora", "casts"), [(False, False), (True, True)])
def test_adapters_take_bfloat16_inputs_as_they_are(
    tmp_path: Path, model: Path, messages: Path, dora: bool, casts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {**FINETUNE, "bf16": True, "lora_dropout": 0.0, "max_steps": 3, "use_dora": dora}
    trained: list[Any] = []
    keep = keep_input_types
    monkeypatch.setattr(sessions, "keep_input_types", trained.append)
    before = context(tmp_path / "before", stage, {"model": model, "data": messages})
    run_stage(before)
    monkeypatch.setattr(sessions, "keep_input_types", lambda model: (trained.append(model), keep(model)))
    after = context(tmp_path / "after", stage, {"model": model, "data": messages})
    run_stage(after)
    assert trajectory(after, 1) == trajectory(before, 1), "the products are the same, bit for bit"
    found = [{m.cast_input_dtype_enabled for m in t.modules() if hasattr(m, "lora_A")} for t in trained]
    assert found == [{True}, {casts}]


def test_the_peak_of_torch_s_allocator_is_in_each_step_on_a_gpu(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert peak_memory(torch.device("cpu")) == {}
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: 3 << 30)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _device: 4 << 30)
    monkeypatch.setattr(report, "peak_memory", lambda _device: peak_memory(torch.device("cuda")))
    ctx = context(tmp_path, {**PRETRAIN, "max_steps": 2}, {"data": tokens})
    result = run_stage(ctx)
    expected = {"cuda/peak_allocated_bytes": float(3 << 30), "cuda/peak_reserved_bytes": float(4 << 30)}
    assert [step.metrics for step in of_kind(ctx, Step)] == [expected, expected]
    assert result is not None
    assert result.metrics["peak_allocated_bytes"] == 3 << 30
