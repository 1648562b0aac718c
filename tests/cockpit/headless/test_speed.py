"""The report says how fast each training was, what limited it, and how a run that did not succeed continues."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.headless.report import report_lines
from cockpit.headless.speed import Speed, limit_words, speed_of
from cockpit.runs.ending import Ending, last_lines
from cockpit.runs.log_lines import line_of
from cockpit.runs.state import RunState, fold
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.machine import MachineSampled
from engines.events.results import Evaluated
from engines.events.runs import RunEnded, RunStarted, StageFailed, StageStarted, StageSucceeded
from engines.events.steps import CheckpointCommitted, Step
from engines.run_dir.paths import RunDir
from engines.words import EndReason, RunStatus, StartReason
from tests.tui.journals import Journal

MEASURED: dict[str, Any] = {
    "steps": 4,
    "last_loss": 2.0,
    "step_s": 2.0,
    "samples_per_second": 4.0,
    "tokens_per_second": 50.0,
    "waits": 0.0,
    "cores": 1.9,
    "others": 0.1,
    "all_cores": 4,
    "gpu_percent": None,
}


def trained(*, wait_s: float = 0.1, saved: int = 0, end: EndReason = EndReason.SUCCEEDED) -> RunState:
    """Four steps of 2 s with 100 tokens each on two of four cores; other processes use another half core."""
    journal = Journal()
    journal.open("s", "supervisor")
    journal.say("s", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["base"], kinds=["finetune"]))
    journal.say("s", StageStarted(stage="base", kind="finetune"))
    journal.open("e", "engine", "base", 1)
    journal.say("e", AttemptStarted(stage="base", kind="finetune", attempt=1, total_steps=4))
    journal.open("m", "sampler")
    for step in range(1, 5):
        load = MachineSampled(
            host="spark-01", cpu_percent=62.5, ram_total_bytes=9, ram_available_bytes=8, engine_rss_bytes=1,
            unified=False, devices=[], cores=4, engine_cpu_percent=50.0,
        )  # fmt: skip
        journal.say("m", load)
        figures: dict[str, Any] = {"epoch": 0.1, "loss": 3.0 - step / 4, "learning_rate": 1e-4, "grad_norm": 1.0}
        figures |= {"tokens": 100 * step, "loss_tokens": 50 * step, "step_s": 2.0, "data_wait_s": wait_s}
        journal.say("e", Step(stage="base", attempt=1, step=step, **figures), after_s=2.0)
        if step == saved:
            path = f"stages/base/1/checkpoints/step-{step}"
            done = CheckpointCommitted(stage="base", attempt=1, step=step, path=path, sha256="c", healthy=True)
            journal.say("e", done)
    journal.say("e", AttemptEnded(stage="base", attempt=1, reason=end, detail="why", cpu_s=16.0))
    if end == EndReason.SUCCEEDED:
        metrics: dict[str, float | None] = {"loss": 2.5, "samples_per_second": 4.0}
        journal.say("e", StageSucceeded(stage="base", attempt=1, fingerprint="f", manifest_sha256="m", metrics=metrics))
    else:
        journal.say("s", StageFailed(stage="base", reason="base: why (attempt 1 of 1)"))
        journal.say("s", RunEnded(state=RunStatus.FAILED, reason="base: why (attempt 1 of 1)"))
    return fold(journal.events)


def test_the_report_has_pace_and_load_of_each_training() -> None:
    state = trained()
    speed = speed_of(state, state.stages[0])
    assert speed is not None
    assert speed.step_s == 2.0
    assert speed.tokens_per_second == pytest.approx(50.0)
    assert speed.waits == pytest.approx(0.05)
    assert speed.cores == pytest.approx(2.0)
    assert speed.others == pytest.approx(0.5)
    lines = report_lines(state)
    title = next(line for line in lines if line.startswith("training"))
    row = lines[lines.index(title) + 2].split()
    assert title.split() == ["training", "steps", "last", "loss", "s/step", "samples/s", "tok/s", "waits", "cores"]
    assert row == ["base", "4/4", "2.000", "2s", "4.00", "50", "5%", "2"]


def test_readings_before_the_first_step_are_not_the_trainings_load() -> None:
    journal = Journal()
    journal.open("e", "engine", "base", 1)
    journal.say("e", AttemptStarted(stage="base", kind="finetune", attempt=1, total_steps=4))
    journal.open("m", "sampler")
    importing = MachineSampled(
        host="spark-01", cpu_percent=99.0, ram_total_bytes=9, ram_available_bytes=8, engine_rss_bytes=1,
        unified=False, devices=[], cores=4, engine_cpu_percent=25.0,
    )  # fmt: skip
    journal.say("m", importing, after_s=5.0)
    step = Step(
        stage="base", attempt=1, step=1, epoch=0.1, loss=2.0, learning_rate=1e-4, grad_norm=1.0, tokens=9,
        loss_tokens=9, step_s=0.01,
    )  # fmt: skip
    journal.say("e", step, after_s=5.0)
    state = fold(journal.events)
    speed = speed_of(state, state.stages[0])
    assert speed is not None
    assert speed.cores is None
    assert limit_words(speed) == ""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"waits": 0.31}, "input-bound: 31% of the steps' time waits for data"),
        ({"gpu_percent": 97.0}, "compute-bound: the GPU computes 97% of the time"),
        ({"gpu_percent": 40.0}, "the GPU computes 40% of the time: twice the per_device_train_batch_size"),
        ({"others": 1.2}, "shared: the engine used 1.9 of 4 cores, other processes 1.2"),
        ({}, "compute-bound: the engine used 1.9 of 4 cores"),
        ({"cores": 0.3}, "unknown: the engine used 0.3 of 4 cores"),
        ({"cores": None}, ""),
    ],
)
def test_what_limits_a_training_is_said_in_one_line(change: dict[str, Any], words: str) -> None:
    found = limit_words(Speed(**{**MEASURED, **change}))
    assert found.startswith(words)
    assert bool(found) == bool(words)


def test_a_run_that_failed_says_how_it_continues_and_what_is_repeated() -> None:
    lines = report_lines(trained(saved=3, end=EndReason.ERROR))
    way = "to continue: cockpit resume r (the newest checkpoint of base is of step 3; 1 step after it is repeated)"
    assert way in lines
    lines = report_lines(trained(end=EndReason.ERROR))
    assert "to continue: cockpit resume r (base has no checkpoint and restarts from step 0)" in lines
    assert not [line for line in report_lines(trained()) if line.startswith("to continue")]


def test_the_line_of_a_file_says_how_far_it_is_from_what_was_trained_over_four_bits() -> None:
    figures: dict[str, Any] = {"stage": "gguf", "attempt": 1, "step": None, "loss": 2.0, "perplexity": 7.4, "tokens": 9}
    metrics: dict[str, float | None] = {"mean_kl": 1e-3, "top1": 0.98, "kl_to_trained": 0.363}
    line = line_of(Evaluated(**figures, protocol="parity:q8_0", metrics=metrics)).text
    assert "top-1 98.00%, mean KL to what was trained 0.3630, loss" in line
    same = line_of(Evaluated(**figures, protocol="parity:q8_0", metrics={**metrics, "kl_to_trained": 1e-3})).text
    assert "trained" not in same
    over = line_of(Evaluated(**figures, protocol="parity:q8_0+atlas", metrics=metrics)).text
    assert over.startswith("compared Q8_0 + atlas: mean KL 1e-3")


CRASH = """a line of a library
Fatal Python error: Segmentation fault

