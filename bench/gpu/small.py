"""A small model's whole way on the card, and what it must agree with: the CPU, itself a second time, itself resumed."""

from __future__ import annotations

import shutil
import time
from typing import Any

from bench.gpu import runs
from bench.gpu.material import output_of
from bench.gpu.place import RAW, SLOW, SMOKE, WORK
from engines.run_dir.paths import RunDir

BASE_STEPS, TUNED_STEPS = (60, 20) if SMOKE else (300, 40)
FEW = {"OMP_NUM_THREADS": "2"}
"""Several of these runs go on at once."""
ON_CPU = {"CUDA_VISIBLE_DEVICES": ""}
EXACT: dict[str, Any] = {"bf16": False, "float32_matmul_precision": "highest"}
"""Float32 on both sides: else the card computes in TF32 and bfloat16."""
AGREED_STEPS = 30


def base_stage(**more: Any) -> dict[str, Any]:
    every = BASE_STEPS // 3
    return {
        "name": "base",
        "kind": "pretrain",
        "data": str(output_of("shards")),
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_length": 128,
        "per_device_train_batch_size": 4,
        "max_steps": BASE_STEPS,
        "learning_rate": 5e-4,
        "warmup_steps": 10,
        "save_steps": every,
        "eval_steps": every,
        "eval_max_tokens": 4000,
    } | more


def tuned_stage(**more: Any) -> dict[str, Any]:
    return {
        "name": "tuned",
        "kind": "finetune",
        "model": "base",
        "data": str(output_of("questions")),
        "max_length": 128,
        "max_steps": TUNED_STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-4,
        "r": 8,
        "lora_dropout": 0.1,
        "save_steps": 10,
        "eval_steps": 20,
        "eval_max_tokens": 2000,
    } | more


def whole_way() -> dict[str, Any]:
    """Pretraining, LoRA, merge, evaluation with answers, GGUF; in float32."""
    rest: list[dict[str, Any]] = [
        {"name": "merged", "kind": "merge", "model": "base", "adapter": "tuned"},
        {
            "name": "after",
            "kind": "evaluate",
            "model": "merged",
            "data": str(output_of("questions")),
            "split": "test",
            "max_length": 128,
            "max_tokens": 2000,
            "answers": 2,
            "max_new_tokens": 16,
        },
        {
            "name": "gguf",
            "kind": "export",
            "model": "merged",
            "data": str(output_of("corpus")),
            "file_types": ["F16", "Q8_0"],
            "parity_positions": 256,
            "max_length": 128,
        },
    ]
    return done("whole", [base_stage(**EXACT), tuned_stage(**EXACT, lora_dropout=0.0), *rest])


def on_cpu() -> dict[str, Any]:
    stages = [base_stage(**EXACT, threads=4), tuned_stage(**EXACT, lora_dropout=0.0, threads=4)]
    return done("oncpu", stages, **ON_CPU)


def done(name: str, stages: list[dict[str, Any]], **changes: str) -> dict[str, Any]:
    """A run to its end."""
    code = runs.finish(runs.start(name, stages, **(FEW | changes)), 100)
    return ended(name, code)


def ended(name: str, code: int | None) -> dict[str, Any]:
    events = runs.journal(name)
    shutil.copyfile(RunDir(runs.root_of(name)).journal, RAW / f"journal-{name}.jsonl")
    found: dict[str, Any] = {
        "exit": code,
        "succeeded": [one["stage"] for one in runs.of_kind(events, "stage_succeeded")],
        "warnings": [one["message"][:300] for one in runs.of_kind(events, "warned")][:8],
        "devices": [one["devices"] for one in runs.of_kind(events, "devices_used")][:1],
        "setup": [one["name"] for one in runs.of_kind(events, "phase") if "products in" in one["name"]],
        "evaluated": [[one["stage"], one.get("step"), one.get("loss")] for one in runs.of_kind(events, "evaluated")],
    }
    if code != 0:
        found["why"] = runs.why_failed(name)
    return found


