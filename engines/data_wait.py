"""Declaring in the journal that an engine waits for data, so that no reader calls the wait a hang."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from engines.words import PHASE_TRAINING, PHASE_WAITING

DECLARE_AFTER_S = 3.0
POLL_S = 0.5


class DataWait:
    """A context around each fetch of data. A wait that lasts is declared as a phase, and so is its end.

    The thread that waits cannot say so; another thread does, which sleeps while the data come in time, until `close`.

    Args:
        phase: reports the phase that begins now.
        declare_after_s: seconds after which a wait is declared.
    """

    def __init__(self, phase: Callable[[str], None], declare_after_s: float = DECLARE_AFTER_S) -> None:
        self._phase = phase
        self._declare_after_s = declare_after_s
        self._lock = threading.Lock()
        self._since_s: float | None = None
        self._declared = False
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def __enter__(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="data-wait", daemon=True)
            self._thread.start()
        self._since_s = time.monotonic()

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._since_s = None
            declared, self._declared = self._declared, False
        if declared:
            self._phase(PHASE_TRAINING)

    def close(self) -> None:
        """No wait begins any more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(POLL_S, self._declare_after_s)):
            with self._lock:
                since_s = self._since_s
                if since_s is None or self._declared or time.monotonic() - since_s < self._declare_after_s:
                    continue
                self._declared = True
                self._phase(PHASE_WAITING)
