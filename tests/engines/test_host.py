"""One attempt in a separate process, with stages written for the test: the journal records every result."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.manifest import manifest_sha256, read_manifest, verify_manifest
from engines.context import StopRequested
from engines.control import put_request
from engines.events.attempts import AttemptEnded, AttemptStarted, Phase, Progress
from engines.events.kinds import AnyEvent
from engines.events.results import ArtifactCommitted, GateChecked
from engines.events.runs import ControlApplied, StageSucceeded
from engines.events.writers import Warned, WriterOpened
from engines.gates import holds
from engines.inputs.record import stage_fingerprint
from engines.journal import read_journal
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from engines.stage_file import FORMAT
from engines.words import Verb
from recipes.stages.fake import FakeStage
from tests.patience import PATIENCE_S
from tests.stage_context import make_context

HOST = "import sys; from engines.host import host_main; host_main(sys.argv, {'fake': 'stage_under_test'})"
ROOT = Path(__file__).resolve().parents[2]
GOOD = """
    (ctx.out / "a.txt").write_text("made")
    (ctx.out / "sub").mkdir()
    (ctx.out / "sub" / "b.bin").write_bytes(bytes(1000))
    return StageResult(
        {"loss": 2.5, "steps": 7.0}, [Artifact("all", "fake", "."), Artifact("one", "text", "a.txt")]
    )
"""
HEAD = """
import math, os, signal, sys, threading, time
from engines.context import *
from engines.context import GuardTrippedError, StageFailedError
from recipes.problems import OperatorError

def run(ctx):
"""


class Attempt:
    """A stage's code, its run directory, and the result of its process."""

    def __init__(self, folder: Path, body: str, **stage: Any) -> None:
        self.folder = folder
        (folder / "stage_under_test.py").write_text(HEAD + body)
        self.run = RunDir(folder / "run")
        for path in (self.run.control / "done", self.run.attempt_dir("s", 1)):
            path.mkdir(parents=True)
        self.stage_json = self.run.stage_json("s", 1)
        self.write_spec(stage=stage)

    def write_spec(self, *, stage: Mapping[str, Any], **spec: Any) -> None:
        values = {
            "format": 1, "run_root": str(self.run.root), "tag": "fake", "attempt": 1, "inputs": {}, "resume": None,
            "learning_rate_scale": 1.0, "fingerprint": "f" * 64, "stage": {"name": "s", "kind": "fake", **stage},
        }  # fmt: skip
        self.stage_json.write_text(json.dumps({**values, **spec}))

    def start(self, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", HOST, str(self.stage_json)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{self.folder}", **environment},
        )  # fmt: skip

    def finish(self, **environment: str) -> tuple[int, str]:
        process = self.start(**environment)
        _, errors = process.communicate(timeout=PATIENCE_S)
        return process.returncode, errors

    def events(self) -> list[AnyEvent]:
        return list(read_journal(self.run.journal))

    def end(self) -> AttemptEnded:
        last = self.events()[-1]
        assert isinstance(last, AttemptEnded)
        return last


def test_a_successful_stage_commits_its_output_and_records_it_last(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, GOOD)
    status, errors = attempt.finish()
    assert (status, errors) == (0, "")
    out = attempt.run.out("s")
    assert verify_manifest(out) == []
    found = attempt.events()
    kinds = [type(event) for event in found]
    assert kinds == [
        WriterOpened, AttemptStarted, Phase, Phase, ArtifactCommitted, ArtifactCommitted, StageSucceeded, AttemptEnded,
    ]  # fmt: skip
    whole, one = (event for event in found if isinstance(event, ArtifactCommitted))
    sha256 = manifest_sha256(out)
    assert (whole.path, whole.bytes, whole.sha256) == ("stages/s/out", 1004, sha256)
    assert (one.path, one.bytes) == ("stages/s/out/a.txt", 4)
    succeeded = found[-2]
    assert isinstance(succeeded, StageSucceeded)
    assert succeeded.manifest_sha256 == sha256
    fields = FakeStage.model_validate({"name": "s", "kind": "fake"})
    assert succeeded.fingerprint == stage_fingerprint(fields, {}) == read_manifest(out)["fingerprint"]
    assert {"loss", "steps", "wall_s", "cpu_s", "peak_rss_bytes"} <= set(succeeded.metrics)
    assert attempt.end().reason == "succeeded"
    assert not (attempt.run.attempt_dir("s", 1) / "out.tmp").exists()


