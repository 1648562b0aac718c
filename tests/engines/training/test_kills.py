"""An engine that is killed with -9 anywhere, again and again, trains what an uninterrupted one trains, bit for bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.checkpoints import scan
from engines.artifacts.manifest import manifest_sha256, verify_manifest
from engines.events.event import Event
from engines.events.results import Evaluated
from engines.events.runs import StageSucceeded
from engines.events.steps import Step
from engines.journal import read_journal
from engines.run_dir.paths import RunDir
from engines.stage_file import StageFile, StageInput, StageResume, write_stage_file
from recipes.stages.registry import STAGE_TYPES, tag_of_table
from tests.engines.preference.pairs import DPO, write_pairs
from tests.engines.training.tiny import FINETUNE, PRETRAIN, weights_sha256

pytestmark = pytest.mark.torch

ROOT = Path(__file__).resolve().parents[3]
STAGE: dict[str, Any] = {
    **FINETUNE,
    "gradient_accumulation_steps": 3,
    "max_steps": 24,
    "warmup_steps": 3.0,
    "weight_decay": 0.1,
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_steps": 3,
    "per_device_eval_batch_size": 2,
}
LORA = ("r", "lora_alpha", "lora_dropout")
METHODS: dict[str, dict[str, Any]] = {
    "full": {**{key: value for key, value in STAGE.items() if key not in LORA}, "output": "model"},
    "lora": STAGE,
    "packed": {**STAGE, "packing": True, "max_length": 100, "per_device_train_batch_size": 1},
    "lora-fp16": {**STAGE, "fp16": True},
    "full-fp16": {**{key: value for key, value in STAGE.items() if key not in LORA}, "output": "model", "fp16": True},
    "qlora": {**STAGE, "load_in_4bit": True, "optim": "adamw_8bit", "gradient_checkpointing": True},
    "dpo": {**STAGE, **{key: DPO[key] for key in ("name", "kind", "data")}, "disable_dropout": False},
    "dpo-model": {
        **{key: value for key, value in STAGE.items() if key not in LORA},
        **{key: DPO[key] for key in ("name", "kind", "data")},
        "output": "model",
    },
}
PRETRAINED: dict[str, Any] = {
    **PRETRAIN,
    "gradient_accumulation_steps": 3,
    "max_steps": 24,
    "num_train_epochs": 40.0,
    "weight_decay": 0.1,
    "bf16": True,
    "dataloader_num_workers": 1,
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_steps": 3,
}
"""With dropout, windows of several micro-batches, a process that loads data, and epochs of a few steps."""
IN_FLIGHT: list[tuple[str, int, int]] = [
    ("staging", 2, 1),
    ("staging", 2, 9),
    ("in-flight", 2, 1),
    ("in-flight", 2, 4),
    ("fsync", 2, 3),
    ("save", 2, 9),
    ("committed", 2, 1),
    ("in-flight", 4, 2),
    ("in-flight", 4, 8),
    ("fsync", 4, 9),
    ("staging", 6, 20),
    ("fsync", 6, 5),
    ("rotation", 6, 1),
    ("in-flight", 8, 6),
    ("fsync", 10, 1),
    ("in-flight", 10, 7),
    ("save", 14, 3),
    ("in-flight", 16, 5),
    ("staging", 18, 2),
    ("in-flight", 22, 1),
]
"""Twenty deaths with a checkpoint on its way: in its copy, in its files before and after a step, in its syncs. A step
that is evaluated waits for its checkpoint, so none of these is in flight over the next step."""
POINTS: list[tuple[str, int, int]] = [
    ("loaded", 1, 1),
    ("micro-batch", 1, 2),
    ("applied", 1, 1),
    ("reported", 2, 1),
    ("save", 2, 1),
    ("save", 2, 5),
    ("save", 2, 12),
    ("committed", 2, 1),
    ("loaded", 3, 1),
    ("evaluation", 3, 1),
    ("evaluation", 3, 2),
    ("micro-batch", 4, 1),
    ("torn", 5, 1),
    ("rotation", 6, 1),
    ("applied", 8, 1),
    ("micro-batch", 10, 2),
    ("save", 14, 8),
    ("evaluation", 18, 2),
    ("reported", 23, 1),
    ("output", 24, 2),
]
"""Place, step and count, as `killed_engine` has them: twenty deaths of one stage, one after the other."""


class Engines:
    """Attempts of stages in processes of their own; all read the same inputs."""

    def __init__(self, process: subprocess.Popen[str], inputs: Mapping[str, Path]) -> None:
        self._process = process
        self._inputs = inputs

    def run(self, run: RunDir, stage: Mapping[str, Any], kill: tuple[str, int, int] | None = None) -> int:
        """Run one more attempt from the newest complete checkpoint; its exit code."""
        tag = tag_of_table(dict(stage))
        assert tag is not None
        name = stage["name"]
        attempts = [0, *run.attempts(name)]
        complete, _ = scan(run.stage_dir(name)) if run.stage_dir(name).exists() else ([], [])
        newest = max(complete, key=lambda one: (one.step, one.attempt), default=None)
        resume = None
        if newest is not None:
            assert verify_manifest(newest.path) == []
            resume = StageResume(attempt=newest.attempt, step=newest.step, path=str(newest.path), sha256=newest.sha256)
        content = StageFile(
            run_root=str(run.root),
            tag=tag,
            stage=STAGE_TYPES[tag].model_validate(dict(stage)).model_dump(mode="json"),
            attempt=attempts[-1] + 1,
            inputs={field: self._input(field) for field in self._inputs},
            resume=resume,
            first_start="2026-01-01T00:00:00",
        )
        path = run.stage_json(name, content.attempt)
        path.parent.mkdir(parents=True)
        run.control.mkdir(exist_ok=True)
        write_stage_file(path, content)
        wanted = None if kill is None else dict(zip(("at", "step", "count"), kill, strict=True))
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"stage_json": str(path), "kill": wanted}) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def _input(self, field: str) -> StageInput:
        path = self._inputs[field]
        known = manifest_sha256(path) if (path / "manifest.json").exists() else None
        return StageInput(origin="path", name=path.name, path=str(path), manifest_sha256=known)


@contextmanager
def engines(folder: Path, inputs: Mapping[str, Path], *modules: str) -> Iterator[Engines]:
    """A process that has loaded these modules, and forks an engine for each attempt."""
    program = Path(__file__).with_name("killed_engine.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (folder / "engines.log").open("w") as log:
        command = [sys.executable, str(program), *modules]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        with subprocess.Popen(command, **pipes, text=True, env=environment) as process:
            yield Engines(process, inputs)  # it ends when its input does


def new_run(folder: Path) -> RunDir:
    run = RunDir(folder)
    folder.mkdir()
    run.run_json.write_text(json.dumps({"format": 1, "id": run.id, "recipe": "r", "parent": None, "version": "0"}))
    return run


def seen(run: RunDir) -> dict[tuple[str, int], set[str]]:
    """What the attempts recorded of each step and evaluation, without times: one value each if all agree."""
    found: dict[tuple[str, int], set[str]] = {}
    for event in read_journal(run.journal):
        if isinstance(event, Step | Evaluated):
            found.setdefault((type(event).__name__, event.step or 0), set()).add(_values(event))
    return found


def _values(event: Event) -> str:
    import msgspec

    of_record = ("v", "w", "seq", "t", "m", "attempt", "step_s", "data_wait_s")
    values = {name: value for name, value in msgspec.structs.asdict(event).items() if name not in of_record}
    return json.dumps(values, sort_keys=True, default=str)  # floats with all their digits


def outcome(run: RunDir, stage: str) -> tuple[str, dict[str, float | None], Any]:
    """The weights of the output, the metrics that do not measure time or memory, and the last state of the loss's
    scale."""
    [done] = [event for event in read_journal(run.journal) if isinstance(event, StageSucceeded)]
    measured = ("_s", "_bytes", "_per_second")
    metrics = {name: value for name, value in done.metrics.items() if not name.endswith(measured)}
    assert verify_manifest(run.out(stage)) == []
    return weights_sha256(run.out(stage)), metrics, last_scale(run, stage)


def last_scale(run: RunDir, stage: str) -> Any:
    """The state of the loss's scale in the newest checkpoint; None of a training that has none."""
    import torch

    newest = max(scan(run.stage_dir(stage))[0], key=lambda one: (one.step, one.attempt))
    file = newest.path / "scaler.pt"
    return (newest.step, torch.load(file, weights_only=True)) if file.exists() else None


