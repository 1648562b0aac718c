"""Two processes train as one does at the same global batch, with DDP and with FSDP2, and resume each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.artifacts.manifest import read_manifest, verify_manifest
from tests.engines.preference.pairs import DPO, WHOLE, write_pairs
from tests.engines.ranks.together import PRINTED, Record, assert_same, launch
from tests.engines.training import tiny
from tests.engines.training.attempts import context, of_kind, run_stage

pytestmark = pytest.mark.torch

DDP, FSDP2 = {"processes": 2, "strategy": "ddp"}, {"processes": 2, "strategy": "fsdp2"}
PRETRAIN = {
    **tiny.PRETRAIN,
    "attention_dropout": 0.0,
    "gradient_accumulation_steps": 1,
    "max_steps": 24,
    "eval_steps": 8,
    "save_steps": 8,
    "sample_steps": 8,
    "sample_prompts": ["ab"],
    "sample_max_new_tokens": 4,
}
"""21 micro-batches an epoch, so 11 steps of two of them, the last with a filler."""
LORA = {**tiny.FINETUNE, "lora_dropout": 0.0, "gradient_accumulation_steps": 1, "eval_steps": 4}
OF_ADAPTERS = {"r", "lora_alpha", "lora_dropout"}
FULL = {"output": "model", **{name: value for name, value in LORA.items() if name not in OF_ADAPTERS}}
PAIRS = {**DPO, "gradient_accumulation_steps": 1, "eval_steps": 4, "per_device_eval_batch_size": 1}
JOBS: dict[str, dict[str, Any]] = {
    "ddp": {**PRETRAIN, "launch": DDP},
    "fsdp2": {**PRETRAIN, "launch": FSDP2},
    "accumulated": {**PRETRAIN, "launch": DDP, "gradient_accumulation_steps": 2},
    "accumulated-fsdp2": {
        **PRETRAIN,
        "launch": FSDP2,
        "gradient_accumulation_steps": 2,
        "gradient_checkpointing": True,
        "bf16": False,
    },
    "apart": {**PRETRAIN, "launch": FSDP2, "document_masking": True, "max_steps": 4},
    "bf16": {**PRETRAIN, "launch": DDP, "bf16": True, "max_steps": 4},
    "fp16": {**PRETRAIN, "launch": DDP, "fp16": True, "max_steps": 4},
    "bf16-fsdp2": {**PRETRAIN, "launch": FSDP2, "bf16": True, "max_steps": 4},
    "dropout": {**PRETRAIN, "launch": DDP, "attention_dropout": 0.1, "max_steps": 12},
    "lora": {**LORA, "launch": DDP},
    "full": {**FULL, "launch": DDP},
    "full-fsdp2": {**FULL, "launch": FSDP2},
    "packed": {**FULL, "launch": FSDP2, "packing": True, "max_steps": 3},
    "four-bits": {**LORA, "launch": DDP, "load_in_4bit": True, "max_steps": 4},
    "dpo": {**PAIRS, "launch": DDP},
    "dpo-of-pairs": {
        **WHOLE, "launch": DDP, "gradient_accumulation_steps": 1, "precompute_ref_log_probs": True, "eval_steps": 3,
        "max_steps": 3,
    },
    "nan": {**PRETRAIN, "launch": DDP},
    "full-disk": {**PRETRAIN, "launch": FSDP2},
    "no-evaluation": {**PRETRAIN, "launch": DDP, "save_steps": 100},
    "no-evaluation-of-pairs": {**PAIRS, "launch": DDP, "save_steps": 100},
    "waits": {**PRETRAIN, "launch": FSDP2, "async_save": False},
    "few": {**PRETRAIN, "launch": DDP, "per_device_train_batch_size": 64},
    "muon": {**PRETRAIN, "launch": DDP, "optim": "muon", "max_steps": 3},
    "best": {
        **PRETRAIN, "launch": FSDP2, "load_best_model_at_end": True, "greater_is_better": True, "eval_steps": 4,
        "save_steps": 4,
    },
}  # fmt: skip


def alone(stage: Mapping[str, Any]) -> dict[str, Any]:
    """The same training in one process: it accumulates what two processes compute."""
    accumulation = 2 * int(stage["gradient_accumulation_steps"])
    return {**{n: v for n, v in stage.items() if n != "launch"}, "gradient_accumulation_steps": accumulation}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    """The inputs of each kind of stage."""
    root = tmp_path_factory.mktemp("inputs")
    model = tiny.write_model(root / "model")
    return {
        "pretrain": {"data": tiny.write_tokens(root / "tokens", {"train": 16 * 42 + 3, "val": 100})},
        "finetune": {"model": model, "data": tiny.write_messages(root / "messages")},
        "dpo": {"model": model, "data": write_pairs(root / "pairs")},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, dict[str, Path]]) -> Path:
    """The records of all jobs in two ranks."""
    made = tmp_path_factory.mktemp("two")
    faults = {
        "nan": {"nan_loss": {"step": 3, "rank": 1}},
        "full-disk": {"disk_full": {"step": 8, "rank": 1}},
    }
    jobs = [
        {
            "name": name,
            "stage": stage,
            "inputs": {field: str(path) for field, path in inputs[stage["kind"]].items()},
            "faults": faults.get(name, {}),
            "no_evaluation_in": 1 if name.startswith("no-evaluation") else None,
        }
        for name, stage in JOBS.items()
    ]
    launch(made, jobs)
    return made


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, dict[str, Path]]) -> Callable[..., Any]:
    """Runs the same training in this process, once for all tests."""
    made: dict[str, Any] = {}

    def run(name: str) -> Any:
        if name not in made:
            stage = alone(JOBS[name])
            ctx = context(tmp_path_factory.mktemp(name), stage, inputs[stage["kind"]])
            made[name] = (ctx, run_stage(ctx))
        return made[name]

    return run


def steps_of(ctx: Any) -> list[dict[str, Any]]:
    from engines.events.steps import Step

    return [msgspec.to_builtins(step) for step in of_kind(ctx, Step)]


def test_the_libraries_advise_nothing(folder: Path) -> None:
    """Each of these lines is in the console file of every training of several processes."""
    printed = (folder / PRINTED).read_text()
    assert "parallel_mode" not in printed
    assert "broadcast_buffers" not in printed


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("ddp", "ddp"),
        ("fsdp2", "ddp"),
        ("accumulated", "accumulated"),
        ("accumulated-fsdp2", "accumulated"),
        ("apart", "apart"),
        ("lora", "lora"),
        ("full", "full"),
        ("full-fsdp2", "full"),
        ("packed", "packed"),
        ("fp16", "fp16"),
        ("four-bits", "four-bits"),
        ("dpo", "dpo"),
        ("dpo-of-pairs", "dpo-of-pairs"),
    ],
)
def test_two_processes_train_as_one_does(folder: Path, one: Callable[..., Any], name: str, like: str) -> None:
    from engines.events.results import Evaluated

    ctx, result = one(like)
    found = Record(folder, name)
    assert not found.error
    assert_same(found.steps, steps_of(ctx), 1e-5 if name.startswith(("four", "dpo")) else 1e-6)
    evaluated = of_kind(ctx, Evaluated)
    assert [one["step"] for one in found.of("evaluated")] == [other.step for other in evaluated]
    for mine, other in zip(found.of("evaluated"), evaluated, strict=True):
        assert math.isclose(mine["loss"], other.loss or 0.0, rel_tol=1e-5)
        assert mine["tokens"] == other.tokens
    for metric in ("tokens", "loss_tokens", "parameters", "trainable_parameters", "examples", "steps"):
        assert found.metrics[metric] == result.metrics[metric]


def test_both_strategies_have_the_same_numbers_and_say_which_they_are(folder: Path) -> None:
    for ddp, fsdp2 in (("ddp", "fsdp2"), ("full", "full-fsdp2"), ("bf16", "bf16-fsdp2")):
        assert_same(Record(folder, fsdp2).steps, Record(folder, ddp).steps, 1e-6)
        for name in (ddp, fsdp2):
            [placed] = Record(folder, name).of("ranks_placed")
            assert (placed["world_size"], placed["strategy"]) == (2, JOBS[name]["launch"]["strategy"])
            assert placed["devices"] == ["cpu", "cpu"]


def test_the_first_process_alone_writes_what_all_have_in_common(folder: Path) -> None:
    for name in ("ddp", "fsdp2"):
        first, second = Record(folder, name), Record(folder, name, 1)
        assert first.checkpoint(8).is_dir()
        assert [path.name for path in first.out.iterdir() if path.name == "model.safetensors"]
        assert list(second.out.iterdir()) == []
        shared = ("step", "evaluated", "sampled_text", "checkpoint_committed", "steps_planned")
        assert second.of("rank_report")
        assert [second.of(kind) for kind in shared] == [[]] * len(shared)
        assert len(first.of("sampled_text")) == 3


def optimizer_state(checkpoint: Path) -> dict[str, Any]:
    """The state of the optimizer in a checkpoint, in shards or not."""
    import torch

    from engines.artifacts.sharded import is_in_shards
    from engines.training.saves.shards import Shards

    if not is_in_shards(checkpoint):
        return dict(torch.load(checkpoint / "optimizer.pt", weights_only=True))
    shards = Shards(checkpoint)
    state: dict[int, dict[str, Any]] = {}
    for _, number, key in (name.split("/") for name in shards.names if name.startswith("optimizer/")):
        state.setdefault(int(number), {})[key] = shards.read(f"optimizer/{number}/{key}")
    return {"state": state, "param_groups": json.loads((checkpoint / "shards" / "training.json").read_text())["groups"]}


def test_each_of_two_divided_processes_has_written_about_half_of_a_checkpoint(folder: Path) -> None:
    checkpoint = Record(folder, "fsdp2").checkpoint(16)
    sizes = [path.stat().st_size for path in sorted((checkpoint / "shards").glob("shard-*.safetensors"))]
    assert len(sizes) == 2
    assert max(sizes) < 1.1 * min(sizes)
    assert sorted(path.name for path in (checkpoint / "shards").glob("*.json")) == ["shards.json", "training.json"]
    assert list(checkpoint.glob("*.safetensors")) == [], "no program takes a part for the whole"
    assert verify_manifest(checkpoint) == []


def test_a_process_that_cannot_write_is_named_and_the_training_continues_without_that_checkpoint(folder: Path) -> None:
    found = Record(folder, "full-disk")
    assert not found.error
    warned = [one["message"] for one in found.of("warned") if "could not be written" in one["message"]]
    assert len(warned) == 1
    assert "checkpoint at step 8 could not be written (rank 1: No space left" in warned[0].replace("[Errno 28] ", "")
    kept = sorted(path.name for path in found.checkpoint(16).parent.iterdir())
    assert kept == ["step-16", "step-24"], "nothing partial is left"
    assert verify_manifest(found.checkpoint(16)) == []
    assert_same(found.steps, Record(folder, "fsdp2").steps, 1e-6)


def test_a_save_that_the_training_waits_for_has_the_files_of_one_beside_it(folder: Path) -> None:
    waits, beside = Record(folder, "waits"), Record(folder, "fsdp2")
    assert waits.of("checkpoint_staged") == []
    assert [one["step"] for one in beside.of("checkpoint_staged")] == [8, 16, 24]
    for file in sorted((beside.checkpoint(8) / "shards").iterdir()):
        assert (
            waits.checkpoint(8) / "shards" / file.name
        ).read_bytes() == file.read_bytes() or file.name == "training.json"


@pytest.mark.parametrize("name", ["fsdp2", "full-fsdp2"])
def test_consolidated_weights_have_the_bytes_of_the_gathered_ones(folder: Path, tmp_path: Path, name: str) -> None:
    from engines.artifacts.consolidate import consolidate

    found = Record(folder, name)
    last = int(found.metrics["steps"])
    size = consolidate(found.checkpoint(last), tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == (found.out / "model.safetensors").read_bytes()
    for file in ("config.json", "generation_config.json"):
        assert (tmp_path / "model" / file).read_bytes() == (found.out / file).read_bytes(), file
    assert (tmp_path / "model" / "tokenizer_config.json").is_file()
    assert size == sum(path.stat().st_size for path in (tmp_path / "model").iterdir() if path.name != "manifest.json")
    assert verify_manifest(tmp_path / "model") == []


def test_weights_and_optimizer_are_those_of_one_process(folder: Path, one: Callable[..., Any]) -> None:
    import torch
    from safetensors.torch import load_file

    ctx, _ = one("ddp")
    whole = load_file(ctx.out / "model.safetensors")
    state = torch.load(ctx.checkpoints / "step-16" / "optimizer.pt", weights_only=True)
    for name in ("ddp", "fsdp2"):
        found = load_file(Record(folder, name).out / "model.safetensors")
        assert found.keys() == whole.keys()
        for key, value in whole.items():
            assert torch.allclose(found[key], value, rtol=1e-4, atol=1e-5), key
        other = optimizer_state(Record(folder, name).checkpoint(16))
        assert other["param_groups"][0].keys() == state["param_groups"][0].keys()
        for number, values in state["state"].items():
            for key, value in values.items():
                assert torch.allclose(other["state"][number][key], value, rtol=1e-4, atol=1e-6), (number, key)


def test_a_loss_that_is_not_finite_in_one_process_ends_all_at_that_step_and_names_it(folder: Path) -> None:
    first, second = Record(folder, "nan"), Record(folder, "nan", 1)
    assert first.error == second.error
    assert "at step 3: nan, from rank 1 of 2; the step was not applied" in first.error
    assert [trip["step"] for trip in first.of("guard_tripped")] == [3]
    assert second.of("guard_tripped") == []


@pytest.mark.parametrize("name", ["no-evaluation", "no-evaluation-of-pairs"])
def test_memory_that_takes_no_evaluation_in_one_process_ends_all_and_their_steps_are_saved(
    folder: Path, name: str
) -> None:
    first, second = Record(folder, name), Record(folder, name, 1)
    assert first.error == second.error == "EvaluationMemoryError: memory ran out in an evaluation"
    assert [trip["guard"] for trip in first.of("guard_tripped")] == ["out_of_memory"]
    last = first.steps[-1]["step"]
    assert [one["step"] for one in first.of("checkpoint_committed")] == [last]
    assert read_manifest(first.checkpoint(last))["position"]["evaluation_due"]


def test_fewer_micro_batches_than_processes_are_refused(folder: Path) -> None:
    assert "an epoch has 1 micro-batches of 64, and 2 processes each need one" in Record(folder, "few").error


def test_muon_and_the_best_checkpoint_work_in_two_processes(folder: Path, one: Callable[..., Any]) -> None:
    assert_same(Record(folder, "muon").steps, steps_of(one("muon")[0]), 1e-5)
    best = Record(folder, "best")
    assert best.metrics["output_step"] == one("best")[1].metrics["output_step"] < 24
    assert math.isclose(best.metrics["eval_loss"], one("best")[1].metrics["eval_loss"], rel_tol=1e-4)


@pytest.fixture(scope="module")
def resumed(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, inputs: dict[str, dict[str, Path]]
) -> tuple[dict[str, Any], Path]:
    """Each training resumed in one process at step 8, and that one in two processes at step 16."""
    from engines.artifacts.manifest import manifest_sha256
    from engines.context import ResumePoint

    once: dict[str, Any] = {}
    jobs = []
    for name in ("ddp", "fsdp2", "dropout"):
        point = Record(folder, name).checkpoint(8)
        stage = alone(JOBS[name])
        resume = ResumePoint(1, 8, point, manifest_sha256(point))
        ctx = context(tmp_path_factory.mktemp(name), stage, inputs["pretrain"], attempt=2, resume=resume)
        run_stage(ctx)
        once[name] = ctx
        given = {field: str(path) for field, path in inputs["pretrain"].items()}
        again = {"stage": JOBS[name], "inputs": given, "attempt": 3}
        if name != "dropout":
            jobs.append({**again, "name": name, "resume": str(ctx.checkpoints / "step-16")})
        jobs.append({**again, "name": f"{name}-straight", "resume": str(point)})
    two = tmp_path_factory.mktemp("again")
    given = {field: str(path) for field, path in inputs["pretrain"].items()}
    of_ddp, of_fsdp2 = (str(Record(folder, name).checkpoint(8)) for name in ("ddp", "fsdp2"))
    as_ddp, as_fsdp2 = ({"inputs": given, "stage": JOBS[name]} for name in ("ddp", "fsdp2"))
    between = str(two / "fsdp2-ddp" / "rank0" / "run" / "stages" / "base" / "3" / "checkpoints" / "step-16")
    jobs += [
        {**as_ddp, "name": "fsdp2-ddp", "attempt": 3, "resume": of_fsdp2},
        {**as_fsdp2, "name": "fsdp2-ddp-fsdp2", "attempt": 4, "resume": between},
        {**as_fsdp2, "name": "ddp-fsdp2", "attempt": 3, "resume": of_ddp},
    ]
    files = {field: str(path) for field, path in inputs["finetune"].items()}
    saved = str(Record(folder, "full-fsdp2").checkpoint(6))
    jobs.append({"name": "full", "stage": JOBS["full-fsdp2"], "inputs": files, "attempt": 2, "resume": saved})
    launch(two, jobs)
    return once, two


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_then_one_then_two_processes_continue_as_if_nothing_had_changed(
    folder: Path, resumed: tuple[dict[str, Any], Path], name: str
) -> None:
    once, again = resumed
    whole = Record(folder, name).steps
    assert_same(steps_of(once[name]), whole[8:], 1e-6)
    assert_same(Record(again, name).steps, whole[16:], 1e-6)
    assert_same(Record(again, f"{name}-straight").steps, whole[8:], 1e-6)
    warned = " ".join(warning["message"] for warning in Record(again, name).of("warned"))
    assert "world_size was 1, now 2" in warned


@pytest.mark.parametrize(
    ("name", "like", "first", "said"),
    [
        ("fsdp2-ddp", "fsdp2", 8, "strategy was fsdp2, now ddp"),
        ("fsdp2-ddp-fsdp2", "fsdp2", 16, "strategy was ddp, now fsdp2"),
        ("ddp-fsdp2", "ddp", 8, "strategy was ddp, now fsdp2"),
        ("full", "full-fsdp2", 6, ""),
    ],
)
def test_a_checkpoint_of_one_strategy_continues_with_the_other(
    folder: Path, resumed: tuple[dict[str, Any], Path], name: str, like: str, first: int, said: str
) -> None:
    found = Record(resumed[1], name)
    assert not found.error
    assert_same(found.steps, Record(folder, like).steps[first:], 1e-6)
    warned = [warning["message"] for warning in found.of("warned") if "results may differ" in warning["message"]]
    assert [said in one for one in warned] == ([True] if said else []), "in one line"


def test_a_resume_in_as_many_processes_draws_the_same_random_numbers(
    folder: Path, resumed: tuple[dict[str, Any], Path]
) -> None:
    whole, straight = Record(folder, "dropout"), Record(resumed[1], "dropout-straight")
    assert [step["loss"] for step in straight.steps] == [step["loss"] for step in whole.steps[8:]]
    assert (whole.checkpoint(8) / "rng_state_1.pth").is_file()
