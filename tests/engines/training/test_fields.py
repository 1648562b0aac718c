"""Every field of a stage that trains takes effect: changed alone, it changes what the engine builds or does.

And the other direction: with the passage of the field removed, so that whoever reads it gets the value of the unchanged
stage, the engine builds the same as without the change. A field that nothing reads fails the first, and an observation
that looks at the field itself, or differs anyway, fails the second.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.checkpoints import scan_attempt
from recipes.problems import OperatorError
from recipes.stages.decoder.rope import RopeParameters
from recipes.stages.dpo import DpoModelStage, DpoStage, PreferenceFields
from recipes.stages.fields import ModelGuards, ModelRetry
from recipes.stages.finetune import FinetuneFields, FinetuneModelStage, FinetuneStage
from recipes.stages.pretrain import PretrainStage
from recipes.stages.training import TrainingFields
from tests.engines.preference.pairs import write_pairs
from tests.engines.training import tiny
from tests.engines.training.attempts import context, run_stage
from tests.engines.training.observed import built, read_as

pytestmark = pytest.mark.torch

SMALL: dict[str, Any] = {
    "max_length": 40,
    "per_device_train_batch_size": 2,
    "max_steps": 4,
    "learning_rate": 1e-3,
    "bf16": False,
    "threads": 1,
    "seed": 1,
}
STAGES: dict[str, tuple[type[TrainingFields], dict[str, Any]]] = {
    "pretrain": (
        PretrainStage,
        {
            **SMALL, "name": "base", "kind": "pretrain", "data": "tokens", "hidden_size": 16, "intermediate_size": 24,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "sample_max_new_tokens": 1,
        },
    ),
    "adapter": (FinetuneStage, {**SMALL, "name": "tune", "kind": "finetune", "model": "base", "data": "rows", "r": 2}),
    "model": (
        FinetuneModelStage,
        {**SMALL, "name": "tune", "kind": "finetune", "model": "base", "data": "rows", "output": "model"},
    ),
    "dpo": (DpoStage, {**SMALL, "name": "prefer", "kind": "dpo", "model": "base", "data": "pairs", "r": 2}),
    "dpo-model": (
        DpoModelStage,
        {**SMALL, "name": "prefer", "kind": "dpo", "model": "base", "data": "pairs", "output": "model"},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Change:
    """Another value of a field; `given` are fields that both stages have, `data` the input of both."""

    value: Any
    given: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""


BATCHES = {"eval_steps": 2}
LONG = {"max_length": 120}
TRAINING: dict[str, Change] = {
    "max_length": Change(30),
    "per_device_train_batch_size": Change(1),
    "gradient_accumulation_steps": Change(2),
    "max_steps": Change(5),
    "num_train_epochs": Change(2.0, {"max_steps": None}),
    "learning_rate": Change(2e-3),
    "lr_scheduler_type": Change("linear"),
    "min_lr_rate": Change(0.3, {"lr_scheduler_type": "cosine_with_min_lr"}),
    "num_cycles": Change(2, {"lr_scheduler_type": "cosine_with_restarts"}),
    "power": Change(2.0, {"lr_scheduler_type": "polynomial"}),
    "lr_end": Change(1e-4, {"lr_scheduler_type": "polynomial"}),
    "num_decay_steps": Change(2.0, {"lr_scheduler_type": "warmup_stable_decay"}),
    "decay_type": Change("linear", {"lr_scheduler_type": "warmup_stable_decay", "num_decay_steps": 4.0}),
    "warmup_steps": Change(2.0),
    "optim": Change("adamw_torch"),
    "weight_decay": Change(0.1),
    "adam_beta1": Change(0.8),
    "adam_beta2": Change(0.9),
    "adam_epsilon": Change(1e-6),
    "max_grad_norm": Change(0.5),
    "bf16": Change(True),
    "fp16": Change(True),
    "gradient_checkpointing": Change(True),
    "seed": Change(2),
    "dataloader_num_workers": Change(1),
    "save_strategy": Change("epoch"),
    "save_steps": Change(3),
    "eval_strategy": Change("epoch"),
    "eval_steps": Change(3),
    "early_stopping_patience": Change(1, BATCHES),
    "early_stopping_threshold": Change(0.05, {**BATCHES, "early_stopping_patience": 1}),
    "eval_max_tokens": Change(3, BATCHES),
    "per_device_eval_batch_size": Change(1, BATCHES),
    "threads": Change(2),
    "float32_matmul_precision": Change("high"),
    "deterministic": Change(True),
    "guards": Change({"grad_norm": 200.0}),
}
PRETRAIN: dict[str, Change] = {
    "data": Change("more", data="more"),
    "hidden_size": Change(24),
    "intermediate_size": Change(32),
    "num_hidden_layers": Change(2),
    "num_attention_heads": Change(4, {"num_key_value_heads": 1}),
    "num_key_value_heads": Change(1),
    "model_type": Change("qwen3"),
    "head_dim": Change(4, {"model_type": "qwen3"}),
    "max_position_embeddings": Change(80),
    "linear": Change("ternary"),
    "document_masking": Change(True),
    "rope_theta": Change(5000.0),
    "rope_parameters": Change({"rope_type": "linear", "factor": 2.0}),
    "sliding_window": Change(7, {"model_type": "mistral"}),
    "rms_norm_eps": Change(2e-5),
    "tie_word_embeddings": Change(False),
    "attention_dropout": Change(0.15),
    "initializer_range": Change(0.03),
    "sample_steps": Change(3),
    "sample_prompts": Change(["abc"]),
    "sample_max_new_tokens": Change(2),
}
ROWS: dict[str, Change] = {
    "model": Change("other", data="other model"),
    "data": Change("more", data="more"),
    "format": Change("alpaca"),
    "columns": Change({"user": "task", "assistant": "result"}, data="objects"),
    "ignore_keys": Change(["audio"], data="odd key"),
    "where": Change(['prompt = "a?"'], data="some"),
    "on_bad_row": Change("skip", data="bad row"),
    "encoding": Change("latin-1", data="latin"),
    "chat_template": Change("zephyr"),
    "train_on": Change("last-answer", LONG, data="turns"),
    "truncation": Change("answer", {"max_length": 25}),
    "fold_system": Change(True, LONG, data="system"),
    "padding_free": Change(False),
}
ORDER: dict[str, Change] = {"packing": Change(True, LONG), "train_sampling_strategy": Change("group_by_length")}
FOUR_BITS = {"load_in_4bit": True}
ADAPTER: dict[str, Change] = {
    "r": Change(3),
    "lora_alpha": Change(9.0),
    "lora_dropout": Change(0.2),
    "use_rslora": Change(True),
    "use_dora": Change(True),
    "init_lora_weights": Change("gaussian"),
    "target_modules": Change(r".*\.(q|up)_proj"),
    "layers_to_transform": Change([0]),
    "rank_pattern": Change({"q_proj": 3}),
    "alpha_pattern": Change({"q_proj": 3.0}),
    "modules_to_save": Change(["lm_head"]),
    "bias": Change("all"),
    "base_dtype": Change("float32", {"bf16": True}),
    "load_in_4bit": Change(True),
    "bnb_4bit_quant_type": Change("fp4", FOUR_BITS),
    "bnb_4bit_use_double_quant": Change(True, FOUR_BITS),
    "bnb_4bit_compute_dtype": Change("bfloat16", FOUR_BITS),
    "llm_int8_skip_modules": Change(["down_proj"], FOUR_BITS),
}
DPO: dict[str, Change] = {
    "beta": Change(0.2),
    "loss_type": Change(["ipo"]),
    "loss_weights": Change([0.5]),
    "label_smoothing": Change(0.1, {"loss_type": ["robust"]}),
    "ld_alpha": Change(0.5),
    "f_divergence_type": Change("js_divergence"),
    "use_weighting": Change(True),
    "disable_dropout": Change(False),
    "precompute_ref_log_probs": Change(True),
}
TOKENS: dict[str, Change] = {"label_smoothing_factor": Change(0.1)}
CHANGES: dict[str, dict[str, Change]] = {
    "pretrain": {**TRAINING, **TOKENS, **PRETRAIN},
    "adapter": {**TRAINING, **TOKENS, **ROWS, **ORDER, **ADAPTER},
    "model": {**TRAINING, **TOKENS, **ROWS, **ORDER},
    "dpo": {
        **TRAINING, **ROWS, **ADAPTER, **DPO, "eval_max_tokens": Change(1, BATCHES),
        "columns": Change({"chosen": "good"}, data="objects"),
        "lora_dropout": Change(0.2, {"disable_dropout": False}),
    },
    "dpo-model": {
        **TRAINING, **ROWS, **DPO, "eval_max_tokens": Change(1, BATCHES),
        "columns": Change({"chosen": "good"}, data="objects"),
    },
}  # fmt: skip
WHOLE: dict[str, Change] = {
    "save_total_limit": Change(1, {"save_steps": 1, "max_steps": 2}),
    "load_best_model_at_end": Change(True, {"eval_steps": 1, "save_steps": 1, "max_steps": 2}, data="unseen"),
    "report_to": Change(["tensorboard"], {"max_steps": 1}),
    "metric_for_best_model": Change("eval_perplexity", {"eval_steps": 1, "max_steps": 1}),
    "greater_is_better": Change(True, {"eval_steps": 1, "max_steps": 1}),
    "neftune_noise_alpha": Change(5.0, {"max_steps": 1}),
}
"""Fields that take effect in the course of a training."""
ELSEWHERE = {
    "async_save": "engines/training/test_async_saves.py::test_files_and_steps_are_those_of_saves",
    "backend": "engines/training/test_unsloth.py::test_what_a_stage_says_reaches_unsloth",
    "name": "engines/test_host.py::test_a_warning_names_its_stage_and_attempt",
    "peak_tflops": "engines/training/test_documents_apart.py::test_the_utilization_of_the_device_is_counted",
    "kind": "engines/training/test_fields.py::test_a_field_changed_alone",
    "output": "engines/training/test_methods.py::test_all_weights_are_in_the_model_that_a_full_fine_tuning_leaves",
    "python": "cockpit/launching/test_interpreters.py::test_an_unusable_interpreter_is_refused",
    "devices": "cockpit/supervision/test_engine_environment.py::test_the_engine_sees_the_stage_s_devices",
    "use_liger_kernel": "engines/training/test_kernels.py::test_liger_needs_a_gpu",
    "torch_compile": "engines/training/test_kernels.py::test_compiled_layers_have_the_same_losses",
    "launch": "engines/ranks/test_two_processes.py::test_two_processes_train_as_one_does",
    "gate": "engines/test_host.py::test_a_failed_gate_refuses_the_output",
    "retry": "engines/training/test_fields.py::test_every_key_of_guards_and_retries",
    "start_from": "engines/training/test_beginning.py::test_finished_weights_start_a_new_training",
    "train_on_template": "engines/labels/test_stage_rows.py::test_each_field_reaches_the_rules",
    "train_sampling_strategy": "engines/training/test_fields.py::test_pairs_are_neither_packed_nor_grouped",
    "label_smoothing_factor": "engines/training/test_fields.py::test_pairs_are_neither_packed_nor_grouped",
    "packing": "engines/training/test_fields.py::test_pairs_are_neither_packed_nor_grouped",
}
"""Fields whose effect is not in what these engines build, and the begin of the name of the test that has it."""
NESTED = {
    "guards.grad_norm": "engines/training/test_fields.py::test_a_field_changed_alone",
    "guards.loss_spike": "engines/training/test_watch.py::test_a_spike_is_refused_before_the_weights_have_it",
    "guards.no_improvement": "engines/training/test_watch.py::test_a_training_without_improvement_saves_and_ends",
    "guards.no_improvement_on": "engines/training/test_watch.py::test_no_improvement_of_evaluations_counts_from",
    "guards.wall_clock_s": "engines/training/test_watch.py::test_a_training_whose_time_is_over_saves_and_stops",
    **{
        f"rope_parameters.{name}": "engines/training/test_decoders.py::test_losses_norms_and_rates_are_those_of"
        for name in RopeParameters.model_fields
    },
    "retry.max_attempts": "cockpit/schedule/test_scheduling.py::test_a_failed_attempt_is_retried_from_its_checkpoint",
    "retry.learning_rate_factor": "cockpit/schedule/test_scheduling.py::test_after_a_guard_the_retry_has_a_lower_rate",
    "retry.out_of_memory_halvings": "cockpit/schedule/test_memory_plan.py::test_halvings_are_those_that_the_recipe",
    "retry.warmup_steps": "engines/training/test_watch.py::test_after_two_tripped_guards_the_rate_rises_again",
}
"""The keys of tables, and the begin of the name of the test in which a value of each changes what happens."""
ALWAYS_REMOVED = {"learning_rate", "weight_decay", "target_modules", "beta", "truncation", "sample_prompts"}
"""Fields whose passage the short run removes too."""
SHARED = set(TrainingFields.model_fields) | set(FinetuneFields.model_fields) | set(PreferenceFields.model_fields)


def _cases() -> list[Any]:
    """Each field of each kind; a field that another kind has in the same class is there once in the short run."""
    seen: set[tuple[str, bool]] = set()
    cases = []
    for kind, changes in CHANGES.items():
        for name in changes:
            of_pairs = kind.startswith("dpo")
            again = name in SHARED and (name, of_pairs and name in ROWS) in seen
            again = again or (of_pairs and name in ADAPTER)
            seen |= {(name, of_pairs and name in ROWS)}
            cases.append(pytest.param(kind, name, id=f"{kind}-{name}", marks=[pytest.mark.thorough] if again else []))
    return cases


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The inputs, by the names that a change gives."""
    folder = tmp_path_factory.mktemp("fields")
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 2}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tiny, "SHAPE", {**shape, "num_hidden_layers": 1})
        models = {"": tiny.write_model(folder / "model"), "other model": tiny.write_model(folder / "other", seed=2)}
    rows = {
        "": tiny.write_messages(folder / "rows", rows=5, val=2),
        "more": tiny.write_messages(folder / "more", rows=6, val=2),
        "objects": _lines(folder / "objects", [{"task": "a?", "result": "b"}]),
        "some": _lines(folder / "some", [{"prompt": one, "completion": "b"} for one in ("a?", "c?")]),
        "odd key": _lines(folder / "odd", [{"prompt": "a?", "completion": "b", "audio": "x.wav"}]),
        "bad row": _lines(folder / "bad", [{"prompt": "a?", "completion": "b"}, {"prompt": 3, "completion": "b"}]),
        "latin": _lines(folder / "latin", [{"prompt": "caf\u00e9?", "completion": "b"}], "latin-1"),
        "turns": _lines(folder / "turns", [_talk("user", "assistant", "user", "assistant")]),
        "system": _lines(folder / "system", [_talk("system", "user", "assistant")]),
    }
    talk = [_turn("sure"), {"role": "user", "content": "b?"}, _turn("yes")]
    pairs = {
        "": write_pairs(folder / "pairs", rows=5, val=2),
        "more": write_pairs(folder / "more-pairs", rows=6, val=2),
        "objects": _lines(folder / "p-objects", [{"prompt": "a?", "good": "b", "rejected": "c"}]),
        "some": _lines(folder / "p-some", [{"prompt": one, "chosen": "b", "rejected": "c"} for one in ("a?", "c?")]),
        "odd key": _lines(folder / "p-odd", [{"prompt": "a?", "chosen": "b", "rejected": "c", "audio": "x.wav"}]),
        "bad row": _lines(folder / "p-bad", [_pair("a?"), {"prompt": 3, "chosen": "b", "rejected": "c"}]),
        "latin": _lines(folder / "p-latin", [_pair("caf\u00e9?")], "latin-1"),
        "turns": _lines(folder / "p-turns", [{"prompt": "a?", "chosen": talk, "rejected": [*talk[:2], _turn("no")]}]),
        "system": _lines(folder / "p-system", [{**_pair(""), "prompt": _talk("system", "user")["messages"]}]),
    }
    counts = {"train": 40 * 5 + 3, "val": 100}
    tokens = {
        "": tiny.write_tokens(folder / "tokens", counts),
        "more": tiny.write_tokens(folder / "more-tokens", {**counts, "train": 250}, seed=1),
    }
    tokens["unseen"] = tiny.write_tokens(folder / "unseen", counts)
    (tokens["unseen"] / "val.bin").write_bytes(b"\x04\x01" * 100)  # no training text has it, so its loss rises
    return {"model": models, "rows": rows, "pairs": pairs, "tokens": tokens}


