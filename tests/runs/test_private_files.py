"""What a run leaves is for its owner only, and has no secret of the shell that started it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cockpit.runs.find import run_ids
from cockpit.supervision.process_tree import run_processes
from engines.events.attempts import AttemptStarted
from engines.run_dir.locks import lock_holder
from engines.run_dir.paths import RunDir
from tests.patience import PATIENCE_S
from tests.runs.harness import (
    ROOT,
    events,
    fake_recipe,
    step_of,
    wait_for,
    wait_for_end,
    wait_for_engine,
    wait_for_step,
)

SECRET = "s3cr3t-canary-93c1"
SECRETS = {
    "HF_TOKEN": SECRET,
    "WANDB_API_KEY": SECRET,
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "https_proxy": f"http://ada:{SECRET}@localhost:1",
}
STAGES = (
    {"max_steps": 100_000, "step_s": 0.02, "save_steps": 10, "eval_steps": 10, "fail_at_step": 15,
     "retry": {"max_attempts": 2}},
    {"max_steps": 3, "step_s": 0.0, "fail_at_step": 2},
)  # fmt: skip


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    """A run with a retry and a failure, launched from a shell that has secrets and shares its files."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(fake_recipe(*STAGES))
    command = [sys.executable, "-m", "cockpit", "run", str(recipe), "--runs-dir", str(tmp_path / "runs")]
    follower = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT, env={**os.environ, **SECRETS},
        umask=0o022,
    )  # fmt: skip
    run = RunDir(tmp_path / "runs" / wait_for(lambda: run_ids(tmp_path / "runs"), "a run")[0])
    wait_for_step(run)
    wait_for(lambda: any(isinstance(e, AttemptStarted) and e.attempt == 2 for e in events(run)), "the retry")
    wait_for_engine(run, attempt=2)
    commands = {one.pid: Path(f"/proc/{one.pid}/cmdline").read_bytes() for one in run_processes(run.root, [])}
    supervisor = int(lock_holder(run.supervisor_lock)["pid"])
    commands[supervisor] = Path(f"/proc/{supervisor}/cmdline").read_bytes()
    assert len(commands) >= 2
    assert not [line for line in commands.values() if SECRET.encode() in line]
    end = [sys.executable, "-m", "cockpit", "ctl", str(run.root), "max-steps", str(step_of(run) + 20)]
    subprocess.run(end, capture_output=True, check=True, cwd=ROOT, umask=0o022)
    printed, _ = follower.communicate(timeout=PATIENCE_S)
    assert wait_for_end(run) == "failed"
    assert SECRET.encode() not in printed
    return run


def test_no_file_of_a_run_is_for_others_and_none_has_a_secret_of_the_environment(finished: RunDir) -> None:
    paths = [finished.root, *finished.root.rglob("*")]
    assert len(paths) > 25
    open_to_others = [path for path in paths if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []
    read = [path for path in paths if path.is_file()]
    assert "Traceback" in finished.console_log("part-2", 1).read_text(), "there is a crash report to look into"
    assert [path for path in read if SECRET.encode() in path.read_bytes()] == []
