"""The process that loads one model and answers: started, asked, stopped, ended; its events come from a thread."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from typing import IO

import msgspec

from cockpit.launching.interpreters import check_here
from cockpit.planning.data_look import helper_environment
from engines.chatting.lines import Ask, Event, Failed, Job, Stop
from recipes.problems import OperatorError, printable
from recipes.stages.kind import TRAIN

_TIMEOUT_S = 5.0


def needs_of(job: Job) -> Iterable[str]:
    """Distributions that the process of a model imports."""
    return (*TRAIN, "xllamacpp") if job.model.endswith(".gguf") else TRAIN


class ChatSession:
    """One model in its own process and session, with a low priority. Every method may be called from any thread.

    Args:
        job: the model.
        on_event: takes each event, in a thread of this session; after a `Failed` without an id there are no more.
    """

    def __init__(self, job: Job, on_event: Callable[[Event], None]) -> None:
        self._job, self._on_event = job, on_event
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._closed = False

    def start(self) -> None:
        """Start the process, which begins to load. Call it in a thread that lives as long as the session: the process
        ends with it.

        Raises:
            OperatorError: a distribution is missing, or the process cannot be started.
        """
        check_here(needs_of(self._job), "a chat with this model")
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the session
        # A thread of OpenMP that waits actively would take the time of a training.
        environment = {**helper_environment(), "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        if self._job.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self._job.threads)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "engines.chatting"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=environment,
                start_new_session=True,
            )
        except OSError as error:
            raise OperatorError(f"the process of the model cannot be started: {error}") from error
        self._send(msgspec.json.encode(self._job))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """The id of the process; 0 before it is started."""
        return self._process.pid if self._process is not None else 0

    def ask(self, ask: Ask) -> None:
        """Request an answer; its events follow. A process that has ended sends none."""
        self._send(msgspec.json.encode(ask))

    def stop(self, number: int) -> None:
        """Stop the answer to a request; a `Done` with what there is follows."""
        self._send(msgspec.json.encode(Stop(id=number)))

    def close(self) -> None:
        """End the process, whatever it does; safe to call twice."""
        self._closed = True
        process = self._process
        if process is None:
            return
        process.kill()
        process.wait()
        if self._reader is not None and self._reader is not threading.current_thread():
            self._reader.join(_TIMEOUT_S)
        for pipe in (process.stdin, process.stdout, self._errors):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()

    def _send(self, line: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):  # an end is an event of its own
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        failed = False
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                event: Event = msgspec.json.decode(line, type=Event)
                failed = failed or (isinstance(event, Failed) and event.id is None)
                self._on_event(event)
        if not failed and not self._closed:
            self._on_event(Failed(error=self._how_it_ended()))

    def _how_it_ended(self) -> str:
        assert self._process is not None
        assert self._errors is not None
        code = self._process.wait()
        how = f"signal {-code} ended" if code < 0 else f"status {code} ended"
        with contextlib.suppress(OSError, ValueError):
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").strip().splitlines()
            if lines:
                return f"{how} the process of the model: {printable(lines[-1], 300)}"
        return f"{how} the process of the model"
