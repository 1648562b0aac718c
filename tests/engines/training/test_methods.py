"""Each method of fine-tuning computes what a loop written by hand computes, resumes bit for bit, and gives a merged
model with the logits of the trained one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engines.events import Step
from engines.training.schedule import Schedule
from recipes.problems import OperatorError
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, weights_sha256

pytestmark = pytest.mark.torch

LORA = ("r", "lora_alpha", "lora_dropout")
FULL: dict[str, Any] = {**{key: value for key, value in FINETUNE.items() if key not in LORA}, "output": "model"}
EXACT: dict[str, Any] = {**FINETUNE, "lora_dropout": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "full": FULL,
    "lora": EXACT,
    "dora": {**EXACT, "use_dora": True},
    "qlora": {**EXACT, "load_in_4bit": True},
}


class Kept:
    """A run's model and the examples of each of its micro-batches, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        finetune: Any = importlib.import_module("engines.finetune.stage")
        self.model: Any = None
        self.batches: list[list[Any]] = []
        collator, session = finetune.collator, finetune.Session
        kept = self

        def recording(*given: Any, **more: Any) -> Any:
            collate = collator(*given, **more)

            def record(examples: list[Any]) -> Any:
                kept.batches.append(examples)
                return collate(examples)

            return record

        class Recorded(session):  # type: ignore[misc, valid-type]
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                kept.model = self.task.model

        monkeypatch.setattr(finetune, "collator", recording)
        monkeypatch.setattr(finetune, "Session", Recorded)