@pytest.mark.parametrize(
    ("body", "reason", "status", "says"),
    [
        ("    raise StopRequested", "stopped", 0, ""),
        ("    raise GuardTrippedError('grad_norm at step 3')", "guard", 1, "grad_norm at step 3"),
        ("    raise OperatorError('no data here', 'look there')", "error", 1, "no data here; look there"),
        ("    raise StageFailedError('parity does not hold')", "error", 1, "parity does not hold"),
        ("    raise MemoryError('host')", "out_of_memory", 1, "host"),
        (
            "    raise type('OutOfMemoryError', (RuntimeError,), {})('CUDA')",
            "out_of_memory",
            1,
            "OutOfMemoryError: CUDA",
        ),
        ("    raise ValueError('x' * 5000)", "error", 1, "ValueError: xxx"),
        ("    raise ValueError('no file caf\\udce9')", "error", 1, "caf\\udce9"),
        ("    sys.exit(0)", "error", 1, "SystemExit"),
        ("    raise KeyboardInterrupt", "error", 1, "KeyboardInterrupt"),
        ("    return None", "error", 1, "AttributeError"),
        ("    import no_such_package", "error", 1, "No module named 'no_such_package'"),
    ],
)
def test_a_failed_attempt_has_its_reason_and_no_output(
    tmp_path: Path, body: str, reason: str, status: int, says: str
) -> None:
    attempt = Attempt(tmp_path, body)
    found, errors = attempt.finish()
    end = attempt.end()
    assert (found, end.reason, end.exit) == (status, reason, None)
    assert says in end.detail
    assert len(end.detail) <= 2000
    assert not attempt.run.out("s").exists()
    assert not any(isinstance(event, StageSucceeded) for event in attempt.events())
    if "Error" in end.detail:
        assert "Traceback" in errors, "the console has the traceback"


def test_a_stage_that_vanishes_without_a_record_has_no_output(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, "    (ctx.out / 'a').write_text('x')\n    os._exit(0)")
    assert attempt.finish()[0] == 0
    assert [type(event) for event in attempt.events()] == [WriterOpened, AttemptStarted, Phase]
    assert not attempt.run.out("s").exists(), "an exit status alone is not a success"


def test_leftovers_in_the_attempt_s_folder_are_not_part_of_the_output(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, GOOD)
    stale = attempt.run.attempt_dir("s", 1) / "out.tmp"
    stale.mkdir()
    (stale / "stale").write_text("from a killed process")
    assert attempt.finish()[0] == 0
    assert not (attempt.run.out("s") / "stale").exists()


@pytest.mark.parametrize("value", ["2.6", "math.nan", "math.inf", None])
def test_a_failed_gate_refuses_the_output_and_keeps_it_for_inspection(tmp_path: Path, value: str | None) -> None:
    metrics = "{}" if value is None else f"{{'loss': {value}}}"
    body = f"    (ctx.out / 'a').write_text('x')\n    return StageResult({metrics}, [Artifact('a', 'fake', '.')])"
    gates = [
        {"metric": "loss", "op": "<=", "value": 2.5, "stretch": 1.0},
        {"metric": "wall_s", "op": ">=", "value": 0.0},
    ]
    attempt = Attempt(tmp_path, body, gate=gates)
    assert attempt.finish()[0] == 3
    loss, wall = (event for event in attempt.events() if isinstance(event, GateChecked))
    assert loss.result == ("not_measured" if value is None else "fail")
    assert loss.stretch_met == (None if value is None else False)
    assert wall.result == "pass"
    assert attempt.end().reason == "refused"
    assert not attempt.run.out("s").exists()
    assert verify_manifest(attempt.run.attempt_dir("s", 1) / "refused") == []


