"""What the killed attempts of a stage have left: the next one removes it when it begins."""

from __future__ import annotations

import shutil
from contextlib import suppress

from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import PARTS, RunDir, locks_of, scratch_of

_UNFINISHED = "*.tmp"


def remove_scratch(run: RunDir, stage: str, attempt: int) -> None:
    """Remove unfinished output and scratch of the attempts before this one, but for finished parts.

    An attempt is left alone while a process of it lives: the process holds its lock.

    Args:
        run: the run's folder.
        stage: the stage that begins.
        attempt: its present attempt.
    """
    for earlier in run.attempts(stage):
        folder = run.attempt_dir(stage, earlier)
        if earlier >= attempt or any(lock_is_held(lock) for lock in locks_of(folder)):
            continue
        parts = run.parts(stage, earlier)
        for scratch in scratch_of(folder):
            if scratch.is_symlink():
                continue
            if scratch != parts.parent or parts.is_symlink() or not parts.is_dir():
                shutil.rmtree(scratch, ignore_errors=True)
                continue
            for inside in scratch.iterdir():
                if inside.name != PARTS and inside.is_dir() and not inside.is_symlink():
                    shutil.rmtree(inside, ignore_errors=True)
                elif inside.name != PARTS:
                    inside.unlink(missing_ok=True)
            for unfinished in parts.glob(_UNFINISHED):
                with suppress(OSError):
                    unfinished.unlink()