def by_hand(stage: dict[str, Any], model: Path, batches: list[list[Any]]) -> Iterator[tuple[float, float, float]]:
    """Loss, gradient norm and learning rate of each step, with transformers, PEFT and torch alone.

    4-bit weights are replaced by the float32 values that they stand for, so no kernel for 4 bits takes part.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.nn.functional import cross_entropy
    from transformers import AutoModelForCausalLM, set_seed

    trained: Any = AutoModelForCausalLM.from_pretrained(str(model), dtype=torch.float32)
    if stage.get("load_in_4bit"):
        round_to_nf4(trained)
    set_seed(42)
    if "r" in stage:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=stage["r"],
            lora_alpha=int(stage["lora_alpha"]),
            use_dora=stage.get("use_dora", False),
            target_modules=targets,
        )
        trained = get_peft_model(trained, config)
    trained.train()
    weights = [parameter for parameter in trained.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    schedule = Schedule("cosine", warmup=0, total=stage["max_steps"], min_rate=0.1)
    for step, window in enumerate(windows_of(batches)[: stage["max_steps"]]):
        rows = [row for batch in window for row in batch]
        count, total = sum(row.scored for row in rows), 0.0
        for row in rows:
            logits = trained(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
            loss = cross_entropy(logits, torch.tensor(row.labels[1:]), ignore_index=-100, reduction="sum") / count
            loss.backward()
            total += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(weights, 1.0))
        rate = stage["learning_rate"] * schedule(step)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        yield total, norm, rate


def windows_of(batches: list[list[Any]]) -> list[list[list[Any]]]:
    """The accumulation windows: two batches each; an epoch has 7 batches, so its last window has one."""
    epochs = [batches[start : start + 7] for start in range(0, len(batches), 7)]
    return [epoch[at : at + 2] for epoch in epochs for at in range(0, len(epoch), 2)]


def round_to_nf4(model: Any) -> None:
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for name, parameter in model.named_parameters():
        if name.endswith("_proj.weight"):
            packed, state = quantize_4bit(parameter.data, blocksize=64, quant_type="nf4")
            parameter.data = dequantize_4bit(packed, state).float()


@pytest.mark.parametrize("steps", [5, pytest.param(20, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("name", METHODS)
def test_losses_rates_and_norms_are_those_of_a_loop_written_by_hand(
    name: str, steps: int, tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept(monkeypatch)
    stage = {**METHODS[name], "max_steps": steps, "save_steps": 1000}
    if name == "qlora":
        stage["eval_steps"] = 4  # an evaluation changes nothing that is trained
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(ctx)
    events = of_kind(ctx, Step)
    assert len(events) == steps
    expected = list(by_hand(stage, model, kept.batches))
    for event, (loss, norm, rate) in zip(events, expected, strict=True):
        assert event.loss == pytest.approx(loss, rel=1e-6), event.step
        assert event.grad_norm == pytest.approx(norm, rel=1e-6), event.step
        assert event.learning_rate == pytest.approx(rate, rel=1e-9), event.step


@pytest.mark.parametrize("name", ["full", "qlora"])
def test_a_resume_continues_bit_for_bit(name: str, tmp_path: Path, model: Path, messages: Path) -> None:
    dropout = (
        {"max_steps": 5} if name == "full" else {"max_steps": 5, "lora_dropout": 0.1, "gradient_checkpointing": True}
    )
    check_resumes({**METHODS[name], **dropout}, tmp_path, model, messages, steps=[3])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["full", "lora", "dora", "qlora"])
def test_a_resume_from_any_step_continues_bit_for_bit(name: str, tmp_path: Path, model: Path, messages: Path) -> None:
    dropout = {} if name == "full" else {"lora_dropout": 0.1}
    stage = {**METHODS[name], **dropout, "max_steps": 21, "save_steps": 1, "save_total_limit": 30}
    check_resumes(stage, tmp_path, model, messages, steps=list(range(1, 21)))


def check_resumes(stage: dict[str, Any], tmp_path: Path, model: Path, messages: Path, steps: list[int]) -> None:
    inputs = {"model": model, "data": messages}
    whole = context(tmp_path, stage, inputs)
    run_stage(whole)
    for attempt, step in enumerate(steps, start=2):
        again = context(tmp_path, stage, inputs, attempt=attempt, resume=resume_point(whole, step))
        run_stage(again)
        assert trajectory(again, attempt) == trajectory(whole, 1, after=step)
        assert weights_sha256(again.out) == weights_sha256(whole.out)


def logits_of(model: Any) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45).reshape(1, -1)).logits[0].double()


VARIANTS: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "pissa-niter": {"init_lora_weights": "pissa_niter_4", "use_rslora": True},
    "olora": {"init_lora_weights": "olora", "target_modules": ["q_proj", "down_proj"]},
    "modules": {"init_lora_weights": "gaussian", "modules_to_save": ["norm", "up_proj"], "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.thorough if n in ("pissa-niter", "olora") else []) for n in VARIANTS]
)
def test_a_merged_model_has_the_logits_of_the_trained_one(
    name: str, tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from exporters.lora.merge import merge

    kept = Kept(monkeypatch)
    stage = {**EXACT, **VARIANTS[name], "max_steps": 3}
    ctx = context(tmp_path / "run", stage, {"model": model, "data": messages})
    run_stage(ctx)
    trained = logits_of(kept.model)
    (tmp_path / "merged").mkdir()
    merge(model, [(ctx.out, 1.0)], tmp_path / "merged", dtype="float32")
    merged = logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    served = logits_of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), ctx.out))
    base = logits_of(AutoModelForCausalLM.from_pretrained(model))
    assert float((trained - base).abs().max()) > 1e-2, "the training changes the model"
    assert torch.allclose(merged, trained, atol=2e-5, rtol=0)
    assert torch.allclose(served, trained, atol=2e-5, rtol=0)


def test_all_weights_are_in_the_model_that_a_full_fine_tuning_leaves(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from engines.evaluate.stage import run as evaluate

    kept = Kept(monkeypatch)
    ctx = context(tmp_path / "run", {**FULL, "max_steps": 2}, {"model": model, "data": messages})
    result = run_stage(ctx)
    assert result is not None
    assert result.artifacts[0].kind == "model"
    assert result.metrics["trainable_parameters"] == result.metrics["parameters"]
    before = dict(AutoModelForCausalLM.from_pretrained(model).named_parameters())
    after: Any = AutoModelForCausalLM.from_pretrained(ctx.out)
    assert all(not torch.equal(before[name], weight) for name, weight in after.named_parameters())
    assert torch.equal(logits_of(after), logits_of(kept.model))
    again = context(tmp_path / "again", {**FINETUNE, "max_steps": 1}, {"model": ctx.out, "data": messages})
    assert run_stage(again) is not None
    stage = {"name": "after", "kind": "evaluate", "model": "tune", "data": "questions", "split": "val"}
    scored = evaluate(context(tmp_path / "scored", stage, {"model": ctx.out, "data": messages}))
    assert scored.metrics["tokens"] > 0


def test_an_adapter_over_four_bits_is_float32_and_says_how_its_base_was_loaded(
    tmp_path: Path, model: Path, messages: Path
) -> None:
    from safetensors.torch import load_file

    stage = {**METHODS["qlora"], "bnb_4bit_use_double_quant": True, "optim": "adamw_8bit", "max_steps": 1}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(ctx)
    assert {str(tensor.dtype) for tensor in load_file(ctx.out / "adapter_model.safetensors").values()} == {
        "torch.float32"
    }
    record = json.loads((ctx.out / "base.json").read_text())["quantization"]
    assert record["bnb_4bit_quant_type"] == "nf4"
    assert record["bnb_4bit_use_double_quant"] is True
    assert record["bnb_4bit_compute_dtype"] == "float32"


def test_a_checkpoint_of_another_method_is_refused(tmp_path: Path, model: Path, messages: Path) -> None:
    inputs: dict[str, Path | str] = {"model": model, "data": messages}
    full = context(tmp_path / "full", {**FULL, "max_steps": 1}, inputs)
    run_stage(full)
    point = resume_point(full, 1).path
    for stage, words in (
        (EXACT, "is of a training of all weights of a model, and this stage trains an adapter"),
        ({**FULL, "optim": "adamw_8bit"}, "has the state of adamw_torch_fused; got optim = adamw_8bit"),
    ):
        other = context(tmp_path / words[:8].strip(), {**stage, "start_from": "x"}, {**inputs, "start_from": point})
        with pytest.raises(OperatorError, match=words):
            run_stage(other)


def test_a_merge_says_how_far_it_is_from_the_model_that_was_trained_over_four_bits(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from engines.events import Warned
    from exporters.lora.merge import merge
    from exporters.stages.merge_stage import run as merge_stage

    kept = Kept(monkeypatch)
    ctx = context(tmp_path / "run", {**METHODS["qlora"], "max_steps": 3}, {"model": model, "data": messages})
    run_stage(ctx)
    trained = logits_of(kept.model)
    (tmp_path / "exact").mkdir()
    merge(model, [(ctx.out, 1.0)], tmp_path / "exact", dtype="float32", base_rounding="nf4")
    assert torch.allclose(logits_of(AutoModelForCausalLM.from_pretrained(tmp_path / "exact")), trained, atol=2e-5)
    found = {}
    for rounding in ("none", "nf4"):
        stage = {"name": "merged", "kind": "merge", "model": "base", "adapter": "tune", "parity_positions": 64}
        given = {**stage, "dtype": "float32", "base_rounding": rounding}
        merged = context(tmp_path / rounding, given, {"model": model, "adapter": ctx.out})
        found[rounding] = merge_stage(merged).metrics
        assert any("in 4 bits (nf4)" in event.message for event in of_kind(merged, Warned))
    assert found["none"]["mean_kl"] < 1e-6 < found["none"]["kl_to_trained"]
    assert found["nf4"]["kl_to_trained"] < 1e-6 < found["nf4"]["mean_kl"]