def _lines(folder: Path, rows: list[Any], encoding: str = "utf-8") -> Path:
    folder.mkdir()
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows * 2)
    (folder / "train.jsonl").write_text(text, encoding=encoding)
    return folder


def _talk(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": f"{role} {n}"[-6:]} for n, role in enumerate(roles)]}


def _turn(answer: str) -> dict[str, str]:
    return {"role": "assistant", "content": answer}


def _pair(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": "b", "rejected": "c"}


def _inputs(kind: str, places: Mapping[str, Mapping[str, Path]], data: str) -> dict[str, Path | str]:
    names = {"pretrain": "tokens", "dpo": "pairs", "dpo-model": "pairs"}
    found: dict[str, Path | str] = {}
    if kind != "pretrain":
        found["model"] = places["model"].get(data, places["model"][""])
    of_kind = places[names.get(kind, "rows")]
    return {**found, "data": of_kind.get(data, of_kind[""])}


_known: dict[tuple[str, str], Any] = {}


def _unchanged(tmp_path: Path, kind: str, values: Mapping[str, Any], inputs: Mapping[str, Path | str]) -> Any:
    """What the engine builds of an unchanged stage: once for all fields that have the same."""
    key = (kind, repr((sorted(values.items()), inputs)))
    if key not in _known:
        _known[key] = _observed(tmp_path, kind, values, inputs)
    return _known[key]


def _observed(tmp_path: Path, kind: str, values: Mapping[str, Any], inputs: Mapping[str, Path | str]) -> Any:
    """What the engine builds, or why it refuses the stage."""
    try:
        return built(tmp_path, {key: v for key, v in values.items() if v is not None}, inputs)
    except OperatorError as error:
        return {"refused": error.message.replace(str(tmp_path), "")}


def _unchanged_value(kind: str, name: str, change: Change) -> Any:
    """The value of the field where it is not changed."""
    fields, base = STAGES[kind]
    given = {key: value for key, value in {**base, **change.given}.items() if value is not None}
    return getattr(fields.model_validate(given), name)


def _both(
    tmp_path: Path, places: Mapping[str, Mapping[str, Path]], kind: str, name: str, *, removed: bool = False
) -> tuple[Any, Any]:
    """What is built without and with the change; `removed`: with the passage of the field removed."""
    fields, base = STAGES[kind]
    change = CHANGES[kind][name]
    first = {**base, **change.given}
    as_input = name in ("data", "model")
    before = _inputs(kind, places, "" if as_input else change.data)
    after = before if removed and as_input else _inputs(kind, places, change.data)
    one = _unchanged(tmp_path / "one", kind, first, before)
    if not removed:
        return one, _observed(tmp_path / "two", kind, {**first, name: change.value}, after)
    with read_as(fields, name, _unchanged_value(kind, name, change)):
        return one, _observed(tmp_path / "two", kind, {**first, name: change.value}, after)


@pytest.mark.parametrize(("kind", "name"), _cases())
def test_a_field_changed_alone_changes_what_the_engine_builds(
    kind: str, name: str, tmp_path: Path, places: dict[str, dict[str, Path]]
) -> None:
    one, two = _both(tmp_path, places, kind, name)
    assert one != two
    assert "refused" not in two or name == "format", "the changed stage is one that can be trained"


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, id=f"{kind}-{name}", marks=[] if name in ALWAYS_REMOVED else [pytest.mark.thorough])
        for kind, changes in CHANGES.items()
        for name in changes
    ],
)
def test_without_the_passage_of_the_field_the_engine_builds_the_same_as_without_the_change(
    kind: str, name: str, tmp_path: Path, places: dict[str, dict[str, Path]]
) -> None:
    one, two = _both(tmp_path, places, kind, name, removed=True)
    assert [part for part in one if one[part] != two.get(part)] == []


