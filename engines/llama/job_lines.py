"""Runs a job in its own process: the argument is its description, the output is lines of JSON on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from engines.llama.library import NativeError, die_with_parent
from engines.words import ExitCode
from recipes.problems import OperatorError

Send = Callable[[dict[str, Any]], None]


def run_job(argv: list[str], work: Callable[[str, Send], ExitCode]) -> ExitCode:
    """Run the job and return the exit code: `work`'s own, 2 for wrong input, 1 for a failure, 130 after an interrupt.

    Args:
        argv: program and description.
        work: takes the description and the function that prints a line; `run_job` prints `{"error", "hint"}` lines.
    """
    die_with_parent()

    def send(line: dict[str, Any]) -> None:
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    try:
        return work(argv[1], send)
    except OperatorError as error:
        send({"error": error.message, "hint": error.hint})
        return ExitCode.MISTAKE
    except (NativeError, OSError) as error:
        send({"error": str(error), "hint": ""})
        return ExitCode.FAILED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
