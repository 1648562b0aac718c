"""Checkpoints that are written while the training continues: the same files, one at a time, waited for at every end."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.checkpoints import scan_attempt
from engines.artifacts.manifest import read_manifest, verify_manifest
from engines.control import put_request
from engines.events.event import Event
from engines.events.runs import ControlApplied
from engines.events.steps import CheckpointCommitted, CheckpointStaged, GuardTripped, Step
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from engines.training import saving
from engines.training.saves import room
from engines.training.saves.parts import write_parts
from engines.words import Verb
from tests.engines.training.attempts import Held, committed_steps, context, of_kind, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, PRETRAIN
from tests.patience import PATIENCE_S
from tests.stage_context import TriedContext

pytestmark = pytest.mark.torch


def hashes(ctx: TriedContext) -> dict[str, dict[str, str]]:
    """The SHA-256 of every file of every checkpoint."""
    complete, refused = scan_attempt(ctx.checkpoints)
    assert refused == []
    return {one.path.name: {f["path"]: f["sha256"] for f in read_manifest(one.path)["files"]} for one in complete}


@pytest.mark.parametrize("kind", ["pretrain", "adapter", "all weights"])
def test_files_and_steps_are_those_of_saves_that_the_training_waits_for(
    tmp_path: Path, tokens: Path, model: Path, messages: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, inputs = (
        (PRETRAIN, {"data": tokens}) if kind == "pretrain" else (FINETUNE, {"model": model, "data": messages})
    )
    if kind == "all weights":
        base = {name: value for name, value in base.items() if not name.startswith(("r", "lora_"))}
        base = {**base, "output": "model"}
    waits = context(tmp_path / "waits", {**base, "async_save": False}, inputs)
    run_stage(waits)
    continues = context(tmp_path / "continues", base, inputs)
    Held(continues, monkeypatch, 3, lambda event: isinstance(event, Step) and event.step == 5)
    run_stage(continues)
    assert hashes(continues) == hashes(waits)
    assert sorted(hashes(waits)) == ["step-3", "step-6", "step-8"]
    assert trajectory(continues, 1) == trajectory(waits, 1)
    assert [event.step for event in of_kind(continues, CheckpointStaged)] == [3, 6, 8]
    assert of_kind(waits, CheckpointStaged) == []


def test_steps_are_computed_while_a_checkpoint_is_written_and_it_counts_only_afterwards(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    held = Held(ctx, monkeypatch, 3, lambda event: isinstance(event, Step) and event.step == 5)
    run_stage(ctx)
    assert held.seen_at_end == [], "with steps 4 and 5 in the journal, no checkpoint is there"
    kinds = (Step, CheckpointStaged, CheckpointCommitted)
    order = [(type(event).__name__, event.step) for event in ctx.events() if isinstance(event, kinds)]
    assert order.index(("CheckpointStaged", 3)) < order.index(("Step", 5)) < order.index(("CheckpointCommitted", 3))
    assert order.index(("CheckpointCommitted", 3)) < order.index(("CheckpointStaged", 6)), "one at a time"
    [first] = [event for event in of_kind(ctx, CheckpointCommitted) if event.step == 3]
    assert first.stall_s is not None
    assert first.write_s is not None
    assert first.stall_s < first.write_s


def test_a_save_waits_for_the_one_before(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, {**PRETRAIN, "save_steps": 1}, {"data": tokens})
    run_stage(ctx)
    kinds = (CheckpointStaged, CheckpointCommitted)
    order = [(type(event).__name__, event.step) for event in ctx.events() if isinstance(event, kinds)]
    expected = [(name, step) for step in range(1, 9) for name in ("CheckpointStaged", "CheckpointCommitted")]
    assert order == expected


def test_the_update_waits_for_a_copy_that_is_not_made_before(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy begins when the training asks for the update, the latest moment there is."""
    from engines.training.saves.staging import Staging

    waits = context(tmp_path / "waits", {**PRETRAIN, "async_save": False}, {"data": tokens})
    run_stage(waits)
    asked, filled = {step: threading.Event() for step in (3, 6)}, list[int]()
    fill, wait = Staging.fill, Staging.wait

    def late_fill(staging: Staging) -> float:
        step = (3, 6, 8)[len(filled)]
        if step in asked:  # after the last step there is no update
            assert asked[step].wait(PATIENCE_S)
        filled.append(step)
        return fill(staging)

    def noted_wait(staging: Staging) -> None:
        if staging._due:
            asked[(3, 6)[len(filled)]].set()
        wait(staging)

    monkeypatch.setattr(Staging, "fill", late_fill)
    monkeypatch.setattr(Staging, "wait", noted_wait)
    ctx = context(tmp_path / "late", PRETRAIN, {"data": tokens})
    run_stage(ctx)
    assert filled == [3, 6, 8]
    assert hashes(ctx) == hashes(waits)
    assert trajectory(ctx, 1) == trajectory(waits, 1)


