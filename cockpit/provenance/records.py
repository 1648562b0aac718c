"""The private records of launches: one small file per run that this user launched, or trusts, on this machine.

A run contains a random token, and the name of its record is the token's SHA-256. A record has what the token alone
cannot prove: the SHA-256 of the run's resolved recipes (a resume may change fields), which name the commands, and the
machine. A folder that comes back from another person with another recipe therefore has no valid record.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from engines.files import read_regular_text, write_durably
from engines.json_text import read_json
from recipes.problems import OperatorError

MAX_RECORD_BYTES = 4096
MOST_RECIPES = 32
"""Recipes of one run that are remembered; the newest ones."""
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@dataclass(frozen=True)
class LaunchRecord:
    """What is remembered of a launch: the SHA-256 of each `recipe.json` it had, and the machine's id (may be empty)."""

    recipes: tuple[str, ...]
    machine: str


def records_folder() -> Path:
    """Where the records are: $XDG_STATE_HOME/cockpit/launched, by default ~/.local/state/cockpit/launched."""
    given = Path(os.environ.get("XDG_STATE_HOME") or "")
    state = given if given.is_absolute() else Path("~/.local/state").expanduser()
    return state / "cockpit" / "launched"


@cache
def machine_id() -> str:
    """The id that the operating system gave this machine; empty if it has none."""
    try:
        return read_regular_text(Path("/etc/machine-id"), MAX_RECORD_BYTES).strip()
    except (OSError, ValueError):
        return ""


def remember(token: str, recipe_sha256: str) -> None:
    """Add a resolved recipe to the record of a run; the recipes that it had before on this machine stay valid.

    Raises:
        OperatorError: the folder of records cannot be written, or another user may write it.
    """
    folder = records_folder()
    try:
        for part in (folder.parent, folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(folder)
        known = recall(token)
        earlier = known.recipes if known is not None and known.machine == machine_id() else ()
        kept = [recipe for recipe in earlier if recipe != recipe_sha256][-MOST_RECIPES + 1 :]
        record = LaunchRecord((*kept, recipe_sha256), machine_id())
        write_durably(folder / _name_of(token), json.dumps(asdict(record)).encode())
    except OSError as error:
        raise OperatorError(
            f"could not record the launch in {folder}: {error.strerror or error}",
            "set XDG_STATE_HOME to a folder that only you can write",
        ) from error


def recall(token: str) -> LaunchRecord | None:
    """The record of a run; None if there is no valid one.

    Raises:
        OperatorError: another user may write the folder of records.
    """
    folder = records_folder()
    try:
        _require_private(folder)
        value = read_json(folder / _name_of(token), MAX_RECORD_BYTES)
        return LaunchRecord(tuple(map(str, value["recipes"])), str(value["machine"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def forget(token: str) -> None:
    """Remove the record of a run that no longer exists."""
    try:
        (records_folder() / _name_of(token)).unlink(missing_ok=True)
    except OSError:
        return  # the record of a run that is gone does no harm


def _name_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _require_private(folder: Path) -> None:
    """Refuse a folder of records that another user owns or may write.

    Raises:
        OperatorError: another user could add records.
        OSError: the folder does not exist.
    """
    for part in (folder.parent, folder):
        status = part.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & WRITABLE_BY_OTHERS:
            raise OperatorError(
                f"{part} is not private: another user owns it or may write it, or it is a link",
                f"make it private: chmod 700 {part}; or set XDG_STATE_HOME to a folder that only you can write",
            )
