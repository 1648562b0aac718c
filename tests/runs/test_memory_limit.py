"""Memory that really runs out: a limit on the process, half micro-batches, and a supervisor that is killed between."""

from __future__ import annotations

import json
import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.start import start_supervisor
from engines.events.attempts import AttemptEnded
from engines.events.runs import StageStarted
from engines.events.steps import GuardTripped, Step, StepsPlanned
from engines.run_dir.locks import lock_holder
from engines.run_dir.paths import RunDir
from engines.words import EndReason, StartReason
from tests.engines.training import tiny
from tests.patience import PATIENCE_S
from tests.runs.harness import end_soon, engine_pid, events, kill_supervisor, launch_text, wait_for, wait_for_end

pytestmark = [pytest.mark.torch, pytest.mark.slow, pytest.mark.thorough]

PRETRAIN = """
[[stage]]
name = "{name}"
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
BETWEEN = """
[[stage]]
name = "between"
kind = "fake"
max_steps = 100_000
"""


LONG_S = 4 * PATIENCE_S
"""Five processes one after the other."""


def _limited(tmp_path: Path) -> RunDir:
    """A run whose stage `base` has too little memory for its batch, by what the same training needs without a limit."""
    tokens = tiny.write_tokens(tmp_path / "tokens", {"train": 256 * 130, "val": 100})
    free, base = (PRETRAIN.format(name=name, tokens=tokens) for name in ("free", "base"))
    run = launch_text(f'schema = 1\nname = "limited"\n{free}{BETWEEN}{base}', tmp_path)
    _limit_between(run)
    return run


def _limit_between(run: RunDir) -> None:
    """Limit the supervisor and its next engines while the stage between two trainings runs."""
    limit = _limit_by_measure(run, "free")
    wait_for(lambda: any(isinstance(e, Step) and e.stage == "between" for e in events(run)), "the stage between")
    resource.prlimit(_supervisor(run), resource.RLIMIT_DATA, (limit, limit))
    end_soon(run, stage="between")


def test_memory_that_runs_out_halves_the_micro_batch_until_it_fits_and_every_step_has_the_same_rows(
    tmp_path: Path,
) -> None:
    run = _limited(tmp_path)
    assert wait_for_end(run, LONG_S) == "succeeded"
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
    assert wait_for_end(run, LONG_S) == "succeeded"
    starts = [e for e in events(run) if isinstance(e, StageStarted) and e.stage == "base"]
    assert [change.sentence for change in starts[1].adjusted] == [
        "per_device_train_batch_size 64 → 32",
        "gradient_accumulation_steps 1 → 2",
    ]


WIDE = {**tiny.SHAPE, "intermediate_size": 4096}
TUNED = {
    "model": '"{model}"', "data": '"{data}"', "max_length": "256", "max_steps": "2", "threads": "1", "bf16": "false",
    "per_device_train_batch_size": "16", "save_steps": "1",
}  # fmt: skip
"""Fields of a training whose step keeps about half a gigabyte, as TOML."""
METHODS: dict[str, dict[str, str]] = {
    "adapter": {"kind": '"finetune"', "r": "4"},
    "model": {"kind": '"finetune"', "output": '"model"'},
    "packed": {"kind": '"finetune"', "packing": "true", "r": "4"},
    "pairs": {"kind": '"dpo"', "r": "4", "per_device_train_batch_size": "8"},
}
SHARE_ALLOWED = 0.7
"""Of what a step adds to the process that has loaded everything: too little for the batch, enough for half of it."""


def _data(folder: Path, method: str) -> Path:
    """Rows of which 16 (8 pairs) fill 4,096 tokens; packed ones are half as long."""
    folder.mkdir()
    length = 100 if method == "packed" else 230
    rows = []
    for number in range(80):
        asked = {"role": "user", "content": f"f{number}?"}
        answers = [{"role": "assistant", "content": letter * length} for letter in "xy"]
        pair = {"prompt": [asked], "chosen": answers[:1], "rejected": answers[1:]}
        rows.append(json.dumps(pair if method == "pairs" else {"messages": [asked, answers[0]]}))
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def _wide_model(folder: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    set_seed(1)
    config = LlamaConfig(
        vocab_size=261, max_position_embeddings=256, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, **WIDE
    )
    LlamaForCausalLM(config).save_pretrained(str(folder))
    return tiny.write_tokenizer(folder)


def _free_then_limited(tmp_path: Path, method: str) -> RunDir:
    """A run of two equal trainings: the first with the machine's memory, the second with too little for its batch.

    What is too little is measured in the first; the limit is set while a stage between them runs, on the supervisor,
    whose engines have it too.
    """
    places = {"model": _wide_model(tmp_path / "model"), "data": _data(tmp_path / "data", method)}
    lines = ["schema = 1", 'name = "both"']
    for name in ("free", "limited"):
        fields = {"name": f'"{name}"', **TUNED, **METHODS[method]}
        lines += ["[[stage]]", *(f"{key} = {value.format(**places)}" for key, value in fields.items())]
        lines += ["[stage.retry]", "max_attempts = 2"]
        if name == "free":
            lines.append(BETWEEN)
    run = launch_text("\n".join(lines) + "\n", tmp_path)
    _limit_between(run)
    return run


def _limit_by_measure(run: RunDir, stage: str) -> int:
    """Bytes of data (what RLIMIT_DATA counts) between those of the loaded process and of its largest step."""
    pid = wait_for(lambda: engine_pid(run, stage, 1), "the engine of the first stage")
    sizes: list[tuple[float, int]] = []
    while (size := _data_bytes(pid)) is not None:
        sizes.append((time.time(), size))
        time.sleep(0.005)
    planned = next(e.t for e in events(run) if isinstance(e, StepsPlanned) and e.stage == stage)
    loaded = max(size for at, size in sizes if at <= planned)
    peak = max(size for _, size in sizes)
    assert peak - loaded > 100 << 20, f"a step adds {peak - loaded} bytes, too few for a limit between"
    return loaded + int(SHARE_ALLOWED * (peak - loaded))


def _data_bytes(pid: int) -> int | None:
    """The process's private writable memory; None once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), None)


