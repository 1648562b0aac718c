"""Memory that really runs out: a limit on the process, half micro-batches, and a supervisor that is killed between."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from cockpit.launching.start import start_supervisor
from engines.events import AttemptEnded, GuardTripped, StageStarted, Step
from engines.run_dir import RunDir, lock_holder
from engines.words import EndReason, StartReason
from tests.engines.training import tiny
from tests.runs.harness import engine_pid, events, kill_supervisor, launch_text, wait_for, wait_for_end

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.thorough]

RECIPE = """
schema = 1
name = "limited"
[[stage]]
name = "first"
kind = "fake"
max_steps = 30
[[stage]]
name = "base"
kind = "pretrain"
data = "{tokens}"
hidden_size = 64
intermediate_size = 4096
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
max_length = 256
per_device_train_batch_size = 64
gradient_accumulation_steps = 1
max_steps = 2
threads = 1
[stage.retry]
max_attempts = 2
"""
LIMIT_BYTES = 2200 << 20


def _limited(tmp_path: Path) -> RunDir:
    tokens = tiny.write_tokens(tmp_path / "tokens", {"train": 256 * 130, "val": 100})
    run = launch_text(RECIPE.format(tokens=tokens), tmp_path)
    wait_for(lambda: any(isinstance(event, Step) for event in events(run)), "a step of the first stage")
    holder = lock_holder(run.supervisor_lock)
    assert holder is not None
    resource.prlimit(int(holder["pid"]), resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    return run


def test_memory_that_runs_out_halves_the_micro_batch_until_it_fits_and_every_step_has_the_same_rows(
    tmp_path: Path,
) -> None:
    run = _limited(tmp_path)
    assert wait_for_end(run) == "succeeded"
    recorded = events(run)
    ends = [e.reason for e in recorded if isinstance(e, AttemptEnded) and e.stage == "base" and e.exit is not None]
    assert len(ends) >= 2
    assert set(ends[:-1]) == {EndReason.OUT_OF_MEMORY}
    assert ends[-1] == EndReason.SUCCEEDED
    starts = [e for e in recorded if isinstance(e, StageStarted) and e.stage == "base"]
    rows = [{change.field: int(change.new) for change in event.adjusted} for event in starts[1:]]
    assert all(each["per_device_train_batch_size"] * each["gradient_accumulation_steps"] == 64 for each in rows)
    assert all("the host's memory" in change.because for change in starts[-1].adjusted)
    assert {e.guard for e in recorded if isinstance(e, GuardTripped)} == {EndReason.OUT_OF_MEMORY}
    tokens = [e.tokens for e in recorded if isinstance(e, Step) and e.stage == "base"]
    assert tokens == [64 * 256, 2 * 64 * 256]


def test_a_supervisor_that_adopts_the_run_after_memory_ran_out_continues_the_plan(tmp_path: Path) -> None:
    run = _limited(tmp_path)
    wait_for(lambda: any(isinstance(e, GuardTripped) for e in events(run)) or engine_pid(run, "base", 1), "an engine")
    kill_supervisor(run)
    wait_for(
        lambda: any(isinstance(e, AttemptEnded) and e.stage == "base" for e in events(run)), "the engine's own end"
    )
    start_supervisor(run, StartReason.ADOPT)
    assert wait_for_end(run) == "succeeded"
    starts = [e for e in events(run) if isinstance(e, StageStarted) and e.stage == "base"]
    assert [change.sentence for change in starts[1].adjusted] == [
        "per_device_train_batch_size 64 → 32",
        "gradient_accumulation_steps 1 → 2",
    ]