def test_gates_whose_condition_is_true_pass(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, GOOD, gate=[{"metric": "loss", "op": "<", "value": 3.0, "stretch": 2.0}])
    assert attempt.finish()[0] == 0
    (checked,) = (event for event in attempt.events() if isinstance(event, GateChecked))
    assert (checked.result, checked.value, checked.stretch_met) == ("pass", 2.5, False)


def test_a_nan_meets_no_limit() -> None:
    nan, inf = float("nan"), float("inf")
    assert not any(holds(nan, op, 1.0) or holds(1.0, op, nan) for op in ("<", "<=", ">", ">="))
    assert holds(1.0, "<=", 1.0)
    assert holds(1.0, ">=", 1.0)
    assert not holds(1.0, "<", 1.0)
    assert not holds(1.0, ">", 1.0)
    assert holds(1.0, "<", inf)
    assert not holds(inf, "<=", 1.0)


def test_a_second_process_of_the_same_attempt_is_refused_and_writes_nothing(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, GOOD)
    lock = Lock(attempt.run.engine_lock("s", 1))
    assert lock.acquire({})
    status, errors = attempt.finish()
    lock.release()
    assert status == 2
    assert "another engine" in errors
    assert not attempt.run.journal.exists()


def test_a_stage_from_a_newer_cockpit_is_refused_in_two_lines(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, GOOD)
    attempt.write_spec(stage={}, format=99)
    status, errors = attempt.finish()
    assert status == 2
    assert f"allowed up to {FORMAT}" in errors
    assert "install the same version" in errors
    assert "Traceback" not in errors


def test_a_termination_signal_is_a_request_to_stop_after_a_checkpoint(tmp_path: Path) -> None:
    body = """
    print("up", flush=True)
    while True:
        ctx.check_stop()
        time.sleep(0.005)
"""
    attempt = Attempt(tmp_path, body)
    process = attempt.start()
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert attempt.end().reason == "stopped"
    (applied,) = (event for event in attempt.events() if isinstance(event, ControlApplied))
    assert (applied.request, applied.by) == ("stop-after-checkpoint", "SIGTERM")


def test_a_disk_that_fills_up_while_the_output_is_written_does_not_change_the_old_output(tmp_path: Path) -> None:
    body = """
    import resource
    (ctx.out / "a").write_text("x")
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    return StageResult({}, [Artifact("a", "fake", ".")])
"""
    attempt = Attempt(tmp_path, body)
    former = attempt.run.out("s")
    former.mkdir()
    (former / "manifest.json").write_text("{}")
    assert attempt.finish()[0] == 1
    assert (former / "manifest.json").read_text() == "{}"
    assert not any(isinstance(event, StageSucceeded) for event in attempt.events())


SPOKEN = """
    import locale, warnings
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:
        pass  # this machine does not have it; the variable is set all the same
    from engines.events.steps import Step
    from engines.events.writers import Warned
    ctx.emit(Step(stage="s", attempt=1, step=1234567, epoch=0.5, loss=1234.5678, learning_rate=3e-4, grad_norm=math.nan,
                  tokens=1234567, loss_tokens=1, step_s=0.05, metrics={"TITLE/i": 1e21}))
    ctx.warn("İstanbul — größer")
    (ctx.out / "a.txt").write_text("größer", "utf-8")
    ctx.progress(1, 3, "files")
    return StageResult({"loss": 1234.5}, [Artifact("i", "fake", "a.txt")])
"""
OWN_VALUES = re.compile(rb'"(?:w|t|m|pid|start_time|wall_s|cpu_s|peak_rss_bytes)":(?:"[^"]*"|[\d.eE+-]+),?')