def killed(name: str, stages: list[dict[str, Any]], **changes: str) -> dict[str, Any]:
    """A run whose engine is killed in the middle of each training, and resumed."""
    changes = FEW | changes
    child = runs.start(name, stages, **changes)
    told: list[Any] = []
    code = None
    for stage, step in (("base", BASE_STEPS // 2), ("tuned", TUNED_STEPS * 5 // 8)):
        if stage not in [one["name"] for one in stages]:
            continue
        events = runs.wait_for_step(name, child, stage, step, 60 * SLOW)
        pid = runs.end_engine(events, stage)
        code = runs.finish(child, 30)
        told.append([stage, max(runs.losses(runs.journal(name), stage), default=None), pid, code])
        child = runs.cockpit("resume", str(runs.root_of(name)), "--quiet", log=WORK / f"{name}.log", **changes)
        time.sleep(0.2)
    code = runs.finish(child, 60)
    started = runs.of_kind(runs.journal(name), "attempt_started")
    points = [[one["stage"], one["resumed_from"]["step"]] for one in started if one.get("resumed_from")]
    return {**ended(name, code), "kills": told, "resumed_from": points}


def narrow(**more: Any) -> list[dict[str, Any]]:
    """Both trainings as a card of today would do them."""
    return [base_stage(bf16=True, **more), tuned_stage(**more)]


def tuned_alone(name: str, *, kill: bool = False, **more: Any) -> dict[str, Any]:
    """LoRA over the base model of the whole way."""
    stages = [tuned_stage(model=str(output_of("base", "whole")), **more)]
    return killed(name, stages) if kill else done(name, stages)


def four_bits() -> dict[str, Any]:
    """A 4-bit base on the card and on the CPU, in float32, over one and the same base model."""
    base = _base_of_the_whole_way()
    stage = tuned_stage(**EXACT, lora_dropout=0.0, model=base, load_in_4bit=True)
    here = done("fourbits", [stage])
    there = done("fourbitscpu", [{**stage, "threads": 4}], **ON_CPU)
    return {"on the card": here, "on the CPU": there, **against("fourbits", "fourbitscpu", ["tuned"])}


def _base_of_the_whole_way() -> str:
    """The base model of a run that may go on meanwhile."""
    until = time.monotonic() + 70 * SLOW
    while time.monotonic() < until:
        if runs.of_kind(runs.journal_so_far("whole"), "stage_succeeded", "base"):
            return str(output_of("base", "whole"))
        time.sleep(0.1)
    raise RuntimeError("the whole way has no base model")


def preferences() -> dict[str, Any]:
    stage = dict(
        name="tuned",
        kind="dpo",
        model=_base_of_the_whole_way(),
        data=str(WORK / "pairs"),
        max_length=128,
        max_steps=TUNED_STEPS,
        per_device_train_batch_size=4,
        learning_rate=5e-4,
        r=8,
        save_steps=10,
        eval_steps=20,
        **EXACT,
    )
    here = done("pairs", [stage])
    there = done("pairscpu", [{**stage, "threads": 4}], **ON_CPU)
    return {"on the card": here, "on the CPU": there, **against("pairs", "pairscpu", ["tuned"])}


def too_large() -> dict[str, Any]:
    """A card of 1 GiB, and a micro-batch that needs several times that."""
    stage = base_stage(
        per_device_train_batch_size=256,
        gradient_accumulation_steps=1,
        max_steps=6,
        save_steps=3,
        eval_steps=3,
        retry={"max_attempts": 2},
        **EXACT,
    )
    found = done("toolarge", [stage], TRIAL_MEMORY_GIB="0" if SMOKE else "1")
    return {**found, **attempts("toolarge")}


def attempts(name: str) -> dict[str, Any]:
    events = runs.journal(name)
    return {
        "attempts": [[one["attempt"], one.get("resumed_from")] for one in runs.of_kind(events, "attempt_started")],
        "ends": [[one.get("reason"), one.get("detail", "")[:200]] for one in runs.of_kind(events, "attempt_ended")],
        "adjusted": [one.get("adjusted", []) for one in runs.of_kind(events, "stage_started")],
        "losses": runs.losses(events, "base"),
    }


def against(one: str, other: str, stages: list[str]) -> dict[str, Any]:
    """Losses and gradient norms of two runs."""
    first, second = runs.journal_so_far(one), runs.journal_so_far(other)
    found = {}
    for stage in stages:
        if not runs.losses(first, stage) or not runs.losses(second, stage):
            continue
        found[f"{stage}: {one} and {other}"] = {
            "loss, first steps": runs.apart(runs.losses(first, stage), runs.losses(second, stage), AGREED_STEPS),
            "loss": runs.apart(runs.losses(first, stage), runs.losses(second, stage)),
            "gradient norm": runs.apart(runs.norms(first, stage), runs.norms(second, stage)),
        }
    return found


def comparison() -> dict[str, Any]:
    """Every pair of runs that should be the same, or nearly."""
    both = ["base", "tuned"]
    found: dict[str, Any] = {}
    for one, other in (
        ("whole", "oncpu"),
        ("whole", "floatkilled"),
        ("narrow", "narrowagain"),
        ("narrow", "narrowkilled"),
        ("fixed", "fixedagain"),
        ("fixed", "fixedkilled"),
        ("alone", "aloneagain"),
        ("alone", "alonekilled"),
        ("aloneexact", "alonecpu"),
    ):
        found |= against(one, other, both)
    for name in ("whole", "narrow", "fixed"):
        for stage in both:
            steps = runs.of_kind(runs.journal_so_far(name), "step", stage)
            if not steps:
                continue
            found[f"{stage}: steps a second, {name}"] = round(
                len(steps) / max(1e-9, sum(one["step_s"] for one in steps)), 1
            )
    return found
