"""Each check tells good answers from bad ones: all of the planted ones."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engines.judging.checks import KINDS, Judges, check_problem, judge, judge_ahead
from engines.judging.helper_process import Helper
from engines.judging.json_schema import mismatch, schema_problem
from engines.judging.number_check import final_number
from engines.judging.task import Check, Task
from engines.judging.tool_check import calls_in
from engines.judging.unit_tests import Programs
from tests.engines.judging.planted import PLANTED, SQUARE_TESTS


@pytest.fixture(scope="module")
def judges() -> Iterator[Judges]:
    """Judges whose command passes answers that are the expected one reversed, in any case and with any blanks."""
    program = (
        "import json,sys; g=json.load(sys.stdin); print('not reversed');"
        "sys.exit(''.join(g['answer'].split()).lower()[::-1]!=g['expected'])"
    )
    made = Judges(command=[sys.executable, "-I", "-S", "-c", program], programs=Programs())
    yield made
    made.close()


def task(kind: str, expected: str = "", settings: dict[str, Any] | None = None, prompt: str = "?") -> Task:
    return Task("k", "t:1", ({"role": "user", "content": prompt},), expected, (Check(kind, settings or {}),))


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_good_and_bad_answers_are_told_apart(kind: str, judges: Judges) -> None:
    expected, settings, good, bad = PLANTED[kind]
    one = task(kind, expected, settings)
    assert check_problem(one.checks[0], expected, judges) == ""
    assert min(len(set(good)), len(set(bad))) >= 10
    judge_ahead([(answer, one) for answer in [*good, *bad]], judges, lambda _done, _all: None, lambda: None)
    verdicts = {answer: judge(answer, one, judges)[0] for answer in [*good, *bad]}
    assert [answer for answer in good if not verdicts[answer].passed] == []
    assert [answer for answer in bad if verdicts[answer].passed is not False] == []
    assert all(verdicts[answer].reason for answer in bad)


def test_every_check_has_planted_answers() -> None:
    assert set(KINDS) - set(PLANTED) == {"judge"}  # in model_judge/


def test_long_answers_are_judged_in_time_in_proportion_to_them(judges: Judges) -> None:
    """What takes time in the square of the length would not end within the patience of a test."""
    for kind in PLANTED.keys() - {"unit_tests", "command"}:  # these run programs
        expected, settings, _, _ = PLANTED[kind]
        for text in ("1, " * 30_000, "[" * 90_000, "answer is " * 9_000, "```\n" * 20_000, "a b\n" * 20_000):
            assert judge(text + "(", task(kind, expected, settings), judges)[0].passed is not True, kind


def test_an_answer_of_more_than_a_million_characters_passes_nothing(judges: Judges) -> None:
    assert judge("1" * 1_000_001, task("contains", "1"), judges)[0].passed is False


def test_a_pattern_that_backtracks_ends_its_helper_and_gives_no_verdict() -> None:
    judges = Judges(helper=Helper(cpu_seconds=0.2))
    try:
        verdict = judge("a" * 40 + "!", task("regex", settings={"pattern": r"^(a|a)*$"}), judges)[0]
        assert verdict.passed is None
        assert verdict.reason == "could not be judged: it took more than 0.2 s"
        assert judge("aaa", task("regex", settings={"pattern": r"^a*$"}), judges)[0].passed is True
    finally:
        judges.close()


def test_the_operators_program_judges(judges: Judges) -> None:
    one = task("command", "abc")
    assert judge("cba", one, judges)[0].passed is True
    assert judge("abc", one, judges)[0].reason == "not reversed"
    broken = Judges(command=[sys.executable, "-I", "-c", "raise SystemExit(5)"])
    verdict = judge("cba", one, broken)[0]
    assert verdict.passed is None
    assert "ended with status 5" in verdict.reason
    missing = judge("cba", one, Judges(command=["/nowhere/judge"]))[0]
    assert (missing.passed, "cannot be started" in missing.reason) == (None, True)


@pytest.mark.parametrize(
    ("kind", "expected", "settings", "problem"),
    [
        ("exakt", "x", {}, "no such check"),
        ("exact", " ", {}, "no expected answer"),
        ("number", "none", {}, "has no number"),
        ("choice", "Madrid", {"choices": ["Oslo"]}, "neither a letter nor a choice"),
        ("regex", "", {}, "no pattern"),
        ("regex", "", {"pattern": "("}, "cannot be used"),
        ("regex", "", {"pattern": 3}, "another type"),
        ("json_schema", "", {}, "no schema"),
        ("json_schema", "", {"schema": {"typo": 1}}, "not supported"),
        ("json_schema", "", {"schema": {"pattern": "("}}, "cannot be used"),
        ("tool_call", "weather", {}, "no expected calls"),
        ("unit_tests", "", {}, "no tests"),
        ("unit_tests", "", {"tests": " \n"}, "no tests"),
        ("unit_tests", "", {"tests": [1]}, "neither a text nor a list of texts"),
        ("exact", "x", {"pattern": "x"}, "has no setting pattern"),
    ],
)
def test_a_check_that_cannot_judge_is_refused(
    kind: str, expected: str, settings: dict[str, Any], problem: str, judges: Judges
) -> None:
    assert problem in check_problem(Check(kind, settings), expected, judges)


def test_a_command_without_a_program_is_refused() -> None:
    assert "no command" in check_problem(Check("command"), "x", Judges())


def test_code_does_not_run_unless_it_is_allowed() -> None:
    refused = check_problem(Check("unit_tests", SQUARE_TESTS), "", Judges())
    assert "which is off; allow it with --allow-code-execution" in refused


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("10-5", "5"),
        ("x = -5", "-5"),
        ("5kg", "5"),
        (".5", "0.5"),
        ("1,000,000", "1000000"),
        ("(-3)", "-3"),
        ("3.", "3"),
    ],
)
def test_numbers_are_read_as_people_write_them(text: str, value: str) -> None:
    assert str(final_number(text)) == value


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, ["x", None], [1]),
        ({"oneOf": [{"multipleOf": 2}, {"multipleOf": 3}]}, [2, 3], [6, 5]),
        ({"not": {"const": 1}}, [2, True], [1, 1.0]),
        (
            {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}},
            [[], [[]]],
            [[1], 1],
        ),
        ({"prefixItems": [{"type": "string"}], "items": {"type": "integer"}}, [["a", 1]], [[1], ["a", "b"]]),
        ({"if": {"required": ["a"]}, "then": {"required": ["b"]}}, [{}, {"a": 1, "b": 1}], [{"a": 1}]),
        ({"patternProperties": {"^x": {"type": "null"}}, "additionalProperties": False}, [{"x1": None}], [{"y": None}]),
        ({"contains": {"const": 1}, "maxContains": 1}, [[1, 2]], [[], [1, 1]]),
        ({"multipleOf": 0.01}, [0.07, 1], [0.005]),
        ({"dependentRequired": {"a": ["b"]}, "propertyNames": {"maxLength": 1}}, [{"b": 1}], [{"a": 1}, {"bb": 1}]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, [0.5], [0, 1]),
        ({"enum": [1, "a", [True]]}, [1.0, "a", [True]], [True, [1]]),
        (True, [1], []),
        (False, [], [1]),
    ],
)
def test_a_schema_accepts_what_the_standard_accepts(schema: Any, good: list[Any], bad: list[Any]) -> None:
    def search(pattern: str, text: str) -> bool:
        return text.startswith(pattern.removeprefix("^"))

    assert schema_problem(schema) == ""
    assert [value for value in good if mismatch(value, schema, search)] == []
    assert [value for value in bad if not mismatch(value, schema, search)] == []


@pytest.mark.parametrize(
    "schema",
    [[], {"type": "text"}, {"$ref": "other.json"}, {"$ref": "#/$defs/x"}, {"items": [1]}, {"minLength": -1},
     {"required": "a"}, {"unevaluatedProperties": False}, {"allOf": []}, {"multipleOf": 0}],
)  # fmt: skip
def test_a_schema_that_is_none_is_refused(schema: Any) -> None:
    assert schema_problem(schema).startswith("#")


def test_a_schema_that_refers_to_itself_ends() -> None:
    assert "too often" in mismatch(1, {"$ref": "#"}, lambda _pattern, _text: True)
    wide = {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}
    assert mismatch(1, wide, lambda _pattern, _text: True) != ""


def test_arguments_that_are_a_text_of_json_are_values() -> None:
    assert calls_in('{"name": "f", "parameters": "{\\"a\\": 1}"}') == [{"name": "f", "arguments": {"a": 1}}]
    assert calls_in("nothing") is None
