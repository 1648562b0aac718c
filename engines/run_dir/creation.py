"""The creation of a run directory: a new id, and all files of a launch at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from engines.files import fsync_folder, write_durably
from engines.run_dir.paths import FORMAT, RECIPE_SHA256, RUN_JSON, RunDir, RunDirError, taken_requests

_MINUTE = "%Y%m%d-%H%M"
_STAMPED = re.compile(r"[0-9]{8}-[0-9]{4}-")
_FUTURE = timedelta(hours=36)
"""A clock that was wrong by a day, or by a time zone, is followed; one that was wrong by years is not."""


def create_run_dir(
    runs_root: Path,
    *,
    name: str,
    recipe: str,
    recipe_toml: str,
    recipe_json: dict[str, Any],
    plan_json: dict[str, Any],
    version: str,
    recipe_path: str | None = None,
    parent: str | None = None,
    sets: Sequence[str] = (),
    seal: Callable[[RunDir], None] = lambda _draft: None,
) -> RunDir:
    """Create a run directory atomically: it is filled under a temporary name and renamed.

    Run ids sort by time and are readable: `20261120-2130-atlas`; a second run in the same minute gets `-2`. `sets` are
    the overrides of the launch, as typed: `recipe_toml` is the recipe as given, without them.
    `seal` is called with the filled draft, before it exists under its name; what it raises leaves no folder behind.

    Raises:
        RunDirError: the root cannot be written.
    """
    os.umask(0o077)
    temporary = runs_root / f".new-{os.getpid()}-{time.monotonic_ns()}"
    try:
        runs_root.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        draft = RunDir(temporary)
        for folder in (taken_requests(draft.control), draft.stages, draft.journal_parts):
            folder.mkdir(parents=True)
        draft.journal.touch()
        with suppress(OSError):  # a file system without pipes: screens follow the journal alone
            os.mkfifo(draft.fifo, 0o600)
        write_durably(draft.recipe_toml, recipe_toml.encode())
        write_durably(draft.recipe_json, json.dumps(recipe_json, indent=1).encode())
        write_durably(draft.plan_json, json.dumps(plan_json, indent=1).encode())
        seal(draft)
        stamp = _stamp(runs_root, datetime.now())  # noqa: DTZ005 - ids have the local time
        for run_id in _candidate_ids(f"{stamp}-{name}"):
            target = runs_root / run_id
            if target.exists():
                continue
            facts = {"format": FORMAT, "id": run_id, "recipe": recipe, "parent": parent, "version": version}
            facts |= {"recipe_path": recipe_path, "created_t": time.time()}  # noqa: TID251 - a wall-clock fact
            facts |= {"sets": list(sets), RECIPE_SHA256: hashlib.sha256(recipe_toml.encode()).hexdigest()}
            write_durably(draft.run_json, json.dumps(facts, indent=1).encode())
            try:
                temporary.rename(target)
            except OSError:  # another launch took the name between the check and the rename
                continue
            fsync_folder(runs_root)
            return RunDir(target)
        raise AssertionError("unreachable: candidate ids are endless")
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunDirError(f"cannot create a run directory in {runs_root}: {error.strerror or error}") from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _stamp(runs_root: Path, now: datetime) -> str:
    """The minute for a new id. It is later than that of every run here, also after the clock was set back: `last` is
    the run that was created last. A run that claims to be from more than `_FUTURE` ahead does not count."""
    stamp, latest = now.strftime(_MINUTE), (now + _FUTURE).strftime(_MINUTE)
    stamps = [entry.name[: len(stamp)] for entry in os.scandir(runs_root) if _STAMPED.match(entry.name)]
    newest = max((found for found in stamps if found <= latest), default="")
    if newest < stamp or (newest == stamp and not _has_later(runs_root, stamp, now)):
        return stamp
    try:
        return (datetime.strptime(newest, _MINUTE) + timedelta(minutes=1)).strftime(_MINUTE)  # noqa: DTZ007 - as above
    except ValueError:  # digits that are no time
        return stamp


def _has_later(runs_root: Path, stamp: str, now: datetime) -> bool:
    """Whether a run of this minute was created at a time that is yet to come."""
    for found in runs_root.glob(f"{stamp}-*/{RUN_JSON}"):
        with suppress(OSError):
            if found.stat().st_mtime > now.timestamp():
                return True
    return False


def _candidate_ids(base: str) -> Iterator[str]:
    yield base
    number = 1
    while True:
        number += 1
        yield f"{base}-{number}"
