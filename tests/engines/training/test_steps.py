"""A step's event is correct: losses computed by hand, rates by formula, tokens by counting."""

from __future__ import annotations

import shutil
import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.checkpoints import scan_attempt
from engines.artifacts.manifest import verify_manifest
from engines.context import GuardTrippedError
from engines.events.attempts import Phase
from engines.events.results import Evaluated
from engines.events.steps import GuardTripped, Step
from engines.events.writers import Warned
from recipes.problems import OperatorError
from tests.engines.labels.labelling import labelled
from tests.engines.training.attempts import committed_steps, context, of_kind, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, PRETRAIN, write_messages, write_tokens
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.torch

FROZEN = {"learning_rate": 1e-30, "lora_dropout": 0.0}
"""A rate at which no weight changes: every step's loss is that of the base model."""


def _nll(model: Any, example: Any) -> tuple[float, int]:
    """Sum of the negative log likelihoods of an example's labelled tokens, one example at a time, without padding."""
    import torch

    ids = torch.tensor([example.input_ids])
    with torch.no_grad():
        log_probs = torch.log_softmax(model(input_ids=ids).logits[0].double(), dim=-1)
    scored = [position for position in range(1, len(example.labels)) if example.labels[position] != -100]
    return -sum(float(log_probs[p - 1, example.labels[p]]) for p in scored), len(scored)


def test_loss_is_the_mean_over_the_windows_tokens_with_ragged_answers(
    tmp_path: Path, model: Path, messages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from engines.finetune import stage as finetune
    from engines.finetune.rows import collator

    seen: list[list[Any]] = []

    def recording(pad_id: int, **options: Any) -> Any:
        collate = collator(pad_id, **options)

        def record(examples: list[Any]) -> Any:
            seen.append(examples)
            return collate(examples)

        return record

    monkeypatch.setattr(finetune, "collator", recording)
    stage = {**FINETUNE, **FROZEN, "max_steps": 4, "gradient_accumulation_steps": 3}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(ctx)
    base = AutoModelForCausalLM.from_pretrained(str(model))
    steps = of_kind(ctx, Step)
    windows = [seen[0:3], seen[3:6], seen[6:7], seen[7:10]]  # 13 rows: 7 batches, the third window has one of one row
    tokens = loss_tokens = 0
    for step, window in zip(steps, windows, strict=True):
        examples = [example for batch in window for example in batch]
        sums = [_nll(base, example) for example in examples]
        assert len({count for _, count in sums}) > 1 or len(examples) == 1
        tokens += sum(len(example.input_ids) for example in examples)
        loss_tokens += sum(count for _, count in sums)
        expected = sum(nll for nll, _ in sums) / sum(count for _, count in sums)
        assert step.loss == pytest.approx(expected, rel=2e-6)
        assert (step.tokens, step.loss_tokens) == (tokens, loss_tokens)
    mean_of_means = sum(nll / count for nll, count in (_nll(base, e) for batch in windows[0] for e in batch)) / 6
    assert steps[0].loss != pytest.approx(mean_of_means, rel=1e-5)


def test_the_end_of_turn_is_learnt(model: Path, messages: Path) -> None:
    from transformers import AutoTokenizer

    from engines.data.door import DataSource, read_conversations

    tokenizer = AutoTokenizer.from_pretrained(str(model))
    rows = [labelled(row.as_dicts(), tokenizer, 48) for row in read_conversations(DataSource(messages), "train")]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert rows
    assert all([label for label in row.labels if label != -100][-1] == end for row in rows)


SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "cosine": ({}, {}),
    "cosine_with_min_lr": ({"min_lr_rate": 0.2}, {}),
    "cosine_with_restarts": ({"num_cycles": 3}, {"num_cycles": 3}),
    "linear": ({}, {}),
    "polynomial": ({"power": 2.0, "lr_end": 1e-4}, {"power": 2.0, "lr_end": 1e-4}),
    "warmup_stable_decay": (
        {"num_decay_steps": 5, "decay_type": "1-sqrt", "min_lr_ratio": 0.2},
        {"num_decay_steps": 0.25, "decay_type": "1-sqrt"},
    ),
    "constant": ({}, {}),
    "constant_with_warmup": ({}, {}),
    "inverse_sqrt": ({}, {}),
}
"""The shapes, each with what transformers' function takes and with the fields of a stage."""


