"""Start ranks over a list of jobs, and read what they reported."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
PRINTED = "printed.txt"
"""What the ranks and their libraries printed."""
SCRIPT = Path(__file__).with_name("rank_of_stages.py")


def launch(folder: Path, jobs: Sequence[Mapping[str, Any]], ranks: int = 2) -> None:
    """Run jobs in so many ranks; their records are in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    listed = folder / "jobs.json"
    listed.write_text(json.dumps(jobs))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, str(SCRIPT), str(listed), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE_S,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    (folder / PRINTED).write_text(done.stdout + done.stderr)


class Record:
    """What a rank reported of a job."""

    def __init__(self, folder: Path, name: str, rank: int = 0) -> None:
        self.values: dict[str, Any] = json.loads((folder / f"{name}.{rank}.json").read_text())
        self.error: str = self.values["error"]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The events of a kind, in their order."""
        return [event for event in self.values["events"] if event["k"] == kind]

    @property
    def steps(self) -> list[dict[str, Any]]:
        """The steps."""
        return self.of("step")

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the finished stage."""
        assert not self.error, self.error
        found: dict[str, float] = self.values["metrics"]
        return found

    def checkpoint(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return Path(self.values["checkpoints"]) / f"step-{step}"

    @property
    def out(self) -> Path:
        """The folder of the output."""
        return Path(self.values["out"])


Steps = Sequence[Mapping[str, Any]]


def assert_same(found: Steps, expected: Steps, within: float = 1e-6) -> None:
    """Losses, norms and measured values of steps are equal up to the order of summation; counts and rates exactly."""
    assert [step["step"] for step in found] == [step["step"] for step in expected]
    for one, other in zip(found, expected, strict=True):
        assert math.isclose(one["loss"], other["loss"], rel_tol=within), (one["step"], one["loss"], other["loss"])
        assert math.isclose(one["grad_norm"], other["grad_norm"], rel_tol=10 * within), one["step"]
        for name in ("learning_rate", "tokens", "loss_tokens"):
            assert one[name] == other[name], (one["step"], name)
        mine, theirs = one.get("metrics", {}), other.get("metrics", {})
        assert mine.keys() == theirs.keys()
        for name, value in theirs.items():
            assert math.isclose(mine[name], value, rel_tol=100 * within, abs_tol=1e-6), (one["step"], name)