Thread 0x00007fb96cbf0b80 (most recent call first):
  File "threading.py", line 1 in wait

Current thread 0x00007fb96cbf0b81 (most recent call first):
  File "kernel.py", line 519 in string_at
  File "stage.py", line 3 in run

Extension modules: numpy._core._multiarray_umath, numpy.linalg._umath_linalg (total: 2)
"""


def test_a_crash_shows_its_error_and_the_calls_of_its_thread_and_no_list_of_modules(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    place = run.console_log("base", 1)
    place.parent.mkdir(parents=True)
    place.write_text(CRASH)
    failed = Ending(("base: killed by SIGSEGV",), "base", 1)
    shown = last_lines(run, failed, 3)
    assert [line.split(",")[0] for line in shown] == [
        "Fatal Python error: Segmentation fault",
        "Current thread 0x00007fb96cbf0b81 (most recent call first):",
        '  File "kernel.py"',
    ]
    place.write_text(f"{CRASH}the last words\n")
    assert last_lines(run, failed, 1) == ["the last words"]


def test_a_run_that_was_stopped_on_request_shows_no_console(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    place = run.console_log("base", 1)
    place.parent.mkdir(parents=True)
    place.write_text("a warning of a library\n")
    failed = Ending(("base: why",), "base", 1)
    assert last_lines(run, failed, 8) == ["a warning of a library"]
    assert last_lines(run, Ending(("base was stopped",), "base", 1, stopped=True), 8) == []