def _done(tmp_path: Path, values: Mapping[str, Any], inputs: Mapping[str, Path | str]) -> Any:
    """What a whole training leaves: its checkpoints, its weights and the files of the reporters."""
    ctx = context(tmp_path, values, inputs)
    assert run_stage(ctx) is not None
    kept = sorted(path.name for path in ctx.checkpoints.iterdir())
    judged = [checkpoint.judged for checkpoint in scan_attempt(ctx.checkpoints)[0]]
    return kept, judged, tiny.weights_sha256(ctx.out), sorted(path.name[:6] for path in ctx.run_root.rglob("events.*"))


@pytest.mark.parametrize("name", WHOLE)
def test_a_field_changed_alone_changes_what_a_training_leaves(
    name: str, tmp_path: Path, places: dict[str, dict[str, Path]]
) -> None:
    fields, base = STAGES["pretrain"]
    first = {**base, **WHOLE[name].given}
    changed = {**first, name: WHOLE[name].value}
    inputs = _inputs("pretrain", places, WHOLE[name].data)
    one = _done(tmp_path / "one", first, inputs)
    assert _done(tmp_path / "two", changed, inputs) != one
    with read_as(fields, name, _unchanged_value("pretrain", name, WHOLE[name])):
        assert _done(tmp_path / "three", changed, inputs) == one


