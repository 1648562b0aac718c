"""`kill -9` while a model is merged, converted or quantized, at points chosen by bytes written."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.manifest import read_manifest, verify_manifest
from engines.events.attempts import AttemptEnded
from engines.journal import read_journal
from engines.run_dir.paths import RunDir
from tests.patience import PATIENCE_S

pytestmark = [pytest.mark.torch, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[3]
KILLS = [2, pytest.param(10, marks=pytest.mark.thorough)]
"""Kills of each kind of work; `make thorough` has 30 in all."""


@dataclass
class Zygote:
    """A process that has imported the exporters and forks a child for each attempt."""

    process: subprocess.Popen[str]

    def attempt(self, run: RunDir, stage: dict[str, Any], number: int, kill_at: int = 0) -> tuple[int, int]:
        """Run an attempt; return its wait status and the number of bytes it wrote."""
        run.control.mkdir(parents=True, exist_ok=True)
        path = run.stage_json(stage["name"], number)
        path.parent.mkdir(parents=True)
        folders = {name: Path(stage[name]) for name in ("model", "adapter") if name in stage}
        inputs = {
            name: {"origin": "path", "name": name, "path": str(folder), "output": None, "manifest_sha256": None}
            for name, folder in folders.items()
        }
        spec = {
            "format": 1, "run_root": str(run.root), "tag": stage["kind"], "attempt": number, "inputs": inputs,
            "resume": None, "learning_rate_scale": 1.0, "fingerprint": "f" * 64, "stage": stage,
        }  # fmt: skip
        path.write_text(json.dumps(spec))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{path} {kill_at}\n")
        self.process.stdin.flush()
        status, written = self.process.stdout.readline().split()
        return int(status), int(written)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.exporters.zygote"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    with process:
        yield Zygote(process)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(PATIENCE_S) == 0


STAGES: dict[str, dict[str, Any]] = {
    "merge": {"kind": "merge"},
    "convert": {"kind": "export", "file_types": ["F32", "F16"], "parity_positions": 64, "max_length": 64},
    "quantize": {"kind": "export", "file_types": ["Q4_K_M", "Q8_0"], "parity_positions": 0},
}


def files(folder: Path) -> dict[str, str]:
    """SHA-256 of a finished folder's files, without those that contain times and speeds."""
    listed = {entry["path"]: entry["sha256"] for entry in read_manifest(folder)["files"]}
    return {name: sha256 for name, sha256 in listed.items() if name.endswith((".gguf", ".safetensors"))}


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize(
    "work", [*(pytest.param(one, marks=pytest.mark.thorough) for one in ("merge", "convert")), "quantize"]
)
def test_a_kill_leaves_no_partial_file_under_a_final_name_and_a_retry_makes_the_same_files(
    work: str, kills: int, zygote: Zygote, base: Path, adapter: Path, tmp_path: Path
) -> None:
    stage = {"name": "made", **STAGES[work], "model": str(base), "threads": 1}
    if work == "merge":
        stage = {**stage, "adapter": str(adapter)}
        del stage["threads"]
    before = {path: path.read_bytes() for folder in (base, adapter) for path in folder.iterdir() if path.is_file()}
    whole = RunDir(tmp_path / "whole" / "run")
    status, total = zygote.attempt(whole, stage, 1)
    assert status == 0, list(read_journal(whole.journal))[-2:]
    wanted = files(whole.out("made"))
    assert wanted

    rng = random.Random(f"kills of {work}")
    killed = 0
    for number in range(kills):
        run = RunDir(tmp_path / str(number) / "run")
        point = int(total * (number + rng.random()) / kills)
        status, _ = zygote.attempt(run, stage, 1, max(1, point))
        killed += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
        out = run.out("made")
        assert not out.exists() or verify_manifest(out) == [], point
        for path in run.attempt_dir("made", 1).rglob("*"):
            if path.suffix in (".gguf", ".safetensors"):
                assert path.stat().st_size == (whole.out("made") / path.name).stat().st_size, (point, path)
                assert path.read_bytes() == (whole.out("made") / path.name).read_bytes(), (point, path)
        if out.exists():
            continue  # killed after all was in its place: the supervisor finds the finished folder
        status, _ = zygote.attempt(run, stage, 2)
        assert status == 0, (point, list(read_journal(run.journal))[-2:])
        assert files(out) == wanted, point
    assert killed >= max(1, kills - 2), "the points were within the work"
    assert {path: path.read_bytes() for path in before} == before, "inputs are as they were"


@pytest.mark.parametrize("work", STAGES)
def test_a_disk_that_fills_up_gives_an_error_message_and_leaves_no_partial_file(
    work: str, zygote: Zygote, base: Path, adapter: Path, tmp_path: Path
) -> None:
    stage = {"name": "made", **STAGES[work], "model": str(base)}
    stage |= {"adapter": str(adapter)} if work == "merge" else {}
    before = {path: path.read_bytes() for folder in (base, adapter) for path in folder.iterdir() if path.is_file()}
    run = RunDir(tmp_path / "run")
    status, _ = zygote.attempt(run, stage, 1, -300_000)
    assert os.waitstatus_to_exitcode(status) == 1
    ended = next(event for event in read_journal(run.journal) if isinstance(event, AttemptEnded))
    assert "no space to write" in ended.detail
    assert "iB are free" in ended.detail
    assert "Traceback" not in ended.detail
    assert not run.out("made").exists()
    assert not [path for path in run.root.rglob("*") if path.suffix in (".gguf", ".safetensors")]
    assert {path: path.read_bytes() for path in before} == before, "inputs are as they were"
    assert zygote.attempt(run, stage, 2)[0] == 0, "with free space again, it succeeds"
