"""Reads single rows of a stage's data through a helper process, which reads and labels them as the engine does."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
import threading
from typing import IO

import msgspec

from cockpit.planning.data_look import helper_environment
from engines.look.row_view import RowsAnswer, RowsJob, RowsRequest
from recipes.problems import OperatorError, printable


class RowReader:
    """A helper process and its rows. It is started at the first request, and may be asked from any thread.

    Args:
        job: the stage and the places of its inputs.
        python: the interpreter of the stage.
    """

    def __init__(self, job: RowsJob, python: str) -> None:
        self.job = job
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def ask(self, request: RowsRequest) -> RowsAnswer:
        """The rows of a request.

        Raises:
            OperatorError: the data or the tokenizer cannot be read, or the helper cannot run.
        """
        with self._lock:
            if self._closed:
                raise OperatorError("the rows cannot be read: the helper was ended")
            line = self._exchange(msgspec.json.encode(request))
            why = "" if line else self._last_error()
        if why:
            raise OperatorError(f"the rows cannot be read: {why}")
        if self._scratch is not None:
            line = line.replace(f"{self._scratch.name}{os.sep}".encode(), b"")
        answer = msgspec.json.decode(line, type=RowsAnswer)
        if answer.error:
            raise OperatorError(answer.error, answer.hint)
        return answer

    def close(self) -> None:
        """End the helper, also while it answers; safe to call twice."""
        self._closed = True
        if self._process is not None:
            self._process.kill()
        with self._lock:  # a thread that waits for an answer has seen the helper's end
            process, self._process = self._process, None
            if process is None:
                return
            process.wait()
            if self._scratch is not None:
                self._scratch.cleanup()
            for pipe in (process.stdin, process.stdout, self._errors):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()

    def _exchange(self, request: bytes) -> bytes:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request + b"\n")
            process.stdin.flush()
            return process.stdout.readline()
        except OSError:
            return b""

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is not None:
            return self._process
        if self.job.prepare is not None:
            self._scratch = tempfile.TemporaryDirectory(prefix="cockpit-rows-")
            self.job.scratch = self._scratch.name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the helper
        try:
            process = subprocess.Popen(
                [self._python, "-m", "engines.look", "rows"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=helper_environment(),
            )
        except OSError as error:
            raise OperatorError(f"python — {printable(self._python, 200)} cannot be started: {error}") from error
        self._process = process
        if self._closed:
            process.kill()
        assert process.stdin is not None
        try:
            process.stdin.write(msgspec.json.encode(self.job) + b"\n")
        except OSError:  # it has ended; the answer says why
            return process
        return process

    def _last_error(self) -> str:
        if self._closed:
            return "the helper was ended"
        if self._process is not None:
            self._process.wait()
        if self._errors is None:
            return "no answer"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return printable(lines[-1], 300) if lines else "the helper ended without an answer"
