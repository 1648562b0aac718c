"""Starting the supervisor of a run, for launch, resume and adoption alike."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from engines.run_dir import RunDir, lock_holder, lock_is_held
from engines.words import ExitCode, StartReason
from recipes.problems import OperatorError

CODE_ROOT = Path(__file__).resolve().parents[2]
"""Where the packages are: the working directory of the processes that a run starts."""


def start_supervisor(run: RunDir, reason: StartReason, arguments: Sequence[str] = ()) -> None:
    """Start it and wait until it holds the run (it leaves this process behind by a double fork).

    Raises:
        OperatorError: another supervisor holds the run, or this one did not start.
    """
    done = subprocess.run(
        [sys.executable, "-m", "cockpit.supervision.supervisor", str(run.root), "--reason", reason, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=CODE_ROOT,
        start_new_session=True,
        check=False,
    )
    if done.returncode == ExitCode.MISTAKE:
        require_free(run)
        raise OperatorError(f"{run.id} was taken by another supervisor a moment ago", "watch it: cockpit attach RUN")
    if done.returncode != 0:
        raise OperatorError(f"the supervisor of {run.id} did not start: {done.stderr.strip()[-500:]}")


def require_free(run: RunDir) -> None:
    """Refuse to continue while a supervisor holds the run.

    Raises:
        OperatorError: one does.
    """
    if lock_is_held(run.supervisor_lock):
        holder = lock_holder(run.supervisor_lock)
        raise OperatorError(
            f"{run.id} is running: its supervisor is process {holder.get('pid', 'unknown')}",
            "watch it: cockpit attach RUN; or end it first: cockpit stop RUN",
        )
