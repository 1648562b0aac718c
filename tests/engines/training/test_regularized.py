"""NEFTune and label smoothing: the noise of each row by its own length, and the loss by its formula."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from engines.events.results import Evaluated
from engines.events.steps import Step
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("rows", [None, (3, 9)], ids=["one row", "rows in one sequence"])
def test_each_row_has_the_noise_of_its_own_length_and_an_evaluation_has_none(rows: tuple[int, ...] | None) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from engines.forward.noise import noisy_embeddings
    from engines.forward.rows_attention import rows_in_sequence

    width, alpha = 64, 5.0
    shape = {"vocab_size": 9, "hidden_size": width, "intermediate_size": 8, "num_hidden_layers": 1}
    model: Any = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2)).train()
    ids = torch.zeros((1, 12), dtype=torch.long)
    embed = model.get_input_embeddings()
    plain = embed(ids).detach()
    with noisy_embeddings(model, alpha):
        if rows is None:
            noise = embed(ids) - plain
        else:
            with rows_in_sequence(rows):
                noise = embed(ids) - plain
        model.eval()
        assert torch.equal(embed(ids), plain)
    model.train()
    assert torch.equal(embed(ids), plain), "the hook is removed"
    start = 0
    for length in rows or (12,):
        most = float(noise.detach()[:, start : start + length].abs().max())
        limit = alpha / math.sqrt(length * width)
        assert 0.9 * limit < most <= limit * (1 + 1e-5)
        start += length


def test_with_smoothed_labels_the_loss_is_that_of_the_formula_and_evaluations_stay_comparable(
    tmp_path: Path, model: Path, messages: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from engines.training.steps import trainer

    batches: list[Any] = []
    inputs = {"model": model, "data": messages}
    base = {**FINETUNE, "max_steps": 1, "eval_steps": 1, "lora_dropout": 0.0, "output": "model"}
    stage = {key: value for key, value in base.items() if key not in ("r", "lora_alpha", "lora_dropout")}
    plain = context(tmp_path / "plain", stage, inputs)
    run_stage(plain)
    smooth = context(tmp_path / "smooth", {**stage, "label_smoothing_factor": 0.2}, inputs)
    with pytest.MonkeyPatch.context() as monkeypatch:
        step = trainer.EngineTrainer.training_step

        def note(self: Any, network: Any, given: dict[str, Any], *more: Any, **named: Any) -> Any:
            batches.append(dict(given))
            return step(self, network, given, *more, **named)

        monkeypatch.setattr(trainer.EngineTrainer, "training_step", note)
        run_stage(smooth)
    fresh: Any = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    total, count = 0.0, 0
    for batch in batches:
        start = 0
        for length in batch["lengths"]:
            ids, labels = (batch[name][:, start : start + length] for name in ("input_ids", "labels"))
            logs = fresh(input_ids=ids).logits[0, :-1].detach().float().log_softmax(-1)
            for position, label in enumerate(labels[0, 1:].tolist()):
                if label != -100:
                    total -= float(0.8 * logs[position, label] + 0.2 * logs[position].mean())
                    count += 1
            start += length
    assert of_kind(smooth, Step)[0].loss == pytest.approx(total / count, rel=1e-5)
    assert of_kind(smooth, Step)[0].loss != of_kind(plain, Step)[0].loss
    assert {event.protocol for event in of_kind(smooth, Evaluated)} == {e.protocol for e in of_kind(plain, Evaluated)}


LORA: dict[str, Any] = {
    **FINETUNE,
    "lora_dropout": 0.0,
    "gradient_accumulation_steps": 3,
    "warmup_steps": 3.0,
    "max_grad_norm": 0.7,
    "weight_decay": 0.1,
    "save_steps": 1000,
}
FULL: dict[str, Any] = {
    **{key: value for key, value in LORA.items() if key not in ("r", "lora_alpha", "lora_dropout")},
    "output": "model",
    "learning_rate": 1e-3,
}
STABLE = {"lr_scheduler_type": "warmup_stable_decay", "min_lr_rate": 0.1, "num_decay_steps": 2}
REGULARIZED: dict[str, dict[str, Any]] = {
    "noise": {**LORA, "neftune_noise_alpha": 5.0},
    "noise and dropout": {**LORA, "neftune_noise_alpha": 5.0, "lora_dropout": 0.1},
    "noise, all weights": {**FULL, "neftune_noise_alpha": 5.0},
    "smoothing": {**LORA, "label_smoothing_factor": 0.2},
    "smoothing, all weights": {**FULL, "label_smoothing_factor": 0.2},
    "both": {**LORA, "neftune_noise_alpha": 10.0, "label_smoothing_factor": 0.1, "lora_dropout": 0.1},
}
SHAPES: dict[str, dict[str, Any]] = {
    "linear": {"lr_scheduler_type": "linear"},
    "cosine": {"lr_scheduler_type": "cosine"},
    "cosine, least": {"lr_scheduler_type": "cosine_with_min_lr", "min_lr_rate": 0.1},
    "restarts": {"lr_scheduler_type": "cosine_with_restarts", "num_cycles": 3},
    "polynomial": {"lr_scheduler_type": "polynomial", "power": 2.0, "lr_end": 1e-5},
    "inverse_sqrt": {"lr_scheduler_type": "inverse_sqrt"},
    "constant": {"lr_scheduler_type": "constant", "warmup_steps": 0.0},
    "constant, warm-up": {"lr_scheduler_type": "constant_with_warmup"},
    **{f"stable, {fall}": {**STABLE, "decay_type": fall} for fall in ("linear", "cosine", "1-sqrt")},
}


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        pytest.param(REGULARIZED["both"], 5, id="both-5"),
        pytest.param({**LORA, **SHAPES["stable, 1-sqrt"]}, 5, id="stable, 1-sqrt-5"),
        *(pytest.param(REGULARIZED[name], 20, id=name, marks=pytest.mark.thorough) for name in REGULARIZED),
        *(pytest.param({**LORA, **SHAPES[name]}, 20, id=name, marks=pytest.mark.thorough) for name in SHAPES),
    ],
)
def test_losses_rates_and_norms_are_those_of_a_loop_by_hand(
    stage: dict[str, Any], steps: int, tmp_path: Path, model: Path, messages: Path
) -> None:
    from tests.engines.training import by_hand

    stage = {**stage, "max_steps": steps}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(ctx)
    events = of_kind(ctx, Step)
    assert len(events) == steps
    expected = by_hand.steps(model, by_hand.chatml_rows(model, messages), stage)
    for event, hand in zip(events, expected, strict=True):
        assert event.loss == pytest.approx(hand.loss, rel=1e-6), event.step
        assert event.grad_norm == pytest.approx(hand.grad_norm, rel=1e-6), event.step
        assert event.learning_rate == pytest.approx(hand.learning_rate, rel=1e-9, abs=1e-15), event.step


def test_every_shape_is_compared_with_that_of_transformers() -> None:
    from engines.training.schedule import SHAPES as KNOWN

    assert {fields["lr_scheduler_type"] for fields in SHAPES.values()} == set(KNOWN)


def test_noise_and_smoothing_resume_bit_for_bit(tmp_path: Path, model: Path, messages: Path) -> None:
    stage = {**FINETUNE, "max_steps": 4, "save_steps": 2, "neftune_noise_alpha": 5.0, "label_smoothing_factor": 0.1}
    inputs = {"model": model, "data": messages}
    whole = context(tmp_path, stage, inputs)
    run_stage(whole)
    again = context(tmp_path, stage, inputs, attempt=2, resume=resume_point(whole, 2))
    run_stage(again)
    assert trajectory(again, 2) == trajectory(whole, 1, after=2)


@pytest.mark.parametrize(
    ("optim", "name"),
    [
        ("adafactor", "Adafactor"),
        pytest.param("lion_8bit", "Lion", marks=pytest.mark.thorough),
        pytest.param("paged_lion_32bit", "Lion", marks=pytest.mark.thorough),
        pytest.param("paged_adamw_32bit", "AdamW", marks=pytest.mark.thorough),
        pytest.param("adamw_8bit", "AdamW", marks=pytest.mark.thorough),
    ],
)
def test_an_optimizer_is_the_one_that_is_named_and_resumes_bit_for_bit(
    optim: str, name: str, tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training.session import Session

    seen: list[str] = []
    run = Session.run

    def kept(self: Session) -> None:
        run(self)
        seen.append(type(getattr(self.trainer.optimizer, "optimizer", self.trainer.optimizer)).__name__)

    monkeypatch.setattr(Session, "run", kept)
    stage = {**FINETUNE, "max_steps": 3, "save_steps": 2, "optim": optim, "weight_decay": 0.1}
    inputs = {"model": model, "data": messages}
    whole = context(tmp_path, stage, inputs)
    run_stage(whole)
    again = context(tmp_path, stage, inputs, attempt=2, resume=resume_point(whole, 2))
    run_stage(again)
    assert seen == [name, name]
    assert trajectory(again, 2) == trajectory(whole, 1, after=2)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"optim": "adafactor", "adam_beta1": 0.8}, "adam_beta1 — adafactor has no such setting"),
        ({"optim": "lion_8bit", "adam_epsilon": 1e-6}, "adam_epsilon — lion_8bit has no such setting"),
        ({"lr_scheduler_type": "polynomial", "lr_end": 1e-2}, "lr_end — must be below learning_rate"),
    ],
)
def test_a_setting_that_the_optimizer_or_the_schedule_cannot_use_is_refused(fields: dict[str, Any], says: str) -> None:
    from recipes.stages.finetune import FinetuneStage

    with pytest.raises(ValueError, match=says):
        FinetuneStage.model_validate({**FINETUNE, **fields})
