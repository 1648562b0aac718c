"""Every field of a training stage takes effect: one row per field, and a new field needs one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.events import CheckpointCommitted, Evaluated, Event, GuardTripped, SampledText, Step
from recipes.stages.fields import StageFields
from recipes.stages.finetune import FinetuneModelStage, FinetuneStage
from recipes.stages.label_fields import LabelFields
from recipes.stages.pretrain import PretrainStage
from tests.engines.training.attempts import context, run_stage
from tests.stage_context import TriedContext

pytestmark = pytest.mark.torch

SHARED: dict[str, Any] = {
    "max_length": 24,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "max_steps": 4,
    "num_train_epochs": 7.0,
    "learning_rate": 1.5e-3,
    "lr_scheduler_type": "cosine_with_min_lr",
    "min_lr_rate": 0.25,
    "warmup_steps": 1.0,
    "optim": "adamw_torch",
    "weight_decay": 0.07,
    "adam_beta1": 0.85,
    "adam_beta2": 0.93,
    "adam_epsilon": 3e-7,
    "max_grad_norm": 0.6,
    "bf16": True,
    "gradient_checkpointing": True,
    "seed": 5,
    "dataloader_num_workers": 1,
    "save_steps": 3,
    "save_total_limit": 1,
    "eval_steps": 2,
    "eval_max_tokens": 20,
    "per_device_eval_batch_size": 1,
    "guards": {"grad_norm": 123.0},
    "threads": 1,
}
PRETRAIN: dict[str, Any] = {
    "name": "base",
    "kind": "pretrain",
    "data": "tokens",
    **SHARED,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rope_theta": 5000.0,
    "rms_norm_eps": 2e-5,
    "tie_word_embeddings": False,
    "attention_dropout": 0.15,
    "initializer_range": 0.03,
    "sample_steps": 3,
    "sample_prompts": ["abc"],
    "sample_max_new_tokens": 5,
}
FINETUNE: dict[str, Any] = {
    "name": "tune",
    "kind": "finetune",
    "model": "base",
    "data": "questions",
    **SHARED,
    "max_length": 30,
    "eval_max_tokens": 5,
    "r": 3,
    "lora_alpha": 9.0,
    "lora_dropout": 0.2,
    "use_rslora": True,
    "use_dora": True,
    "init_lora_weights": "gaussian",
    "target_modules": ["q_proj", "up_proj"],
    "padding_free": False,
    "train_sampling_strategy": "group_by_length",
    "modules_to_save": ["lm_head"],
    "bias": "lora_only",
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "fp4",
    "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": "float32",
    "llm_int8_skip_modules": ["down_proj"],
}
MODEL: dict[str, Any] = {
    **{key: value for key, value in FINETUNE.items() if key in FinetuneModelStage.model_fields},
    "output": "model",
}
ELSEWHERE = {
    "python": "the supervisor starts that interpreter",
    "devices": "the supervisor sets CUDA_VISIBLE_DEVICES: test_engine_environment.py",
    "gate": "the host checks gates",
    "report_to": "runs of its own: test_scalars.py",
    "save_strategy": "runs of its own: test_best.py",
    "eval_strategy": "runs of its own: test_best.py",
    "load_best_model_at_end": "runs of its own: test_best.py",
    "early_stopping_patience": "runs of its own: test_best.py",
    "early_stopping_threshold": "runs of its own: test_best.py",
    "retry": "the supervisor retries",
    "start_from": "a run of its own: test_beginning.py",
    **dict.fromkeys(LabelFields.model_fields.keys() - StageFields.model_fields.keys(), "labels/test_stage_rows.py"),
    "kind": "names the engine",
    "packing": "needs padding_free: test_packing.py",
    "output": "selects the type: test_methods.py",
    "format": "the door for data: tests/engines/data/test_door.py",
    "columns": "the door for data: tests/engines/data/test_door.py",
    "ignore_keys": "the door for data: tests/engines/data/test_door.py",
    "on_bad_row": "the door for data: tests/engines/data/test_door.py",
    "encoding": "the door for data: tests/engines/data/test_door.py",
}
"""Fields that the training engines do not read, and their readers."""


@dataclass
class Seen:
    """The result of one run in which no field has its default."""

    session: Any
    batches: list[dict[str, Any]]
    ctx: TriedContext
    threads: int

    @property
    def args(self) -> Any:
        return self.session.trainer.args

    @property
    def model_config(self) -> Any:
        return self.session.task.model.config

    @property
    def lora(self) -> Any:
        return self.session.task.model.peft_config["default"]

    def events(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.ctx.events() if isinstance(event, kind)]


def _argument(name: str) -> Callable[[Seen], Any]:
    return lambda seen: getattr(seen.args, name)


def _config(name: str) -> Callable[[Seen], Any]:
    return lambda seen: getattr(seen.model_config, name)


def _lora(name: str) -> Callable[[Seen], Any]:
    return lambda seen: getattr(seen.lora, name)


def _optimizer(name: str) -> Callable[[Seen], Any]:
    return lambda seen: seen.session.trainer.optimizer.param_groups[0][name]


Row = tuple[Callable[[Seen], Any], Any]
SHARED_ROWS: dict[str, Row] = {
    "name": (lambda seen: {event.stage for event in seen.events(Step)}, None),
    "data": (lambda seen: seen.session.task.examples > 0, True),
    "per_device_train_batch_size": (lambda seen: seen.batches[0]["input_ids"].shape[0], 3),
    "gradient_accumulation_steps": (_argument("gradient_accumulation_steps"), 2),
    "max_steps": (lambda seen: [event.step for event in seen.events(Step)], [1, 2, 3, 4]),
    "num_train_epochs": (_argument("num_train_epochs"), 7.0),
    "learning_rate": (lambda seen: max(event.learning_rate for event in seen.events(Step)), 1.5e-3),
    "lr_scheduler_type": (lambda seen: seen.session.schedule.shape, "cosine_with_min_lr"),
    "min_lr_rate": (lambda seen: seen.session.schedule(4), 0.25),
    "warmup_steps": (lambda seen: [event.learning_rate for event in seen.events(Step)][:2], [0.0, 1.5e-3]),
    "optim": (lambda seen: (str(seen.args.optim.value), _optimizer("fused")(seen)), ("adamw_torch", None)),
    "weight_decay": (_optimizer("weight_decay"), 0.07),
    "adam_beta1": (lambda seen: _optimizer("betas")(seen)[0], 0.85),
    "adam_beta2": (lambda seen: _optimizer("betas")(seen)[1], 0.93),
    "adam_epsilon": (_optimizer("eps"), 3e-7),
    "max_grad_norm": (_argument("max_grad_norm"), 0.6),
    "bf16": (lambda seen: seen.session.trainer.accelerator.mixed_precision, "bf16"),
    "gradient_checkpointing": (lambda seen: seen.session.task.model.is_gradient_checkpointing, True),
    "seed": (lambda seen: (seen.args.seed, seen.args.data_seed), (5, 5)),
    "dataloader_num_workers": (lambda seen: seen.session.trainer.get_train_dataloader().num_workers, 1),
    "save_steps": (lambda seen: [event.step for event in seen.events(CheckpointCommitted)], [3, 4]),
    "save_total_limit": (lambda seen: [path.name for path in seen.ctx.checkpoints.iterdir()], ["step-4"]),
    "eval_steps": (lambda seen: [event.step for event in seen.events(Evaluated)], [2, 4]),
    "per_device_eval_batch_size": (lambda seen: {b.input_ids.shape[0] for b in seen.session.task.val}, {1}),
    "guards": (lambda seen: seen.session.stage.guards.grad_norm, 123.0),
    "threads": (lambda seen: seen.threads, 1),
}
PRETRAIN_ROWS: dict[str, Row] = {
    **SHARED_ROWS,
    "name": (SHARED_ROWS["name"][0], {"base"}),
    "max_length": (
        lambda seen: (seen.batches[0]["input_ids"].shape[1], _config("max_position_embeddings")(seen)),
        (24, 24),
    ),
    "eval_max_tokens": (lambda seen: seen.session.task.val.scored_tokens, 23),
    "hidden_size": (_config("hidden_size"), 48),
    "intermediate_size": (_config("intermediate_size"), 80),
    "num_hidden_layers": (lambda seen: len(seen.session.task.model.model.layers), 3),
    "num_attention_heads": (_config("num_attention_heads"), 4),
    "num_key_value_heads": (_config("num_key_value_heads"), 2),
    "rope_theta": (lambda seen: _config("rope_parameters")(seen)["rope_theta"], 5000.0),
    "rms_norm_eps": (lambda seen: seen.session.task.model.model.norm.variance_epsilon, 2e-5),
    "tie_word_embeddings": (
        lambda seen: seen.session.task.model.lm_head.weight is seen.session.task.model.model.embed_tokens.weight,
        False,
    ),
    "attention_dropout": (lambda seen: seen.session.task.model.model.layers[0].self_attn.attention_dropout, 0.15),
    "initializer_range": (_config("initializer_range"), 0.03),
    "sample_steps": (lambda seen: [event.step for event in seen.events(SampledText)], [3, 4]),
    "sample_prompts": (lambda seen: {event.prompt for event in seen.events(SampledText)}, {"abc"}),
    "sample_max_new_tokens": (lambda seen: max(len(event.text) for event in seen.events(SampledText)) <= 5, True),
}
FINETUNE_ROWS: dict[str, Row] = {
    **SHARED_ROWS,
    "name": (SHARED_ROWS["name"][0], {"tune"}),
    "model": (lambda seen: Path(seen.lora.base_model_name_or_path).is_dir(), True),
    "max_length": (lambda seen: max(batch["input_ids"].shape[1] for batch in seen.batches), 30),
    "eval_max_tokens": (lambda seen: seen.session.task.val.scored_tokens < 12, True),
    "r": (_lora("r"), 3),
    "lora_alpha": (_lora("lora_alpha"), 9),
    "lora_dropout": (_lora("lora_dropout"), 0.2),
    "use_rslora": (_lora("use_rslora"), True),
    "use_dora": (_lora("use_dora"), True),
    "init_lora_weights": (_lora("init_lora_weights"), "gaussian"),
    "modules_to_save": (_lora("modules_to_save"), ["lm_head"]),
    "bias": (_lora("bias"), "lora_only"),
    "load_in_4bit": (lambda seen: type(_base_layer(seen, "q_proj")).__name__, "Linear4bit"),
    "bnb_4bit_quant_type": (lambda seen: _base_layer(seen, "q_proj").weight.quant_type, "fp4"),
    "bnb_4bit_use_double_quant": (lambda seen: _base_layer(seen, "q_proj").weight.quant_state.nested, True),
    "bnb_4bit_compute_dtype": (lambda seen: str(_base_layer(seen, "q_proj").compute_dtype), "torch.float32"),
    "llm_int8_skip_modules": (lambda seen: type(_base_layer(seen, "down_proj")).__name__, "Linear"),
    "target_modules": (_lora("target_modules"), {"q_proj", "up_proj"}),
    "train_sampling_strategy": (lambda seen: type(seen.session.trainer._get_train_sampler()).__name__, "EpochOrder"),
    "padding_free": (lambda seen: seen.session.trainer.arrangement.way, "padded"),
}


MODEL_ROWS: dict[str, Row] = {
    **{name: row for name, row in FINETUNE_ROWS.items() if name in FinetuneModelStage.model_fields},
    "model": (lambda seen: seen.session.task.model.num_parameters() > 10_000, True),
}


def _base_layer(seen: Seen, name: str) -> Any:
    """A linear layer of the trained model, without its adapter."""
    model = seen.session.task.model
    found = next(module for path, module in model.named_modules() if path.endswith(f".{name}"))
    return getattr(found, "base_layer", found)


def _run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: dict[str, Any], inputs: dict[str, Path | str]) -> Seen:
    import torch

    from engines.finetune import stage as finetune
    from engines.pretrain import stage as pretrain
    from engines.training import trainer
    from engines.training.session import Session

    sessions: list[Session] = []
    batches: list[dict[str, Any]] = []
    prepare = trainer.EngineTrainer.training_step

    class Recorded(Session):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            sessions.append(self)

    def training_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        batches.append(dict(inputs))
        return prepare(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(trainer.EngineTrainer, "training_step", training_step)
    monkeypatch.setattr(finetune, "Session", Recorded)
    monkeypatch.setattr(pretrain, "Session", Recorded)
    ctx = context(tmp_path, stage, inputs)
    assert run_stage(ctx) is not None
    return Seen(sessions[0], batches, ctx, torch.get_num_threads())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, tokens: Path) -> Seen:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _run(monkeypatch, tmp_path_factory.mktemp("pretrained"), PRETRAIN, {"data": tokens})


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory: pytest.TempPathFactory, model: Path, messages: Path) -> Seen:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("finetuned")
        return _run(monkeypatch, folder, FINETUNE, {"model": model, "data": messages})


@pytest.fixture(scope="module")
def finetuned_model(tmp_path_factory: pytest.TempPathFactory, model: Path, messages: Path) -> Seen:
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = tmp_path_factory.mktemp("finetuned-model")
        return _run(monkeypatch, folder, MODEL, {"model": model, "data": messages})


@pytest.mark.parametrize("name", sorted(PretrainStage.model_fields))
def test_a_pretrain_field_reaches_the_engine(name: str, pretrained: Seen) -> None:
    if name not in ELSEWHERE:
        found, expected = PRETRAIN_ROWS[name]
        assert found(pretrained) == expected


@pytest.mark.parametrize("name", sorted(FinetuneStage.model_fields))
def test_a_finetune_field_reaches_the_engine(name: str, finetuned: Seen) -> None:
    if name not in ELSEWHERE:
        found, expected = FINETUNE_ROWS[name]
        assert found(finetuned) == expected


@pytest.mark.parametrize("name", sorted(FinetuneModelStage.model_fields))
def test_a_field_of_a_full_fine_tuning_reaches_the_engine(name: str, finetuned_model: Seen) -> None:
    if name not in ELSEWHERE:
        found, expected = MODEL_ROWS[name]
        assert found(finetuned_model) == expected


def test_no_field_is_left_at_its_default_in_these_runs() -> None:
    for stage, fields in ((PRETRAIN, PretrainStage), (FINETUNE, FinetuneStage), (MODEL, FinetuneModelStage)):
        for name, field in fields.model_fields.items():
            if name not in ELSEWHERE and name != "kind" and not field.is_required():
                assert stage[name] != field.default, name


def test_the_gradient_limit_is_the_guards(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, {**PRETRAIN, "guards": {"grad_norm": 1e-6}}, {"data": tokens})
    assert run_stage(ctx) is None
    assert [event.limit for event in ctx.events() if isinstance(event, GuardTripped)] == [1e-6]


NESTED = {
    "guards.grad_norm": "engines/training/test_fields.py::test_the_gradient_limit_is_the_guards",
    "guards.loss_spike": "engines/training/test_watch.py::test_a_spike_is_refused_before_the_weights_have_it",
    "guards.no_improvement": "engines/training/test_watch.py::test_a_training_without_improvement_saves_and_ends",
    "guards.no_improvement_on": "engines/training/test_watch.py::test_no_improvement_of_evaluations_counts_from",
    "guards.wall_clock_s": "engines/training/test_watch.py::test_a_training_whose_time_is_over_saves_and_stops",
    "retry.max_attempts": "cockpit/schedule/test_scheduling.py::test_a_failed_attempt_is_retried_from_its_checkpoint",
    "retry.learning_rate_factor": "cockpit/schedule/test_scheduling.py::test_after_a_guard_the_retry_has_a_lower_rate",
    "retry.out_of_memory_halvings": "cockpit/schedule/test_memory_plan.py::test_halvings_are_those_that_the_recipe",
    "retry.warmup_steps": "engines/training/test_watch.py::test_after_two_tripped_guards_the_rate_rises_again",
}
"""The keys of tables, and the begin of the name of the test in which a value of each changes what happens."""


def test_every_key_of_guards_and_retries_has_a_test_in_which_it_takes_effect() -> None:
    from recipes.stages.fields import ModelGuards, ModelRetry

    keys = {f"guards.{name}" for name in ModelGuards.model_fields} | {
        f"retry.{name}" for name in ModelRetry.model_fields
    }
    assert NESTED.keys() == keys
    for key, where in NESTED.items():
        file, _, test = where.partition("::")
        assert f"def {test}" in (Path(__file__).resolve().parents[2] / file).read_text(encoding="utf-8"), key