def test_locale_and_time_zone_change_no_byte_of_a_journal_but_its_own_values(tmp_path: Path) -> None:
    settings = [
        {"LC_ALL": "C.UTF-8", "TZ": "UTC"},
        {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TZ": "America/New_York"},
        {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Asia/Kathmandu"},
        {"LC_ALL": "de_DE@euro", "LC_NUMERIC": "de_DE.UTF-8", "TZ": "CET-1CEST,M3.5.0,M10.5.0/3"},
    ]
    journals = []
    for number, environment in enumerate(settings):
        (tmp_path / str(number)).mkdir()
        attempt = Attempt(tmp_path / str(number), SPOKEN)
        status, errors = attempt.finish(**environment)
        assert (status, errors) == (0, "")
        # The output's manifest has the attempt's cost, so its hash is the attempt's own.
        raw = re.sub(rb'"(?:sha256|manifest_sha256)":"[0-9a-f]{64}"', b"", attempt.run.journal.read_bytes())
        journals.append(OWN_VALUES.sub(b"", raw))
    assert journals[1:] == journals[:1] * 3
    assert "İstanbul — größer".encode() in journals[0]


def test_an_engine_without_free_file_numbers_keeps_its_journal_and_says_what_it_could_not_write(tmp_path: Path) -> None:
    body = """
    import resource
    from engines.events.writers import Warned
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    for number in range(50):
        ctx.warn(f"line {number}")
    ctx.check_stop()
    (ctx.out / "a.txt").write_text("made")
"""
    attempt = Attempt(tmp_path, body)
    assert attempt.finish()[0] == 1
    said = [event.message for event in attempt.events() if isinstance(event, Warned)]
    assert said == [f"line {number}" for number in range(50)], "the journal's own file stays open"
    assert attempt.end().reason == "error"
    assert "Too many open files" in attempt.end().detail


# ---- the context, in this process


def test_progress_is_reported_a_few_times_a_second_and_always_at_the_end(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, {"name": "s", "kind": "fake"})
    for done in range(2001):
        ctx.progress(done, 2000, "files")
    reported = [event for event in ctx.events() if isinstance(event, Progress)]
    assert reported[0].done == 0
    assert reported[-1].done == 2000
    assert len(reported) < 200


def test_a_pause_that_is_sent_while_a_training_loads_waits_for_its_first_step_and_a_stop_does_not(
    tmp_path: Path,
) -> None:
    ctx = make_context(tmp_path, {"name": "s", "kind": "fake"})
    control = RunDir(ctx.run_root).control
    put_request(control, Verb.PAUSE)
    ctx.check_stop()
    assert not any(isinstance(event, ControlApplied) for event in ctx.events())
    assert [request.verb for request in ctx.requests()] == ["pause"]
    put_request(control, Verb.LEARNING_RATE, 0.5)
    put_request(control, Verb.STOP)
    with pytest.raises(StopRequested):
        ctx.check_stop()
    assert [event.request for event in ctx.events() if isinstance(event, ControlApplied)] == ["stop"]


def test_a_stage_without_steps_answers_every_request_and_stops_at_a_stop(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, {"name": "s", "kind": "tokenizer", "data": "text", "vocab_size": 700})
    control = RunDir(ctx.run_root).control
    put_request(control, Verb.PAUSE)
    put_request(control, Verb.LEARNING_RATE, 0.5)
    put_request(control, Verb.STOP)
    put_request(control, Verb.CHECKPOINT)
    with pytest.raises(StopRequested):
        ctx.check_stop()
    answered = [event for event in ctx.events() if isinstance(event, ControlApplied)]
    assert [event.request for event in answered] == ["pause", "learning-rate 0.5", "stop"]
    assert all("ignored" in event.effect for event in answered[:2])
    assert [request.verb for request in ctx.requests()] == ["checkpoint"], "later requests are still there"


def test_a_request_for_another_stage_is_answered_as_ignored_and_one_for_this_stage_is_carried_out(
    tmp_path: Path,
) -> None:
    ctx = make_context(tmp_path, {"name": "second", "kind": "fake"})
    control = RunDir(ctx.run_root).control
    put_request(control, Verb.MAX_STEPS, 1000, stage="first")
    put_request(control, Verb.MAX_STEPS, 60, stage="second")
    assert [(request.value, request.stage) for request in ctx.requests()] == [(60.0, "second")]
    (answer,) = (event for event in ctx.events() if isinstance(event, ControlApplied))
    assert (answer.number, answer.effect) == (1, "ignored: it was sent for first, and second is running")


def test_a_warning_names_its_stage_and_attempt(tmp_path: Path) -> None:
    ctx = make_context(tmp_path, {"name": "s", "kind": "fake"}, attempt=3)
    ctx.warn("careful")
    last = ctx.events()[-1]
    assert isinstance(last, Warned)
    assert (last.stage, last.attempt, last.message) == ("s", 3, "careful")


def test_libraries_that_must_be_imported_first_refuse_an_attempt_before_its_stage_is_imported(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, "    raise AssertionError")
    tuned = {"name": "s", "kind": "finetune", "model": "m", "data": "d", "backend": "unsloth"}
    attempt.write_spec(tag="finetune", stage=tuned)
    status, errors = attempt.finish()
    assert status == 1
    assert attempt.end().detail.startswith(f"backend — {sys.executable} ")
    assert "Traceback" not in errors
    assert len(errors.splitlines()) == 2


def test_a_library_that_is_there_and_cannot_be_imported_is_named_by_its_cause(tmp_path: Path) -> None:
    """transformers says "Could not import module 'Trainer'" where one of its own requirements is missing."""
    attempt = Attempt(tmp_path, "    pass")
    (tmp_path / "stage_under_test.py").write_text(
        "try:\n    import no_such_xxhash\nexcept ModuleNotFoundError as error:\n"
        "    raise ModuleNotFoundError(\"Could not import module 'Trainer'\") from error\n"
    )
    status, errors = attempt.finish()
    assert status == 1
    assert attempt.end().detail == (
        f"{sys.executable} cannot import what the stage needs: No module named 'no_such_xxhash';"
        " install no_such_xxhash there"
    )
    assert "Could not import module 'Trainer'" in errors, "console.log has the whole chain"


def test_a_module_of_cockpit_that_an_update_removed_is_not_called_a_package_to_install(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, "    pass")
    (tmp_path / "stage_under_test.py").write_text("import engines.events.no_such_module\n")
    status, _ = attempt.finish()
    assert status == 1
    assert "No module named 'engines.events.no_such_module'" in attempt.end().detail
    assert attempt.end().detail.endswith(
        "Cockpit's own files there are of two versions: install it again, then resume the run"
    )


def test_sentences_of_libraries_that_say_nothing_to_an_operator_are_left_out(tmp_path: Path) -> None:
    body = """
    import logging, warnings
    log = logging.getLogger("bitsandbytes.backends.cpu.ops")
    log.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s.", "No module named 'kernels'")
    log.warning("another sentence of the same module")
    warnings.warn("`is_gradient_checkpointing` is deprecated and will be removed in v6.", FutureWarning)
    warnings.warn("another sentence", FutureWarning)
    return StageResult({}, [])
"""
    status, errors = Attempt(tmp_path, body).finish()
    assert status == 0
    assert "another sentence of the same module" in errors
    assert "FutureWarning: another sentence" in errors
    assert "kernels" not in errors
    assert "is_gradient_checkpointing" not in errors.replace('warnings.warn("`is_gradient_checkpointing`', "")


FILLED = """
    (ctx.out / "model.safetensors").write_bytes(bytes(1000))
    raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
"""


def test_an_output_that_fills_the_disk_is_removed_so_that_the_reason_can_be_written(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, FILLED)
    status, errors = attempt.finish()
    assert status == 1
    assert "Traceback" not in errors
    end = attempt.end()
    assert end.reason == "error"
    assert end.detail.startswith("no space to write in")
    assert not (attempt.run.attempt_dir("s", 1) / "out.tmp").exists()


@pytest.mark.parametrize("body", [FILLED, '    raise StageFailedError("it failed")', "    raise KeyError(1)"])
def test_a_console_that_takes_nothing_does_not_hide_the_reason(body: str, tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, f"    os.dup2(os.open('/dev/full', os.O_WRONLY), 2)\n{body}")
    attempt.finish()
    assert attempt.end().reason == "error"


def test_of_a_copy_that_fills_the_disk_the_file_that_is_written_is_named(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, "    raise OSError(28, 'No space left on device', '/from/here', None, '/to/there')")
    attempt.finish()
    assert attempt.end().detail.startswith("no space to write /to/there: No space left on device")
