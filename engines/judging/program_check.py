"""The check `command`: the operator's own program judges an answer."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from typing import Any

from recipes import quantities

TIMEOUT_S = 60.0
_PASSED, _FAILED = 0, 1
_REASON_BYTES = 2000


class ProgramError(Exception):
    """The program gave no verdict: it could not start, took too long, or ended with another status than 0 or 1."""


def ask_program(command: Sequence[str], given: dict[str, Any], timeout_s: float = TIMEOUT_S) -> tuple[bool, str]:
    """Whether the program passes an answer, and the last line that it printed.

    The program reads one JSON object from stdin and ends with status 0 (passed) or 1 (failed). It runs in a process
    group of its own, which is ended after `timeout_s`.

    Raises:
        ProgramError: it gave no verdict.
    """
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as asked:
        asked.write(json.dumps(given).encode())
        asked.seek(0)
        try:
            process = subprocess.Popen(
                list(command), stdin=asked, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
        except OSError as error:
            raise ProgramError(f"{command[0]} cannot be started: {error.strerror}") from error
        in_time = _wait_and_end(process, timeout_s)
        said.seek(max(0, said.seek(0, os.SEEK_END) - _REASON_BYTES))
        lines = said.read().decode(errors="replace").strip().splitlines()
    if not in_time:
        raise ProgramError(f"{command[0]} took more than {quantities.exact(timeout_s)} s")
    if process.returncode not in (_PASSED, _FAILED):
        raise ProgramError(f"{command[0]} ended with status {process.returncode}; expected 0 or 1")
    return process.returncode == _PASSED, lines[-1][:200] if lines else ""


def _wait_and_end(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for the program, then end every process of its group; returns whether it ended in time.

    The program is not reaped before, so that its group's number belongs to no other group.
    """
    handle = os.pidfd_open(process.pid)
    try:
        return bool(select.select([handle], [], [], timeout_s)[0])
    finally:
        os.close(handle)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
