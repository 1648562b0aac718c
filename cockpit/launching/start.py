"""Starting the supervisor of a run, for launch, resume and adoption."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

from cockpit import CODE_ROOT
from cockpit.provenance import records
from cockpit.provenance.mark import SUPERVISOR_MODULE
from cockpit.provenance.trust import require_trusted, token_of
from engines.run_dir.locks import Lock, lock_holder, lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import ExitCode, StartReason
from recipes.problems import OperatorError


def start_supervisor(run: RunDir, reason: StartReason, arguments: Sequence[str] = ()) -> None:
    """Start the supervisor and wait until it holds the run's lock; a double fork detaches it from this process.

    Every supervisor is started here, and only for a trusted run: it executes what the run's folder names.

    Raises:
        OperatorError: the run is not trusted or cannot be written, another supervisor holds the lock, or this one did
            not start.
    """
    require_trusted(run)
    require_writable(run)
    # Not by the name of a link: the engine would lose its folder with the link.
    root = run.root.resolve() if run.root.is_symlink() else run.root
    try:
        done = subprocess.run(
            [sys.executable, "-m", SUPERVISOR_MODULE, str(root), "--reason", reason, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=CODE_ROOT,
            start_new_session=True,
            check=False,
        )
    except OSError as error:  # no more processes, memory or file numbers
        raise OperatorError(f"the supervisor of {run.id} could not be started: {error.strerror}") from error
    if done.returncode == ExitCode.MISTAKE:
        require_free(run)
        raise OperatorError(f"another supervisor has just started {run.id}", f"follow it: cockpit attach {run.id}")
    if done.returncode != 0:
        raise OperatorError(f"the supervisor of {run.id} did not start: {done.stderr.strip()[-500:]}")


def require_writable(run: RunDir) -> None:
    """Refuse a run whose processes could not write their records, checkpoints or outputs.

    Raises:
        OperatorError: a folder or a file of it cannot be written; each is named.
    """
    folders = (run.root, run.control, run.journal_parts, run.stages)
    stages = [run.stages / name for name in run.stage_names()]
    files = (run.journal, run.supervisor_lock, run.supervisor_log)
    wanted = [(path, os.W_OK | os.X_OK) for path in (*folders, *stages)] + [(path, os.W_OK) for path in files]
    refused = [path for path, mode in wanted if os.path.lexists(path) and not os.access(path, mode, effective_ids=True)]
    if refused:
        names = ", ".join(str(path) for path in refused[:4])
        raise OperatorError(f"{run.id} is read-only: {names} cannot be written", f"chmod -R u+w {run.root}")


def remove_unstarted(run: RunDir) -> None:
    """Remove a run that was just created and that no supervisor began; a run with any record is kept."""
    lock = Lock(run.supervisor_lock)
    try:
        if not lock.acquire({}):
            return
    except OSError:
        return
    try:
        if run.journal.stat().st_size == 0 and not any(run.stages.iterdir()):
            token = token_of(run)
            shutil.rmtree(run.root, ignore_errors=True)
            if token is not None:
                records.forget(token)
    except OSError:
        return
    finally:
        lock.release()


def require_free(run: RunDir) -> None:
    """Raise if a supervisor holds the run's lock.

    Raises:
        OperatorError: the run is running.
    """
    if lock_is_held(run.supervisor_lock):
        holder = lock_holder(run.supervisor_lock)
        raise OperatorError(
            f"{run.id} is running: its supervisor is process {holder.get('pid', 'unknown')}",
            f"follow it: cockpit attach {run.id}; or stop it first: cockpit stop {run.id}",
        )
