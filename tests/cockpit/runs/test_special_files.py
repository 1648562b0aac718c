"""Runs in which a pipe, an endless device or a folder replaces a file: `ls` and `show` do not block."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engines.run_dir.paths import RunDir
from tests.cockpit.command_line import CODE_ROOT
from tests.patience import PATIENCE_S
from tests.tui.made_runs import make_run

REPLACEMENTS = ("pipe", "device", "folder")
SHOW_EACH = """
import json, sys
from cockpit.cli import main
from tests.patience import PATIENCE_S
codes = {}
for run in json.loads(sys.argv[1]):
    for command in (["show", run], ["show", run, "--json"], ["verify", run]):
        print(command, file=sys.stderr, flush=True)
        codes[" ".join(command)] = main(command)
print(json.dumps(codes))
"""


def _files(run: RunDir) -> dict[str, Path]:
    return {
        "exit.json": run.exit_json,
        "journal.d part": run.journal_parts / "other.jsonl",
        "journal": run.journal,
        "recipe.json": run.recipe_json,
        "plan.json": run.plan_json,
        "recipe.toml": run.recipe_toml,
        "run.json": run.run_json,
        "live pipe": run.fifo,
        "supervisor.lock": run.supervisor_lock,
        "stage.json": run.stage_json("train", 1),
        "engine.lock": run.engine_lock("train", 1),
        "manifest": run.out("train") / "manifest.json",
        "checkpoint's manifest": run.checkpoints("train", 1) / "step-40" / "manifest.json",
        "request": run.control / "000001-stop.json",
    }


def _replace(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")


@pytest.mark.parametrize("state", ["succeeded", None])
def test_nothing_in_a_run_can_keep_ls_and_show_waiting(tmp_path: Path, state: str | None) -> None:
    root = tmp_path / "runs"
    made: dict[str, str] = {}
    for kind in REPLACEMENTS:
        for number, name in enumerate(_files(RunDir(tmp_path))):
            run = make_run(root, f"{kind}-{number}", state=state)
            _replace(_files(run)[name], kind)
            made[run.id] = name
    whole = make_run(root, "whole", state=state)
    environment = {**os.environ, "COCKPIT_RUNS_DIR": str(root), "PYTHONPATH": str(CODE_ROOT)}

    def ask(*argv: str) -> str:
        done = subprocess.run(
            [sys.executable, *argv], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=PATIENCE_S, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    listed = {item["id"]: item["state"] for item in json.loads(ask("-m", "cockpit", "ls", "--json"))}
    expected = listed[whole.id]
    needed = ("run.json", "journal")
    assert {run for run, name in made.items() if name not in needed} < set(listed)
    assert {listed[run] for run, name in made.items() if name not in needed} == {expected}

    codes = json.loads(ask("-c", SHOW_EACH, json.dumps([*made, whole.id])).splitlines()[-1])
    assert len(codes) == 3 * (len(made) + 1)
    assert codes[f"show {whole.id}"] == 0
    assert {codes[f"show {run}"] for run, name in made.items() if name not in needed} == {0}
    assert set(codes.values()) <= {0, 1, 2}