def test_every_shape_of_a_recipe_is_compared_with_that_of_transformers() -> None:
    from engines.training.schedule import SHAPES as OURS

    assert set(SHAPES) == set(OURS)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_each_fall_of_a_stable_rate_is_that_of_transformers(decay: str) -> None:
    from transformers.optimization import _get_wsd_scheduler_lambda

    from engines.training.schedule import Form, Schedule

    ours = Schedule("warmup_stable_decay", warmup=3, total=20, min_rate=0.1, form=Form(decay_steps=7, decay=decay))
    for step in range(23):
        theirs = _get_wsd_scheduler_lambda(
            step, num_warmup_steps=3, num_stable_steps=10, num_decay_steps=7, warmup_type="linear", decay_type=decay,
            min_lr_ratio=0.1, num_cycles=0.5,
        )  # fmt: skip
        assert ours(step) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 3.0, 0.25])
@pytest.mark.parametrize("shape", SHAPES)
def test_schedule_is_that_of_transformers(shape: str, warmup: float) -> None:
    import torch
    from transformers import get_scheduler

    from engines.training.schedule import schedule_for, warmup_steps
    from recipes.stages.pretrain import PretrainStage

    name = "constant_with_warmup" if shape == "constant" else shape
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-3)
    first = warmup_steps(warmup, 20)
    extra, fields = SHAPES[shape]
    theirs = get_scheduler(
        name, optimizer, num_warmup_steps=first, num_training_steps=20, scheduler_specific_kwargs=extra
    )
    stage = {**PRETRAIN, "lr_scheduler_type": shape, "warmup_steps": warmup, "min_lr_rate": 0.2, **fields}
    ours = schedule_for(PretrainStage.model_validate(stage), 20, 1.0)
    for step in range(21):
        assert ours(step) == pytest.approx(theirs.lr_lambdas[0](step), abs=1e-12)


def test_learning_rate_is_the_one_the_step_used(tmp_path: Path, tokens: Path) -> None:
    from engines.training.schedule import Schedule

    ctx = context(tmp_path, {**PRETRAIN, "lr_scheduler_type": "linear"}, {"data": tokens})
    run_stage(ctx)
    formula = Schedule("linear", warmup=2, total=8, min_rate=0.1)
    rates = [event.learning_rate for event in of_kind(ctx, Step)]
    assert rates == [3e-3 * formula(done) for done in range(8)]
    assert rates[:3] == [0.0, 1.5e-3, 3e-3]


def test_grad_norm_is_before_clipping_and_tokens_are_all_of_a_window(tmp_path: Path, tokens: Path) -> None:
    tight = context(tmp_path / "tight", {**PRETRAIN, "max_grad_norm": 1e-3, "max_steps": 1}, {"data": tokens})
    loose = context(tmp_path / "loose", {**PRETRAIN, "max_grad_norm": 1e3, "max_steps": 1}, {"data": tokens})
    run_stage(tight)
    run_stage(loose)
    [first], [second] = of_kind(tight, Step), of_kind(loose, Step)
    assert first.grad_norm == second.grad_norm
    assert (first.grad_norm or 0) > 1e-2
    assert (first.tokens, first.loss_tokens) == (4 * 16, 4 * 15)
    assert first.data_wait_s is not None
    assert 0 < first.data_wait_s < first.step_s