@pytest.mark.parametrize("end", ["guard", "pause", "stop"])
def test_what_ends_or_pauses_a_training_waits_for_its_checkpoint(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    faults = {"nan_loss": {"step": 5}} if end == "guard" else {}
    ctx = context(tmp_path, PRETRAIN, {"data": tokens}, test_faults=faults)
    emit = ctx.emit

    def emit_and_ask(event: Event) -> int:
        seq = emit(event)
        if isinstance(event, Step) and event.step == 4 and end != "guard":
            put_request(RunDir(ctx.run_root).control, Verb.STOP if end == "stop" else Verb.PAUSE)
        if isinstance(event, ControlApplied) and end == "pause":
            put_request(RunDir(ctx.run_root).control, Verb.STOP)
        return seq

    ctx.emit = emit_and_ask  # type: ignore[method-assign]
    last = (
        (lambda e: isinstance(e, GuardTripped)) if end == "guard" else (lambda e: isinstance(e, Step) and e.step == 4)
    )
    Held(ctx, monkeypatch, 3, last)
    assert run_stage(ctx) is None
    assert committed_steps(ctx, 1) == [3]
    [checkpoint] = scan_attempt(ctx.checkpoints)[0]
    assert (checkpoint.healthy, verify_manifest(checkpoint.path)) == (True, [])
    if end != "guard":
        kinds = (CheckpointCommitted, ControlApplied)
        first = next(event for event in ctx.events() if isinstance(event, kinds))
        assert isinstance(first, CheckpointCommitted), "the answer comes after the checkpoint"


def test_copies_keep_what_was_and_share_what_was_shared_and_use_their_memory_again() -> None:
    import torch

    from engines.training.saves.parts import Parts
    from engines.training.saves.staging import Staging, staged_bytes

    whole = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    parts = Parts(
        model={"w": whole, "tied": whole, "turned": whole.t(), "row": whole[1], "frozen": torch.ones(5), "word": "x"},
        trained=frozenset({"w", "tied", "turned", "row"}),
        optimizer={"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1}]},
        scheduler={},
        random_states={},
        state=None,
    )
    assert staged_bytes(parts) == 12 * 4 + 4 + 2 * 4
    staging = Staging()
    copied = staging.copied(parts)
    staging.fill()
    whole.add_(100)
    parts.optimizer["state"][0]["exp_avg"].add_(1)
    assert copied.model["w"].flatten().tolist() == list(range(12))
    assert copied.model["turned"].stride() == (1, 4)
    assert copied.model["row"].tolist() == [4, 5, 6, 7]
    assert len({copied.model[name].untyped_storage().data_ptr() for name in ("w", "tied", "turned", "row")}) == 1
    assert copied.model["frozen"] is parts.model["frozen"], "what no step changes is not copied"
    assert copied.model["word"] == "x"
    assert copied.optimizer["state"][0]["exp_avg"].tolist() == [0, 0]
    again = staging.copied(parts)
    staging.fill()
    assert again.model["w"].data_ptr() == copied.model["w"].data_ptr()
    assert again.model["w"].flatten().tolist() == list(range(100, 112))


def test_without_room_for_a_copy_the_training_waits_for_its_saves_and_says_why(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "available_memory_bytes", lambda: 1 << 20)
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    run_stage(ctx)
    assert committed_steps(ctx, 1) == [3, 6, 8]
    assert of_kind(ctx, CheckpointStaged) == []
    [warning] = of_kind(ctx, Warned)
    assert "the training waits for each checkpoint from step 3 on" in warning.message
    assert "1 MiB are available" in warning.message


def test_a_copy_for_which_memory_runs_out_becomes_a_save_that_the_training_waits_for(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training.saves.staging import Staging

    def exhausted(*_: Any) -> Any:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:137] DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr(Staging, "copied", exhausted)
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    assert run_stage(ctx) is not None
    assert committed_steps(ctx, 1) == [3, 6, 8]
    [warning] = of_kind(ctx, Warned)
    assert "memory ran out (the host's memory)" in warning.message


def test_a_disk_with_too_little_room_is_found_before_anything_is_written(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = os.statvfs, list[str]()
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    mkdir = Path.mkdir

    def full_once(path: Any) -> Any:
        found = real(path)
        if Path(path) != ctx.checkpoints or made:
            return found
        made.append("asked")
        return os.statvfs_result((*found[:4], 1, *found[5:]))

    def noted(path: Path, *args: Any, **more: Any) -> None:
        made.append(path.name)
        mkdir(path, *args, **more)

    monkeypatch.setattr(os, "statvfs", full_once)
    monkeypatch.setattr(Path, "mkdir", noted)
    assert run_stage(ctx) is not None
    assert committed_steps(ctx, 1) == [6, 8]
    assert not [name for name in made if name.startswith(".tmp-step-3")]
    [warning] = of_kind(ctx, Warned)
    assert "checkpoint at step 3 could not be written" in warning.message
    assert "needs about" in warning.message
    assert "nothing was written" in warning.message


def test_a_failed_write_beside_the_training_is_said_as_one_that_it_waits_for(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the evaluation of that step makes no second attempt."""

    def failing(folder: Path, model: Any, parts: Any) -> None:
        write_parts(folder, model, parts)
        if parts.state.global_step == 2:
            raise OSError(5, os.strerror(5))

    monkeypatch.setattr(saving, "write_parts", failing)
    ctx = context(tmp_path, {**PRETRAIN, "save_steps": 2, "eval_steps": 2}, {"data": tokens})
    assert run_stage(ctx) is not None
    assert committed_steps(ctx, 1) == [4, 6, 8]
    [warning] = of_kind(ctx, Warned)
    assert "checkpoint at step 2 could not be written" in warning.message
    assert scan_attempt(ctx.checkpoints)[1] == []
