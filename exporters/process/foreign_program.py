"""Runs a program of the operator until it ends; it dies with this process, and its output goes to a log."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from engines.files import read_regular_text
from recipes.problems import printable

_POLL_S = 0.1
_ROOT = str(Path(__file__).resolve().parents[2])


class ForeignProgramError(Exception):
    """The program failed; the message has its exit status and its last line, for operators, `output` all of it."""

    def __init__(self, message: str, output: str) -> None:
        super().__init__(message)
        self.output = output


def run_program(
    command: Sequence[str], log: Path, look: Callable[[], None], environment: Mapping[str, str] | None = None
) -> str:
    """Run a program and return its output, stdout and stderr together.

    Args:
        command: the program's path and its arguments.
        log: the file for its output; it is overwritten.
        look: called several times a second while the program runs; an exception from it kills the program.
        environment: further variables, besides this process's own.

    Raises:
        ForeignProgramError: its exit status is not 0.
    """
    paths = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "engines.llama.tethered", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": paths, **(environment or {})},
        )
    try:
        while process.poll() is None:
            look()
            time.sleep(_POLL_S)
    finally:
        process.kill()
        process.wait()
    text = read_regular_text(log, errors="replace")
    if process.returncode:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        last = printable(lines[-1], 500) if lines else "it printed nothing"
        raise ForeignProgramError(f"exited with status {process.returncode}: {last}", text)
    return text