@pytest.mark.parametrize("kind", STAGES)
def test_every_field_of_a_stage_that_trains_has_its_proof(kind: str) -> None:
    fields, _ = STAGES[kind]
    proven = CHANGES[kind].keys() | WHOLE.keys()
    assert fields.model_fields.keys() - proven - ELSEWHERE.keys() == set()
    assert proven - fields.model_fields.keys() == set(), "no proof of a field that does not exist"


def test_pairs_are_neither_packed_nor_grouped_and_have_no_labels_of_tokens() -> None:
    for name, change in {**ORDER, **TOKENS}.items():
        with pytest.raises(ValueError, match=name):
            DpoStage.model_validate({**STAGES["dpo"][1], name: change.value})


def test_every_key_of_guards_and_retries_has_a_test_in_which_it_takes_effect() -> None:
    keys = {f"guards.{name}" for name in ModelGuards.model_fields} | {
        f"retry.{name}" for name in ModelRetry.model_fields
    }
    assert NESTED.keys() == keys | {f"rope_parameters.{name}" for name in RopeParameters.model_fields}
    for key, where in {**NESTED, **ELSEWHERE}.items():
        file, _, test = where.partition("::")
        assert test.removeprefix("test_"), f"{key}: any test would do"
        assert f"def {test}" in (Path(__file__).resolve().parents[2] / file).read_text(encoding="utf-8"), key