def _captured_model(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    from engines.pretrain import stage as pretrain

    built: list[Any] = []
    from engines.pretrain.model import build_model as build

    def capture(*args: Any, **kwargs: Any) -> Any:
        built.append(build(*args, **kwargs))
        return built[-1]

    monkeypatch.setattr(pretrain, "build_model", capture)
    return built


def test_a_nan_loss_leaves_the_weights_of_the_step_before(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch
    from safetensors.torch import load_file

    built = _captured_model(monkeypatch)
    stage = {**PRETRAIN, "save_steps": 1, "save_total_limit": 1}
    fault = {"nan_loss": {"stage": "base", "step": 5, "micro_batch": 2}}
    ctx = context(tmp_path, stage, {"data": tokens}, test_faults=fault)
    assert run_stage(ctx) is None
    steps = of_kind(ctx, Step)
    assert [event.step for event in steps] == [1, 2, 3, 4, 5]
    assert str(steps[-1].loss) == "nan"
    assert steps[-1].tokens == steps[-2].tokens
    [trip] = of_kind(ctx, GuardTripped)
    assert (trip.guard, trip.step, str(trip.value), trip.limit) == ("nonfinite_loss", 5, "nan", None)
    [last], refused = scan_attempt(ctx.checkpoints)
    assert verify_manifest(last.path) == []
    assert (last.step, last.healthy, refused) == (4, True, [])
    saved = load_file(last.path / "model.safetensors")
    live = built[0].state_dict()
    assert all(torch.equal(live[name], tensor) for name, tensor in saved.items())


def test_a_base_model_with_a_weight_that_is_not_a_number_stops_and_saves_nothing_healthy(
    tmp_path: Path, model: Path, messages: Path
) -> None:
    from safetensors.torch import load_file, save_file

    from engines.finetune.stage import run as finetune

    broken = shutil.copytree(model, tmp_path / "model")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    ctx = context(tmp_path / "run", {**FINETUNE, "max_steps": 2}, {"model": broken, "data": messages})
    with pytest.raises(GuardTrippedError, match=r"damaged: model\.layers\.1\.mlp\.up_proj\.weight is not finite"):
        finetune(ctx)
    [trip] = of_kind(ctx, GuardTripped)
    assert (trip.guard, trip.step) == ("nonfinite_loss", 1)
    assert committed_steps(ctx, 1) == []


def test_a_large_gradient_is_refused_with_its_value(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "guards": {"grad_norm": 50.0}}
    fault = {"large_gradient": {"step": 2, "factor": 1e4}}
    ctx = context(tmp_path, stage, {"data": tokens}, test_faults=fault)
    assert run_stage(ctx) is None
    [trip] = of_kind(ctx, GuardTripped)
    assert (trip.guard, trip.step, trip.limit) == ("grad_norm", 2, 50.0)
    assert trip.value == of_kind(ctx, Step)[-1].grad_norm
    assert (trip.value or 0) > 50
    assert committed_steps(ctx, 1) == []


def test_the_fault_does_not_affect_the_next_attempt(tmp_path: Path, tokens: Path) -> None:
    fault = {"nan_loss": {"step": 2, "micro_batch": 1}}
    ctx = context(tmp_path, PRETRAIN, {"data": tokens}, attempt=2, test_faults=fault)
    assert run_stage(ctx) is not None


def test_a_full_disk_loses_one_checkpoint_and_training_continues(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens}, test_faults={"disk_full": {"step": 6}})
    assert run_stage(ctx) is not None
    assert committed_steps(ctx, 1) == [3, 8]
    assert sorted(path.name for path in ctx.checkpoints.iterdir()) == ["step-3", "step-8"]
    [warning] = of_kind(ctx, Warned)
    assert "step 6 could not be written" in warning.message


@pytest.mark.parametrize(
    "words",
    [
        "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
        "[Errno 28] No space left on device",
        "PytorchStreamWriter failed writing file data/3: file write failed",
    ],
)
def test_torchs_messages_for_a_full_disk_are_recognized_and_others_are_raised(
    words: str, tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training import saving
    from engines.training.saves.parts import write_parts

    real = write_parts

    def failing(folder: Path, model: Any, parts: Any) -> None:
        real(folder, model, parts)
        if parts.state.global_step == 3:
            raise RuntimeError(words)

    monkeypatch.setattr(saving, "write_parts", failing)
    ctx = context(tmp_path / "disk", PRETRAIN, {"data": tokens})
    assert run_stage(ctx) is not None
    assert committed_steps(ctx, 1) == [6, 8]
    assert sorted(path.name for path in ctx.checkpoints.iterdir()) == ["step-6", "step-8"]
    words = "a mistake of ours"
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        run_stage(context(tmp_path / "other", PRETRAIN, {"data": tokens}))


def test_non_finite_weights_make_a_checkpoint_unhealthy_and_the_healthy_one_stays(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    built = _captured_model(monkeypatch)
    stage = {**PRETRAIN, "save_steps": 1, "save_total_limit": 1, "max_steps": 3}
    ctx = context(tmp_path, stage, {"data": tokens})
    emit = ctx.emit

    def spoil(event: Any) -> int:
        if isinstance(event, Step) and event.step == 3:
            with torch.no_grad():
                built[0].model.layers[0].self_attn.q_proj.weight[0, 0] = float("inf")
        return emit(event)

    ctx.emit = spoil  # type: ignore[method-assign]
    run_stage(ctx)
    complete, _ = scan_attempt(ctx.checkpoints)
    assert [(item.step, item.healthy) for item in complete] == [(2, True), (3, False)]


def test_the_best_checkpoint_stays(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "save_steps": 1, "eval_steps": 1, "save_total_limit": 1, "learning_rate": 0.5, "max_steps": 6}
    ctx = context(tmp_path, stage, {"data": tokens})
    run_stage(ctx)
    losses = {event.step: event.loss or 0.0 for event in of_kind(ctx, Evaluated)}
    best = min(losses, key=lambda step: losses[step])
    assert best != 6
    complete, _ = scan_attempt(ctx.checkpoints)
    assert [item.step for item in complete] == [best, 6]


def test_phases_and_rows_left_out_are_reported(tmp_path: Path, model: Path) -> None:
    messages = write_messages(tmp_path / "messages", rows=9, val=0)
    stage = {**FINETUNE, "max_length": 29, "eval_steps": 1, "max_steps": 2}
    ctx = context(tmp_path, stage, {"model": model, "data": messages})
    run_stage(ctx)
    warnings = [event.message for event in of_kind(ctx, Warned)]
    assert any("rows were left out: longer than 29 tokens" in text for text in warnings)
    assert any("the val split of the data has no rows" in text for text in warnings)
    versions = f"transformers {metadata.version('transformers')}, peft {metadata.version('peft')}"
    computes = "on cpu, products in float32, frozen weights in float32, attention sdpa, rows in one sequence, 1 thread"
    assert [event.name for event in of_kind(ctx, Phase)] == [
        "loading",
        "tokenizing",
        f"hf: {versions}, {computes}",
        "first step",
        "training",
        "saving",  # the checkpoint
        "saving",  # the adapter
    ]


def test_too_little_data_and_missing_models_are_operator_errors(tmp_path: Path, model: Path, messages: Path) -> None:
    short = write_tokens(tmp_path / "short", {"train": 10, "val": 0})
    with pytest.raises(OperatorError, match="fewer than one window of 16"):
        run_stage(context(tmp_path / "a", PRETRAIN, {"data": short}))
    with pytest.raises(OperatorError, match="has an answer within 8 tokens"):
        run_stage(context(tmp_path / "b", {**FINETUNE, "max_length": 8}, {"model": model, "data": messages}))
    with pytest.raises(OperatorError, match="not in the local Hugging Face cache"):
        run_stage(context(tmp_path / "c", FINETUNE, {"model": "org/model", "data": messages}))
    with pytest.raises(OperatorError, match="cannot load a model from"):
        run_stage(context(tmp_path / "d", FINETUNE, {"model": messages, "data": messages}))


def test_changed_tokens_are_refused(tmp_path: Path) -> None:
    folder = write_tokens(tmp_path / "tokens", {"train": 100, "val": 0})
    data = bytearray((folder / "train.bin").read_bytes())
    data[10] ^= 1
    (folder / "train.bin").write_bytes(bytes(data))
    with pytest.raises(OperatorError, match="SHA-256"):
        run_stage(context(tmp_path, PRETRAIN, {"data": folder}))


def test_the_same_seed_gives_the_same_training_and_another_seed_another(tmp_path: Path, tokens: Path) -> None:
    contexts = [
        context(tmp_path / str(n), {**PRETRAIN, "seed": seed, "max_steps": 2}, {"data": tokens})
        for n, seed in enumerate((1, 1, 2))
    ]
    for ctx in contexts:
        run_stage(ctx)
    first, second, other = (trajectory(ctx, 1) for ctx in contexts)
    assert first == second != other


def test_a_training_that_has_ended_leaves_no_thread_that_watches_its_data(
    tmp_path: Path, model: Path, messages: Path
) -> None:
    before = set(threading.enumerate())
    run_stage(context(tmp_path, {**FINETUNE, "max_steps": 2}, {"model": model, "data": messages}))
    own = [thread for thread in threading.enumerate() if thread not in before and thread.name == "data-wait"]
    for thread in own:
        thread.join(PATIENCE_S)
    assert [thread.name for thread in own if thread.is_alive()] == []
