"""One job beside the training: the writing of a checkpoint whose parts are copied.

A thread is enough. torch and safetensors release the interpreter while they write, and so do hashing and syncing.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread


class Background:
    """Runs at most one job at a time; what it raises reaches the training's own thread."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._failure: Exception | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Run a job beside the caller, who has called `finish` before."""
        assert self._thread is None, "one checkpoint is written at a time"
        self._thread = Thread(target=self._run, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the job; nothing without one.

        Raises:
            Exception: what the job has raised.
        """
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def check(self) -> None:
        """Raise what the job has raised, if it has; waits for nothing."""
        if self._failure is not None:
            self.finish()

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:  # noqa: BLE001 - the boundary of a thread: `finish` raises it in the training's own
            self._failure = error
