"""Inputs of real runs are identified by what they contain, recorded when a stage reads them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.launch import resume
from cockpit.launching.requests import send_request
from engines.events.attempts import AttemptEnded, InputsRecorded, Phase, Progress
from engines.events.runs import RunStarted, StageStarted, StageSucceeded
from engines.run_dir.paths import RunDir
from engines.words import EndReason, Verb
from recipes.fingerprint import fingerprint
from recipes.problems import OperatorError
from tests.runs.harness import (
    ROOT,
    events,
    fake_recipe,
    launch_text,
    nothing_left,
    state,
    wait_for,
    wait_for_end,
    wait_for_engine,
    wait_for_step,
)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text('{"n": 1}\n{"n": 2}\n')
    (data / "val.jsonl").write_text('{"n": 3}\n')
    with nothing_left(tmp_path / "runs"):
        yield tmp_path


def a_run(home: Path, **stage: Any) -> RunDir:
    return launch_text(fake_recipe({"data": "./data", "step_s": 0.01, **stage}), home)


def of_kind(run: RunDir, kind: type[Any]) -> list[Any]:
    return [event for event in events(run) if isinstance(event, kind)]


def wait_for_record(run: RunDir) -> None:
    wait_for(lambda: of_kind(run, InputsRecorded), "the record of the inputs")


def stopped_at(home: Path, step: int = 3) -> RunDir:
    """A run whose engine failed after some steps, for an operator to resume."""
    run = a_run(home, max_steps=20, save_steps=2, fail_at_step=step + 1)
    assert wait_for_end(run) == "failed"
    return run


def replace_by_a_copy(data: Path) -> None:
    shutil.copytree(data, data.with_name("copy"))
    data.rename(data.with_name("old"))
    data.with_name("copy").rename(data)


def check_out(data: Path) -> None:
    """As git and rsync without -t do it: a new file with the same bytes takes the place."""
    for file in data.glob("*.jsonl"):
        new = file.with_name(file.name + ".new")
        new.write_bytes(file.read_bytes())
        new.rename(file)


@pytest.mark.parametrize(
    "happening",
    [
        lambda data: os.utime(data / "train.jsonl"),
        lambda data: (data / "notes.txt").write_text("beside"),
        check_out,
        replace_by_a_copy,
    ],
    ids=["touched", "a file beside", "checked out", "copied and renamed back"],
)
@pytest.mark.parametrize("attempts", [1, 2])
def test_what_changes_no_byte_changes_nothing_while_a_stage_runs(home: Path, happening: Any, attempts: int) -> None:
    run = a_run(home, max_steps=12, retry={"max_attempts": attempts})
    wait_for_record(run)
    happening(home / "data")
    assert wait_for_end(run) == "succeeded"
    assert len(of_kind(run, StageStarted)) == 1
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run)


def test_a_finished_stage_is_judged_by_its_record_whatever_becomes_of_the_data(home: Path) -> None:
    run = a_run(home, max_steps=3)
    wait_for_record(run)
    shutil.rmtree(home / "data")
    assert wait_for_end(run) == "succeeded"
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run)


def test_a_resume_on_other_data_is_refused_with_the_files_and_starts_nothing(home: Path) -> None:
    run = stopped_at(home)
    before = run.journal.read_bytes()
    (home / "data" / "train.jsonl").write_text('{"n": 1}\n')
    (home / "data" / "val.jsonl").write_text('{"n": 4}\n')
    command = [sys.executable, "-m", "cockpit", "resume", str(run.root)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2
    assert "part-1.data" in done.stderr
    assert "changed train.jsonl (18 → 9 bytes)" in done.stderr
    assert "changed val.jsonl (9 bytes, other content)" in done.stderr
    assert "--accept-changed-inputs" in done.stderr
    assert "Traceback" not in done.stderr
    assert run.journal.read_bytes() == before


def test_an_accepted_change_is_journaled_shown_and_becomes_the_record(home: Path) -> None:
    run = stopped_at(home)
    (home / "data" / "train.jsonl").write_text('{"n": 1}\n')
    resume(run, accept_changed_inputs=True)
    assert wait_for_end(run) == "succeeded"
    (accepted,) = of_kind(run, RunStarted)[-1].accepted_inputs
    assert (accepted.stage, accepted.field, accepted.files) == (
        "part-1",
        "data",
        ["changed train.jsonl (18 → 9 bytes)"],
    )
    assert of_kind(run, InputsRecorded)[-1].inputs[0].sha256 == accepted.sha256
    command = [sys.executable, "-m", "cockpit", "show", str(run.root)]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert "changed inputs accepted at a resume: changed train.jsonl (18 → 9 bytes)" in shown
    told = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert json.loads(told)["accepted_inputs"][0]["files"] == accepted.files
    assert any("changed inputs accepted" in line.text for line in state(run).log())
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run)


def test_what_was_accepted_once_is_not_asked_again_but_a_further_change_is(home: Path) -> None:
    run = stopped_at(home)
    (home / "data" / "train.jsonl").write_text('{"n": 1}\n')
    resume(run, accept_changed_inputs=True)
    assert wait_for_end(run) == "succeeded"
    resume(run, stage="part-1")
    assert wait_for_end(run) == "succeeded"
    (home / "data" / "train.jsonl").write_text('{"n": 9}\n')
    with pytest.raises(OperatorError, match="other content"):
        resume(run, stage="part-1")


def test_an_automatic_retry_on_other_data_ends_the_stage_with_the_reason(home: Path) -> None:
    run = a_run(home, max_steps=100_000, step_s=0.02, retry={"max_attempts": 3})
    wait_for_step(run, 2)
    (home / "data" / "train.jsonl").write_text('{"n": 1}\n')
    os.kill(wait_for_engine(run), signal.SIGKILL)
    assert wait_for_end(run) == "failed"
    last = [event for event in of_kind(run, AttemptEnded) if event.attempt == 2]
    assert last[0].reason == EndReason.INPUTS_CHANGED
    assert "changed train.jsonl (18 → 9 bytes)" in state(run).reason
    assert len(of_kind(run, StageStarted)) == 2, "a third attempt would find the same"


def test_a_stop_is_taken_while_a_large_input_is_read(home: Path) -> None:
    with (home / "data" / "train.jsonl").open("wb") as large:
        large.truncate(64 << 30)  # zeros that take no space
    run = a_run(home, max_steps=3)
    wait_for(lambda: of_kind(run, Progress), "the progress of the reading")
    assert [phase.name for phase in of_kind(run, Phase)] == ["checking inputs"]
    send_request(run, Verb.STOP_AFTER_CHECKPOINT)
    assert wait_for_end(run) == "stopped"
    assert {(p.unit, p.total) for p in of_kind(run, Progress)} == {("bytes", float((64 << 30) + 9))}
    assert not of_kind(run, InputsRecorded), "what was not read to its end is not recorded"


def test_a_run_of_an_older_version_stays_done_and_resumable(home: Path) -> None:
    run = a_run(home, max_steps=3)
    assert wait_for_end(run) == "succeeded"
    as_an_older_version_wrote_it(run)
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run)
    os.utime(home / "data" / "train.jsonl")
    (home / "data" / "train.jsonl").write_text("other")
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run)
    resume(run, stage="part-1")
    assert wait_for_end(run) == "succeeded"


def as_an_older_version_wrote_it(run: RunDir) -> None:
    """Fingerprint from names and times and from fewer fields, no record of the inputs, no numbers of launches."""
    success = of_kind(run, StageSucceeded)[0]
    stage_json = run.stage_json("part-1", success.attempt)
    given = json.loads(stage_json.read_text())
    del given["stage"]["eval_steps"], given["launch"], given["expected"]
    by_times = "0" * 64
    given |= {"format": 1, "fingerprint": fingerprint(given["stage"], [by_times])}
    given["inputs"]["data"]["manifest_sha256"] = by_times
    stage_json.write_text(json.dumps(given))
    lines = []
    for line in run.journal.read_text().splitlines():
        record = json.loads(line)
        if record["k"] == "inputs_recorded":
            record = {**record, "k": "warned", "message": "older versions wrote no such record"}
        if record["k"] == "stage_succeeded":
            record["fingerprint"] = given["fingerprint"]
        for new in ("launch", "attempts", "cpu_s"):
            record.pop(new, None)
        lines.append(json.dumps(record, separators=(",", ":")))
    run.journal.write_text("\n".join(lines) + "\n")
    run.inputs_json("part-1", success.attempt).unlink()


ROWS = """
schema = 1
name = "rows"
[[stage]]
name = "cached"
kind = "prepare"
output = "messages"
data = "me/talks"
[[stage]]
name = "made"
kind = "prepare"
output = "messages"
command = ["python", "make.py"]
"""


def test_a_stage_is_done_whose_rows_come_from_a_cached_dataset_or_from_a_command(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = home / "hub" / "datasets--me--talks"
    (dataset / "refs").mkdir(parents=True)
    (dataset / "refs" / "main").write_text("abc")
    (dataset / "snapshots" / "abc").mkdir(parents=True)
    rows = "".join(json.dumps({"prompt": f"q{n}", "completion": "a"}) + "\n" for n in range(20))
    (dataset / "snapshots" / "abc" / "rows.jsonl").write_text(rows)
    (home / "make.py").write_text(f"print({rows!r})")
    monkeypatch.setenv("HF_HUB_CACHE", str(home / "hub"))
    run = launch_text(ROWS, home)
    assert wait_for_end(run) == "succeeded"
    recorded = {event.stage: event.inputs for event in of_kind(run, InputsRecorded)}
    assert {stage: [(item.field, item.files) for item in inputs] for stage, inputs in recorded.items()} == {
        "cached": [("data", 1)],
        "made": [("source", 1)],
    }
    assert [event.attempt for event in of_kind(run, StageStarted)] == [1, 1]
    (home / "make.py").write_text("print()")
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run)
