"""The check `unit_tests`: the program that a model wrote passes its tests, in the sandbox."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engines.judging.fences import code_of
from engines.judging.sandbox.limits import Limits, Verdicts
from engines.judging.sandbox.sandbox import Outcome, Sandbox, SandboxError, UnitTests
from engines.judging.task import Task
from recipes.problems import OperatorError

UNIT_TESTS = "unit_tests"
WALL_FACTOR = 3
"""Seconds that a program may take for each second of processor time that it may use: processors may be busy."""
SETTINGS: Mapping[str, type | tuple[type, ...]] = {
    "tests": (str, list),
    "setup": (str, list),
    "prompt": str,
    "entry_point": str,
}


class Programs:
    """Programs of answers, and the outcomes of those that ran."""

    def __init__(self, sandbox: Sandbox | None = None) -> None:
        """Programs that run in `sandbox`; by default, in one with the usual limits."""
        self._sandbox = sandbox or Sandbox()
        self._ran: dict[UnitTests, Outcome | SandboxError] = {}

    def require(self) -> None:
        """Refuse a machine on which programs cannot be confined.

        Raises:
            OperatorError: what is missing.
        """
        reason = self._sandbox.why_not()
        if reason:
            raise OperatorError(f"unit tests cannot run: {reason}", "evaluate without unit tests, or allow it")

    def run_all(
        self,
        answers: Sequence[tuple[str, Task]],
        progress: Callable[[int, int], None],
        waiting: Callable[[], None],
    ) -> None:
        """Run the programs of answers, several at once; `verdict` has their outcomes then."""
        wanted = {_job(answer, check.settings): None for answer, task in answers for check in _of(task)}
        jobs = [job for job in wanted if job not in self._ran and job.code.strip()]

        def done(number: int, outcome: Outcome | SandboxError) -> None:
            self._ran[jobs[number]] = outcome
            progress(len(self._ran) - before, len(jobs))

        before = len(self._ran)
        if jobs:
            progress(0, len(jobs))
            self._sandbox.run_all(jobs, done, waiting)

    def verdict(self, answer: str, settings: Mapping[str, Any]) -> str:
        """Why a program does not pass its tests; empty if it does.

        Raises:
            SandboxError: it could not be confined, so it did not run.
        """
        job = _job(answer, settings)
        if not job.code.strip():
            return "the answer has no code"
        found = self._ran.get(job) or self._sandbox.run(job)
        if isinstance(found, SandboxError):
            raise found
        if found.verdict == Verdicts.PASSED:
            return ""
        return f"{found.verdict}: {found.reason}"

    def close(self) -> None:
        """End the sandbox's hosts; safe to call twice."""
        self._sandbox.close()


def programs_of(timeout_s: int) -> Programs:
    """Programs that may use so many seconds of processor time each."""
    return Programs(Sandbox(Limits(cpu_s=timeout_s, wall_s=float(WALL_FACTOR * timeout_s))))


def settings_of(row: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings of unit tests of a row in the forms of HumanEval (`test`, `entry_point`, `prompt`), of MBPP
    (`test_list`, `test_setup_code`, `test_imports`), or with `tests`; None for other rows."""
    if "test_list" in row:
        setup = [*_texts(row.get("test_imports")), *_texts(row.get("test_setup_code"))]
        return {"tests": row["test_list"], "setup": setup}
    if "test" in row and "entry_point" in row:
        prompt = row.get("prompt")
        return {"tests": row["test"], "entry_point": row["entry_point"], "prompt": prompt if prompt is not None else ""}
    return {key: row[key] for key in SETTINGS if key in row and key != "prompt"} if "tests" in row else None


def settings_problem(settings: Mapping[str, Any]) -> str:
    """Why settings of unit tests cannot be used; empty if they can."""
    for name in ("tests", "setup"):
        given = settings.get(name, "")
        if isinstance(given, list) and not all(isinstance(one, str) for one in given):
            return f"{name} are neither a text nor a list of texts"
    return "" if _text(settings.get("tests", "")).strip() else "the row has no tests"


def has_unit_tests(task: Task) -> bool:
    """Whether a task asks for them."""
    return bool(_of(task))


def _of(task: Task) -> list[Any]:
    return [check for check in task.checks if check.kind == UNIT_TESTS]


def _job(answer: str, settings: Mapping[str, Any]) -> UnitTests:
    return UnitTests(
        code=code_of(answer, "python", "py", "python3"),
        tests=_text(settings["tests"]),
        setup=_text(settings.get("setup", "")),
        prompt=settings.get("prompt", ""),
        entry_point=settings.get("entry_point", ""),
    )


def _text(given: str | list[str]) -> str:
    return given if isinstance(given, str) else "\n".join(given)


def _texts(given: Any) -> list[Any]:
    return given if isinstance(given, list) else [given] if given else []
