"""Patterns and Python code of answers, in a process that a hostile one may end."""

from __future__ import annotations

from typing import Any

from engines.llama.library import NativeError
from engines.llama.worker_process import WorkerProcess
from recipes import quantities

CPU_SECONDS = 2.0
"""For one pattern on one answer, and for compiling one answer."""


class HelperError(Exception):
    """The helper was ended by a request: it took too long, or too much memory."""


class Helper:
    """A helper process, started at the first request and again after one that ended it."""

    def __init__(self, cpu_seconds: float = CPU_SECONDS) -> None:
        """A helper that ends a request after `cpu_seconds` of processor time."""
        self._cpu_seconds = cpu_seconds
        self._worker: WorkerProcess | None = None

    def found(self, pattern: str, text: str) -> bool:
        """Whether a pattern of Python's `re` is found in a text.

        Raises:
            HelperError: it took more than its processor time, or the helper's memory.
        """
        return bool(self._ask({"search": pattern, "text": text})["found"])

    def pattern_problem(self, pattern: str) -> str:
        """Why a pattern cannot be used; empty if it can."""
        try:
            return str(self._ask({"pattern": pattern})["problem"])
        except HelperError as error:
            return str(error)

    def python_problem(self, code: str) -> str:
        """Why Python code does not compile; empty if it does. Nothing of it runs.

        Raises:
            HelperError: compiling took more than its processor time, or the helper's memory.
        """
        return str(self._ask({"python": code})["problem"])

    def close(self) -> None:
        """End the process; safe to call twice."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.kill()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._worker is None:
            self._worker = WorkerProcess("engines.judging.helper", threads=1)
        try:
            answer, _ = self._worker.ask({**request, "cpu_seconds": self._cpu_seconds})
        except NativeError as error:
            ended = self._worker.ended_by
            self.close()
            reason = (
                f"it took more than {quantities.exact(self._cpu_seconds)} s" if ended is not None else str(error)[:200]
            )
            raise HelperError(reason) from error
        return answer