def _supervisor(run: RunDir) -> int:
    holder = lock_holder(run.supervisor_lock)
    assert holder is not None
    return int(holder["pid"])


def _steps(run: RunDir, stage: str) -> dict[int, tuple[Any, ...]]:
    """What each applied step of a stage measured, by its number; of the last attempt that made it."""
    found = [e for e in events(run) if isinstance(e, Step) and e.stage == stage]
    return {e.step: (e.tokens, e.loss_tokens, e.learning_rate, e.loss, e.grad_norm) for e in found}


def _assert_same_training(run: RunDir) -> None:
    free, limited = _steps(run, "free"), _steps(run, "limited")
    assert sorted(free) == sorted(limited) == [1, 2]
    for step, expected in free.items():
        assert limited[step][:3] == expected[:3], "the same rows, scored tokens and rate"
        assert limited[step][3:] == pytest.approx(expected[3:], rel=5e-5), "equal up to the order of sums"


def _assert_halved(run: RunDir, rows: int) -> None:
    starts = [e for e in events(run) if isinstance(e, StageStarted) and e.stage == "limited"]
    ends = [e for e in events(run) if isinstance(e, AttemptEnded) and e.stage == "limited" and e.detail]
    assert {e.reason for e in ends} == {EndReason.OUT_OF_MEMORY}
    assert 2 <= len(starts) <= 5
    for start in starts[1:]:
        changed = {change.field: json.loads(change.new) for change in start.adjusted}
        assert changed["per_device_train_batch_size"] * changed["gradient_accumulation_steps"] == rows


@pytest.mark.parametrize("method", METHODS)
def test_each_method_trains_the_same_after_memory_ran_out(tmp_path: Path, method: str) -> None:
    run = _free_then_limited(tmp_path, method)
    assert wait_for_end(run, LONG_S) == "succeeded", [e for e in events(run) if isinstance(e, AttemptEnded)]
    _assert_halved(run, int(METHODS[method].get("per_device_train_batch_size", "16")))
    _assert_same_training(run)


def test_a_supervisor_that_is_stopped_and_killed_before_it_plans_the_retry_changes_nothing(tmp_path: Path) -> None:
    run = _free_then_limited(tmp_path, "adapter")
    wait_for(lambda: engine_pid(run, "limited", 1), "the engine of the second stage")
    os.kill(_supervisor(run), signal.SIGSTOP)  # it cannot take notice of the end
    wait_for(lambda: any(isinstance(e, AttemptEnded) and e.stage == "limited" for e in events(run)), "the end")
    kill_supervisor(run)
    start_supervisor(run, StartReason.ADOPT)  # has no limit: only the journal says that memory ran out
    assert wait_for_end(run, LONG_S) == "succeeded"
    starts = [e for e in events(run) if isinstance(e, StageStarted) and e.stage == "limited"]
    assert [change.sentence for change in starts[1].adjusted] == [
        "per_device_train_batch_size 16 → 8",
        "gradient_accumulation_steps 1 → 2",
    ]
    _assert_same_training(run)