def check(
    stage: Mapping[str, Any], points: list[tuple[str, int, int]], folder: Path, inputs: Mapping[str, Path]
) -> None:
    module = {"dpo": "engines.preference.stage", "pretrain": "engines.pretrain.stage"}.get(
        stage["kind"], "engines.finetune.stage"
    )
    with engines(folder, inputs, module) as starts:
        whole, killed = new_run(folder / "whole"), new_run(folder / "killed")
        assert starts.run(whole, stage) == 0, (folder / "engines.log").read_text()[-3000:]
        for point in points:
            assert starts.run(killed, stage, point) == -signal.SIGKILL, point
        assert starts.run(killed, stage) == 0, (folder / "engines.log").read_text()[-3000:]
    expected, found = seen(whole), seen(killed)
    assert all(len(values) == 1 for values in expected.values())
    assert found == expected, "every attempt computed each step and evaluation as the uninterrupted one"
    assert outcome(killed, stage["name"]) == outcome(whole, stage["name"])
    assert (last_scale(killed, stage["name"]) is not None) == stage.get("fp16", False)


def inputs_of(method: str, folder: Path, model: Path, messages: Path) -> dict[str, Path]:
    data = write_pairs(folder / "pairs") if method.startswith("dpo") else messages
    return {"model": model, "data": data}


