"""Whether a run may be acted on: `why_untrusted` for starting its commands, `why_not_ours` for requests to it.

A folder decides what a supervisor starts: interpreters, programs, inputs. So a supervisor is started only for a run
that this user launched on this machine (or trusts since), in a folder that no other user can change. A request only
writes a file into `control/`, and the run may live on another machine: owner and modes are enough.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

from cockpit.provenance import records
from engines.files import file_sha256, open_regular, write_durably
from engines.run_dir.paths import RunDir, attempt_folders, taken_requests
from recipes.problems import OperatorError

TOKEN_BYTES = 32
MAX_TOKEN_BYTES = 256
MAX_RECIPE_BYTES = 16 * 1024 * 1024
MOST_LINKS = 40
"""Links on the way to a run that are followed, as the kernel limits them."""


def why_not_ours(run: RunDir) -> str:
    """Why the run's folder may not be written into; empty if this user owns it and no other user may write it."""
    try:
        return _reason_of_link(run.root) or next(filter(None, map(_reason_of, _parts(run))), "")
    except OSError as error:
        return f"{run.root} cannot be examined: {error.strerror or error}"


def why_untrusted(run: RunDir) -> str:
    """Why no process may be started for the run; empty if this user launched it here and no other user may write it."""
    return why_not_ours(run) or _reason_of_record(run)


def require_trusted(run: RunDir) -> None:
    """Refuse to start processes for a run that is not trusted.

    Raises:
        OperatorError: the reason, and the command that shows what would be started.
    """
    reason = why_untrusted(run)
    if reason:
        raise OperatorError(
            f"{run.id} is read-only: {reason}", f"see what it would start, and allow it: cockpit trust {run.root}"
        )


def require_ours(run: RunDir) -> None:
    """Refuse to write into a run's folder that another user owns or may write.

    Raises:
        OperatorError: the reason.
    """
    reason = why_not_ours(run)
    if reason:
        raise OperatorError(f"{run.id} is read-only: {reason}", repair_hint(run))


def repair_hint(run: RunDir) -> str:
    """What makes a folder this user's own."""
    try:
        mine = run.root.stat().st_uid == os.getuid()
    except OSError:
        mine = False
    return f"make it private: chmod -R go-w {run.root}" if mine else "work on a copy of your own: cp -r RUN NEW"


def seal(run: RunDir) -> None:
    """Make the run trusted from now on: a token in the run, and its record. A token of this user's own is kept.

    Raises:
        OperatorError: the record cannot be written.
        OSError: the run's folder cannot be written.
    """
    token = token_of(run)
    if token is None:
        token = secrets.token_hex(TOKEN_BYTES)
        write_durably(run.launch_token, token.encode())
    records.remember(token, file_sha256(run.recipe_json))


def allow_recipe(run: RunDir, recipe_json: bytes) -> None:
    """Keep a trusted run trusted when its `recipe.json` is replaced by this content; called before it is replaced.

    Raises:
        OperatorError: the record cannot be written.
    """
    token = token_of(run)
    if token is not None:
        records.remember(token, hashlib.sha256(recipe_json).hexdigest())


def token_of(run: RunDir) -> str | None:
    """The token in the run's folder; None without one that only this user can read and write."""
    try:
        with open_regular(run.launch_token, MAX_TOKEN_BYTES, follow=False) as file:
            status = os.fstat(file.fileno())
            if status.st_uid != os.getuid() or status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                return None
            text = file.read(MAX_TOKEN_BYTES).decode("ascii").strip()
    except (OSError, ValueError):
        return None
    return text if len(text) == 2 * TOKEN_BYTES else None


def _reason_of_record(run: RunDir) -> str:
    token = token_of(run)
    if token is None:
        return "it has no launch token of yours, so it was launched by another user, elsewhere, or by an older Cockpit"
    try:
        record = records.recall(token)
        if record is None:
            return "this user did not launch it on this machine"
        if record.machine != records.machine_id():
            return "it was launched on another machine"
        open_regular(run.recipe_json, MAX_RECIPE_BYTES).close()
        if file_sha256(run.recipe_json) not in record.recipes:
            return "its recipe.json is not the one that was launched"
    except OperatorError as error:
        return error.message
    except OSError as error:
        return f"its recipe.json cannot be read: {error.strerror or error}"
    return ""


def _parts(run: RunDir) -> Iterator[Path]:
    """The paths that decide what a run does: its folder, its files, and the folders in it that are written to."""
    yield run.root
    for path in (
        run.run_json, run.recipe_json, run.plan_json, run.journal, run.journal_parts, run.control,
        taken_requests(run.control), run.stages, run.supervisor_lock, run.supervisor_log, run.exit_json, run.fifo,
    ):  # fmt: skip
        if os.path.lexists(path):
            yield path
    if run.stages.is_dir():
        for stage in list(run.stages.iterdir()):
            yield stage
            yield from attempt_folders(stage)


def _reason_of(path: Path) -> str:
    """Why a path is not this user's alone; empty if it is."""
    try:
        linked = path.lstat()
    except FileNotFoundError:  # a supervisor has removed it since the look, such as the exit.json of the launch before
        return ""
    if stat.S_ISLNK(linked.st_mode) and linked.st_uid != os.getuid():
        return f"{_user(linked.st_uid)} owns the link {path}"
    status = path.stat()
    if status.st_uid != os.getuid():
        return f"{_user(status.st_uid)} owns {path}"
    if status.st_mode & records.WRITABLE_BY_OTHERS:
        return f"other users may write {path} (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def _reason_of_link(root: Path) -> str:
    """Why the way to a folder is not trusted: a link on it that another user (other than root) owns."""
    todo, followed = [root.absolute()], 0
    while todo and followed <= MOST_LINKS:
        path = todo.pop()
        for step in (*reversed(path.parents), path):
            status = step.lstat()
            if not stat.S_ISLNK(status.st_mode):
                continue
            if status.st_uid not in {0, os.getuid()}:
                return f"{_user(status.st_uid)} owns the link {step}"
            todo.append(step.parent / step.readlink())
            followed += 1
    return "" if followed <= MOST_LINKS else f"{root} has too many links on its path"


def _user(uid: int) -> str:
    try:
        return f"user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"user {uid}"
