"""A job in a process of its own: its description is the one argument, what it tells are lines of JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from engines.llama.library import NativeError, die_with_parent
from recipes.problems import OperatorError

DONE, FAILED, MISTAKE, INTERRUPTED = 0, 1, 2, 130

Tell = Callable[[dict[str, Any]], None]


def run_job(argv: list[str], work: Callable[[str, Tell], int]) -> int:
    """Do the job and return the exit code: `work`'s own, 2 for a mistake in what was asked, 1 for a failure.

    Args:
        argv: program and description.
        work: takes the description and what tells a line; `{"error", "hint"}` lines are this function's.
    """
    die_with_parent()

    def tell(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    try:
        return work(argv[1], tell)
    except OperatorError as error:
        tell({"error": error.message, "hint": error.hint})
        return MISTAKE
    except (NativeError, OSError) as error:
        tell({"error": str(error), "hint": ""})
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
