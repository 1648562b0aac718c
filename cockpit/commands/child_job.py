"""Work that needs torch or llama.cpp, done by a child process that reports progress as lines of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from cockpit.launching.interpreters import check_here
from engines.words import ExitCode
from recipes.problems import OperatorError

_ROOT = Path(__file__).resolve().parents[2]
_CODES = frozenset(ExitCode)


def follow_job(
    module: str, job: Mapping[str, Any], show: Callable[[dict[str, Any]], None], needs: Iterable[str]
) -> ExitCode:
    """Run `python -m module JOB` to its end; returns its exit code.

    Args:
        module: the child's module; it prints JSON objects, one a line, and dies with this process.
        job: its one argument.
        show: called with each object.
        needs: distributions that the module imports.

    Raises:
        OperatorError: a distribution is missing, or a signal ended the child.
    """
    check_here(needs, f"this command ({module})")
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", module, json.dumps(job)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}) as child:
        assert child.stdout is not None
        try:
            for line in child.stdout:
                show(json.loads(line))
            code = child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise
    if code < 0:
        raise OperatorError(f"signal {-code} ended the child process; no partial files were left behind")
    return ExitCode(code) if code in _CODES else ExitCode.FAILED
