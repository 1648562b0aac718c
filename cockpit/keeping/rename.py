"""Renaming a run. Paths that were recorded under the old name are found again (`engines.run_dir.moved_runs`)."""

from __future__ import annotations

import re

from cockpit.keeping.hold import held, require_known_format
from engines.run_dir.moved_runs import rename_run
from engines.run_dir.paths import RUN_ID, RunDir, RunDirError
from recipes.problems import OperatorError, printable

_STAMP = re.compile(r"\d{8}-\d{4}-")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}")


def rename(run: RunDir, name: str) -> RunDir:
    """Give a run another name; the date at the start of its id is kept, so that lists keep their order.

    Raises:
        OperatorError: the name is not allowed or taken, or the run is live, of a newer format or another user's.
    """
    check_name(run, name)
    new_id = _new_id(run, name)
    if new_id == run.id:
        raise OperatorError(f"NAME — {run.id} already has this name")
    require_known_format(run)
    with held(run):
        try:
            return rename_run(run, new_id)
        except RunDirError as error:
            raise OperatorError(f"NAME — {error}", "choose another name") from error
        except OSError as error:
            raise OperatorError(f"{run.id} could not be renamed: {error.strerror or error}") from error


def check_name(run: RunDir, name: str) -> None:
    """Refuse a name that cannot be part of a run's id.

    Raises:
        OperatorError: what is allowed.
    """
    if _NAME.fullmatch(name) is None or RUN_ID.match(_new_id(run, name)) is None:
        raise OperatorError(
            f"NAME — got {printable(name)}; allowed: 1 to 60 letters, digits, '.', '_' and '-', the first not a sign"
        )


def _new_id(run: RunDir, name: str) -> str:
    """The id with another name; the date of the launch is kept unless the name begins with one."""
    stamp = _STAMP.match(run.id)
    return name if _STAMP.match(name) or stamp is None else f"{stamp[0]}{name}"
