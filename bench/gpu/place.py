"""Where a visit works, the environment of its processes, and the gate at which timed work waits for its turn.

Loading takes most of a visit, and needs the card little. So the processes of a group start together, load, and wait at
the gate; the visit lets them through one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

REPO = Path(os.environ.get("TRIAL_REPO", Path(__file__).resolve().parents[2]))
WORK = Path(os.environ.get("TRIAL_WORK", "/tmp/trial"))
HOOK = Path(__file__).resolve().parent / "hook"
SMOKE = os.environ.get("TRIAL_SMOKE") == "1"
SLOW = 4 if SMOKE else 1
"""Limits are stretched on a small machine."""
GATE, RUNS, RESULTS, RAW = WORK / "gate", WORK / "runs", WORK / "results", WORK / "raw"
_NEEDED = 50 << 30


def weights_folder() -> Path:
    """Where the large models lie: in memory if there is room, because a disk may be slow."""
    shared = Path("/dev/shm")
    roomy = not SMOKE and shared.is_dir() and shutil.disk_usage(shared).free > _NEEDED
    return (shared if roomy else WORK) / "trial-weights"


def environment(**changes: str) -> dict[str, str]:
    """Of a process of the product."""
    paths = [str(HOOK), str(REPO), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    found = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "XDG_CACHE_HOME": str(WORK / "cache"),
        "XDG_STATE_HOME": str(WORK / "state"),
    }
    return {**found, **changes}


def wait_for_turn(name: str) -> None:
    """Say that this process has loaded, and wait until it may use the card."""
    (GATE / f"{name}.ready").touch()
    while not (GATE / f"{name}.go").exists():
        time.sleep(0.02)


def result_of(name: str) -> dict[str, Any]:
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found


def tail(path: Path, size: int = 2000) -> str:
    return path.read_text(errors="replace")[-size:] if path.exists() else ""


def say(words: str) -> None:
    sys.stdout.write(words + "\n")
    sys.stdout.flush()