@pytest.mark.thorough  # the suite has one such run, in tests/runs/test_exact_resume.py
def test_a_training_that_was_killed_in_a_window_in_a_save_and_in_an_evaluation_ends_in_the_same_weights(
    tmp_path: Path, model: Path, messages: Path
) -> None:
    points = [("micro-batch", 2, 2), ("save", 4, 8), ("evaluation", 6, 2)]
    short = {**METHODS["packed"], "max_steps": 7}
    check(short, points, tmp_path, {"model": model, "data": messages})


@pytest.mark.thorough
@pytest.mark.parametrize("method", METHODS)
def test_a_training_that_was_killed_at_twenty_points_ends_in_the_same_weights(
    method: str, tmp_path: Path, model: Path, messages: Path
) -> None:
    assert len(POINTS) == 20
    check(METHODS[method], POINTS, tmp_path, inputs_of(method, tmp_path, model, messages))


def test_a_pretraining_that_was_killed_with_saves_in_flight_ends_in_the_same_weights(
    tmp_path: Path, tokens: Path
) -> None:
    points = [("staging", 2, 5), ("in-flight", 2, 2), ("fsync", 4, 9), ("in-flight", 4, 8)]
    check({**PRETRAINED, "max_steps": 7}, points, tmp_path, {"data": tokens})


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["pretrain", "full", "lora"])
def test_a_training_that_was_killed_twenty_times_with_saves_in_flight_ends_in_the_same_weights(
    method: str, tmp_path: Path, model: Path, messages: Path, tokens: Path
) -> None:
    assert len(IN_FLIGHT) == 20
    if method == "pretrain":
        check(PRETRAINED, IN_FLIGHT, tmp_path, {"data": tokens})
    else:
        check(METHODS[method], IN_FLIGHT, tmp_path, inputs_of(method, tmp_path, model, messages))
