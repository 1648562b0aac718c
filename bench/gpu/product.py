"""The product on the large shapes: `cockpit run`, with nothing set that an operator would not set."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from bench.gpu import runs
from bench.gpu.material import model_folder, random_shards, read_labelled, rows_folder
from bench.gpu.place import GATE, RAW, SLOW, SMOKE
from bench.gpu.shapes import PROJECTIONS, RANK, pretraining, tuning
from engines.run_dir.paths import RunDir


def gated(name: str, first_profiled: int | None) -> dict[str, str]:
    """The environment of a run that waits for its turn, and is profiled after this step."""
    for old in RAW.glob(f"profile-{name}.*"):
        old.unlink()
    found = {"TRIAL_GATE": name, "TRIAL_GATE_FOLDER": str(GATE)}
    if first_profiled is not None:
        found |= {"TRIAL_PROFILE": str(RAW / f"profile-{name}"), "TRIAL_PROFILE_AFTER": str(first_profiled)}
    return found


def tune(name: str, shape: str, **more: Any) -> dict[str, Any]:
    """LoRA on seven matrices; it saves and evaluates in the middle."""
    job = tuning(shape, smoke=SMOKE)
    stage: dict[str, Any] = {
        "name": "tuned",
        "kind": "finetune",
        "model": str(model_folder(shape)),
        "data": str(rows_folder(shape)),
        "max_length": job.high,
        "per_device_train_batch_size": job.batch,
        "gradient_accumulation_steps": job.accumulation,
        "max_steps": job.steps,
        "learning_rate": 1e-4,
        "r": RANK,
        "lora_alpha": 32.0,
        "target_modules": list(PROJECTIONS),
        "save_steps": job.warm + 4,
        "eval_steps": job.warm + 4,
    }
    if more.get("packing"):  # a sequence has about two rows
        stage["gradient_accumulation_steps"] = max(1, job.accumulation // 2)
    stage |= more
    profiled = job.counted if job.steps >= job.counted + 3 else None
    child = runs.start(name, [stage], **gated(name, profiled))
    events = _followed(name, child, "tuned", job.steps, compiled=bool(more.get("torch_compile")), keep=True)
    found = runs.rate(events, "tuned", job.warm, job.counted)
    rows = read_labelled(shape)
    lengths = [len(ids) for ids, _ in rows]
    if "tokens" in found:
        found["flop"] = job.shape.flop(lengths, lora=True) / sum(lengths) * found["tokens"]
    return found


def pretrain(name: str, shape: str, **more: Any) -> dict[str, Any]:
    job = pretraining(shape, smoke=SMOKE)
    data = random_shards(job.shape.vocab_size, (job.steps + 2) * job.tokens)
    stage: dict[str, Any] = dict(
        name="base",
        kind="pretrain",
        data=str(data),
        bf16=True,
        max_length=job.length,
        per_device_train_batch_size=job.batch,
        gradient_accumulation_steps=job.accumulation,
        max_steps=job.steps,
        learning_rate=3e-4,
        weight_decay=0.1,
        adam_beta2=0.95,
        save_steps=10_000,
        **job.shape.fields(vocabulary=False),
    )
    stage |= more
    child = runs.start(name, [stage], **gated(name, job.counted if job.steps >= job.counted + 3 else None))
    events = _followed(name, child, "base", job.steps, compiled=bool(more.get("torch_compile")), keep=False)
    found = runs.rate(events, "base", job.warm, job.counted)
    if "tokens" in found:
        found["flop"] = job.shape.flop([job.length], lora=False) / job.length * found["tokens"]
    return found


def _followed(name: str, child: Any, stage: str, step: int, *, compiled: bool, keep: bool) -> runs.Events:
    """The run's records when it has ended, or when its last step is there and what follows does not matter."""
    while not (GATE / f"{name}.go").exists() and child.poll() is None:
        time.sleep(0.05)
    runs.wait_for_step(name, child, stage, step, (110 if compiled else 60) * SLOW)
    profile = RAW / f"profile-{name}.json"
    until = time.monotonic() + 10
    while profile.with_suffix(".cpu.txt").exists() and not profile.exists() and time.monotonic() < until:
        time.sleep(0.05)  # its last step is over, and what it found is being written
    if keep:
        runs.finish(child, 25)
    events = runs.journal(name)
    runs.end_engine(events, stage)
    runs.finish(child, 10)
    events = runs.journal(name)
    out = RAW
    shutil.copyfile(RunDir(runs.root_of(name)).journal, out / f"journal-{name}.jsonl")
    for console in runs.consoles(name):
        shutil.copyfile(console, out / f"console-{name}-{console.parent.name}.log")
    if not runs.losses(events, stage):
        raise RuntimeError("no step: " + runs.why_failed(name))
    if not keep:
        for checkpoint in Path(runs.root_of(name)).rglob("*.safetensors"):
            checkpoint.unlink()
    return events


def told(name: str, stage: str) -> dict[str, Any]:
    """What a run's journal says besides its rate."""
    events = runs.journal(name)
    return {
        "moments": runs.moments(events, stage),
        "warnings": [one["message"] for one in runs.of_kind(events, "warned")][:8],
        "devices": [one["devices"] for one in runs.of_kind(events, "devices_used")][:1],
        "setup": [one["name"] for one in runs.of_kind(events, "phase") if "products in" in one["name"]][:1],
        "evaluated": [[one.get("step"), one.get("loss")] for one in runs.of_kind(events, "evaluated")],
        "ends": [[one.get("reason"), one.get("detail", "")[:300]] for one in runs.of_kind(events, "attempt_ended")],
        **runs.card_samples(events),
    }
