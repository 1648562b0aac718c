"""All checks: what each needs in a row, and the verdicts of an answer.

To add one, add a row to `KINDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines.judging.choice_check import choice, letter_of
from engines.judging.fences import code_of
from engines.judging.helper_process import Helper, HelperError
from engines.judging.json_checks import json_problem, json_value
from engines.judging.json_schema import mismatch, schema_patterns, schema_problem
from engines.judging.model_judge.judge import JUDGE, JudgeError, ModelJudge
from engines.judging.model_judge.judge import SETTINGS as JUDGE_SETTINGS
from engines.judging.model_judge.judge import settings_problem as judge_settings_problem
from engines.judging.number_check import final_number, number
from engines.judging.program_check import ProgramError, ask_program
from engines.judging.sandbox.sandbox import SandboxError
from engines.judging.task import Check, Task, Verdict
from engines.judging.text_checks import contains, exact, normalized, plain
from engines.judging.tool_check import calls_in, tool_call
from engines.judging.unit_tests import SETTINGS, UNIT_TESTS, Programs, settings_problem
from recipes.problems import printable

MOST_CHARACTERS = 1_000_000
"""A longer answer passes no check."""


@dataclass
class Judges:
    """What judges answers.

    Attributes:
        helper: searches patterns, compiles code.
        command: the operator's program for the check `command`; empty without one.
        programs: runs the code of answers for the check `unit_tests`; None if that is not allowed.
        model: the model at a URL for the check `judge`; None without one.
    """

    helper: Helper = field(default_factory=Helper)
    command: Sequence[str] = ()
    programs: Programs | None = None
    model: ModelJudge | None = None

    def protocol(self) -> dict[str, Any]:
        """How answers are judged, where that is not in their rows, for a results file."""
        return {} if self.model is None else {JUDGE: self.model.model.protocol()}

    def close(self) -> None:
        """End what was started."""
        self.helper.close()
        if self.programs is not None:
            self.programs.close()


Judge = Callable[[str, Task, Mapping[str, Any], Judges], str]
"""Why an answer does not pass; empty if it does."""


@dataclass(frozen=True)
class CheckKind:
    """One kind of check.

    Attributes:
        judge: judges an answer.
        settings: the settings that a row may give, with their types.
        problem: why the expected answer and the settings of a row cannot be used; empty if they can.
    """

    judge: Judge
    settings: Mapping[str, type | tuple[type, ...]]
    problem: Callable[[str, Mapping[str, Any], Judges], str]


def _text(
    judge: Callable[[str, str, Mapping[str, Any]], str],
    settings: Mapping[str, type | tuple[type, ...]] | None = None,
    problem: Callable[[str, Mapping[str, Any]], str] | None = None,
) -> CheckKind:
    """A check that needs the answer, the expected answer and settings alone."""
    return CheckKind(
        lambda answer, task, given, _judges: judge(answer, task.expected, given),
        settings or {},
        lambda expected, given, _judges: (problem or _needs_expected)(expected, given),
    )


def _needs_expected(expected: str, _settings: Mapping[str, Any]) -> str:
    return "" if expected.strip() else "the row has no expected answer"


def _contains_problem(expected: str, settings: Mapping[str, Any]) -> str:
    texts = settings.get("texts", [])
    if not all(isinstance(text, str) and text for text in texts):
        return "texts are not a list of texts"
    return "" if texts else _needs_expected(expected, settings)


def _normalized_problem(expected: str, settings: Mapping[str, Any]) -> str:
    missing = _needs_expected(expected, settings)
    if missing or plain(expected):
        return missing
    return "the expected answer has only punctuation and articles, which do not count"


def _number_problem(expected: str, settings: Mapping[str, Any]) -> str:
    tolerance = settings.get("tolerance", 0)
    if not 0 <= tolerance < math.inf:
        return f"tolerance is out of range; got {tolerance}; allowed a number ≥ 0"
    return "" if final_number(expected) is not None else "the expected answer has no number"


def _choice_problem(expected: str, settings: Mapping[str, Any]) -> str:
    choices = settings.get("choices", [])
    if not all(isinstance(one, str) for one in choices) or len(choices) > 26:
        return "choices are not a list of at most 26 texts"
    return "" if letter_of(expected, choices) is not None else "the expected answer is neither a letter nor a choice"


def _tool_problem(expected: str, settings: Mapping[str, Any]) -> str:
    return "" if calls_in(settings.get("calls") or expected) else "the row has no expected calls"


def _regex(answer: str, _task: Task, settings: Mapping[str, Any], judges: Judges) -> str:
    found = judges.helper.found(settings["pattern"], answer)
    return "" if found else f"{printable(settings['pattern'], 80)} is not found in the answer"


def _regex_problem(_expected: str, settings: Mapping[str, Any], judges: Judges) -> str:
    if "pattern" not in settings:
        return "the row has no pattern"
    if not settings["pattern"]:
        return "the pattern is empty, and is found in every answer"
    bad = judges.helper.pattern_problem(settings["pattern"])
    return f"the pattern cannot be used: {printable(bad, 120)}" if bad else ""


def _schema(answer: str, _task: Task, settings: Mapping[str, Any], judges: Judges) -> str:
    try:
        value = json_value(answer)
    except ValueError as error:
        return str(error)
    return mismatch(value, settings["schema"], judges.helper.found)


def _schema_problem(_expected: str, settings: Mapping[str, Any], judges: Judges) -> str:
    if "schema" not in settings:
        return "the row has no schema"
    bad = schema_problem(settings["schema"])
    if bad:
        return printable(bad, 200)
    patterns = [(one, judges.helper.pattern_problem(one)) for one in schema_patterns(settings["schema"])]
    return next(
        (f"the pattern {printable(one, 60)} cannot be used: {printable(bad)}" for one, bad in patterns if bad), ""
    )


def _python(answer: str, _task: Task, _settings: Mapping[str, Any], judges: Judges) -> str:
    code = code_of(answer, "python", "py")
    return judges.helper.python_problem(code) if code.strip() else "the answer has no code"


def _command(answer: str, task: Task, _settings: Mapping[str, Any], judges: Judges) -> str:
    given = {
        "answer": answer,
        "expected": task.expected,
        "messages": [dict(message) for message in task.messages],
        "name": task.name,
    }
    passed, said = ask_program(judges.command, given)
    return "" if passed else said or "the command did not pass it"


def _command_problem(_expected: str, _settings: Mapping[str, Any], judges: Judges) -> str:
    return "" if judges.command else "no command is given to judge answers"


def _unit_tests(answer: str, _task: Task, settings: Mapping[str, Any], judges: Judges) -> str:
    assert judges.programs is not None, "a row with unit tests is refused without them"
    return judges.programs.verdict(answer, settings)


def _unit_tests_problem(_expected: str, settings: Mapping[str, Any], judges: Judges) -> str:
    if judges.programs is None:
        return (
            "they run code that a model wrote, which is off; allow it with --allow-code-execution, or with"
            " allow_code_execution in a stage"
        )
    return settings_problem(settings)


def _model(answer: str, task: Task, settings: Mapping[str, Any], judges: Judges) -> str:
    assert judges.model is not None, "a row with this check is refused without it"
    return judges.model.verdict(answer, task, settings)


def _model_problem(_expected: str, settings: Mapping[str, Any], judges: Judges) -> str:
    return judge_settings_problem(settings) if judges.model is not None else "no model is given to judge answers"


KINDS: Mapping[str, CheckKind] = {
    "exact": _text(exact),
    "normalized": _text(normalized, problem=_normalized_problem),
    "contains": _text(contains, {"texts": list, "ignore_case": bool}, _contains_problem),
    "regex": CheckKind(_regex, {"pattern": str}, _regex_problem),
    "number": _text(number, {"tolerance": (int, float)}, _number_problem),
    "choice": _text(choice, {"choices": list}, _choice_problem),
    "json": _text(lambda answer, _expected, _given: json_problem(answer), {}, lambda _expected, _given: ""),
    "json_schema": CheckKind(_schema, {"schema": (dict, bool)}, _schema_problem),
    "python": CheckKind(_python, {}, lambda _expected, _given, _judges: ""),
    "tool_call": _text(tool_call, {"calls": (list, dict, str)}, _tool_problem),
    UNIT_TESTS: CheckKind(_unit_tests, SETTINGS, _unit_tests_problem),
    "command": CheckKind(_command, {}, _command_problem),
    JUDGE: CheckKind(_model, JUDGE_SETTINGS, _model_problem),
}
"""Every check by its name."""


def check_problem(check: Check, expected: str, judges: Judges) -> str:
    """Why a check of a row cannot be used; empty if it can."""
    kind = KINDS.get(check.kind)
    if kind is None:
        return f"no such check; got {printable(check.kind, 40)}; allowed {', '.join(KINDS)}"
    unknown = sorted(check.settings.keys() - kind.settings.keys())
    if unknown:
        allowed = ", ".join(kind.settings) or "no settings"
        return f"{check.kind} has no setting {printable(unknown[0], 40)}; allowed {allowed}"
    for name, value in check.settings.items():
        kinds = kind.settings[name]
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds in (int, float, (int, float))):
            return f"{check.kind}: {name} has another type than allowed"
    bad = kind.problem(expected, check.settings, judges)
    return f"{check.kind}: {bad}" if bad else ""


def judge(answer: str, task: Task, judges: Judges) -> tuple[Verdict, ...]:
    """The verdict of each of a task's checks on an answer."""
    return tuple(_verdict(answer, task, check, judges) for check in task.checks)


def judge_ahead(
    answers: Sequence[tuple[str, Task]],
    judges: Judges,
    progress: Callable[[int, int], None],
    waiting: Callable[[], None],
) -> None:
    """Do what is faster for many answers at once, so that `judge` finds it done.

    Args:
        answers: answers with their tasks.
        judges: what judges them.
        progress: takes the programs that ran, or the answers that a model judged, and all of them.
        waiting: called several times a second; what it raises ends the work.
    """
    short = [(answer, task) for answer, task in answers if len(answer) <= MOST_CHARACTERS]
    if judges.programs is not None:
        judges.programs.run_all(short, progress, waiting)
    if judges.model is not None:
        judges.model.judge_all(short, progress, waiting)


def _verdict(answer: str, task: Task, check: Check, judges: Judges) -> Verdict:
    if len(answer) > MOST_CHARACTERS:
        return Verdict(check.kind, False, f"the answer has more than {MOST_CHARACTERS} characters")
    try:
        reason = KINDS[check.kind].judge(answer, task, check.settings, judges)
    except (HelperError, ProgramError, SandboxError, JudgeError) as error:
        return Verdict(check.kind, None, f"could not be judged: {printable(str(error), 200)}")
    return Verdict(check.kind, not reason, printable(reason, 300))
