"""The stage's side of a native process: start a worker, send requests, and raise an exception when it dies."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from engines.llama.frames import read_frame, write_frame
from engines.llama.library import NativeError

ERROR_LINES = 8
_LOOK_S = 0.1


class WorkerProcess:
    """A worker process; a crash of its native code does not end the stage."""

    def __init__(self, module: str, threads: int, shared: int | None = None) -> None:
        """Start `python -m module`. `threads` limits its OpenMP pool; it inherits the descriptor `shared` and gets its
        number as an argument."""
        self.module = module
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, *([] if shared is None else [str(shared)])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            pass_fds=[] if shared is None else [shared],
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)},
        )

    @property
    def pid(self) -> int:
        """The worker's process id."""
        return self._process.pid

    @property
    def ended_by(self) -> int | None:
        """The signal that ended the worker; None while it lives, and after another end."""
        code = self._process.poll()
        return -code if code is not None and code < 0 else None

    def ask(
        self,
        header: dict[str, Any],
        payload: bytes | memoryview = b"",
        *,
        waiting: Callable[[], None] | None = None,
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request and wait for its answer.

        Args:
            header: the request.
            payload: its raw bytes.
            waiting: called several times a second until the answer begins. After an exception from it the worker still
                owes the answer: end the worker with `kill`.

        Raises:
            NativeError: the worker reported an error, or died; the message has its last lines from stderr.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            write_frame(self._process.stdin, header, payload)  # type: ignore[arg-type]
            while waiting is not None and not select.select([self._process.stdout], [], [], _LOOK_S)[0]:
                waiting()
            answer, data = read_frame(self._process.stdout)  # type: ignore[arg-type]
        except (EOFError, BrokenPipeError) as error:
            raise NativeError(self._exit_message()) from error
        if "error" in answer:
            raise NativeError(answer["error"] if answer.get("known") else f"{self.module}: {answer['error']}")
        return answer, data

    def errors(self) -> str:
        """The worker's output on stderr so far."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def close(self) -> None:
        """End the worker; safe to call twice."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def kill(self) -> None:
        """End the worker now, whatever it is doing; safe to call twice."""
        self._process.kill()
        self.close()

    def _exit_message(self) -> str:
        code = self._process.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with status {code}"
        lines = self.errors().strip().splitlines()[-ERROR_LINES:]
        return f"{self.module} {how}; its last lines: " + (" | ".join(lines) or "none")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
