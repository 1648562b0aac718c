"""Each check tells good answers from bad ones: all of the planted ones."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from engines.judging.checks import KINDS, Judges, check_problem, judge
from engines.judging.helper_process import Helper
from engines.judging.json_schema import mismatch, schema_problem
from engines.judging.number_check import final_number
from engines.judging.task import Check, Task
from engines.judging.tool_check import calls_in

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "pattern": "^[A-Z]"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
CALL = {"name": "weather", "arguments": {"city": "Oslo", "days": 2}}
PLANTED: dict[str, tuple[str, dict[str, Any], list[str], list[str]]] = {
    "exact": ("Paris", {}, ["Paris", "Paris\n", "  Paris"], ["paris", "Paris.", "Par is", "", "Paris Paris"]),
    "normalized": (
        "The Eiffel Tower",
        {},
        ["eiffel tower", "The  Eiffel\ntower!", "An EIFFEL tower", "Eiffel Tower"],
        ["Eiffel", "Eiffel Tower in Paris", "", "Eiffeltower"],
    ),
    "contains": (
        "",
        {"texts": ["deploy", "rollback"]},
        ["first deploy, then rollback", "rollback/deploy"],
        ["deploy", "Deploy and Rollback", "", "rollback"],
    ),
    "regex": (
        "",
        {"pattern": r"^\d{4}-\d\d-\d\d$"},
        ["2026-11-27"],
        ["2026-1-27", "on 2026-11-27", "", "2026-11-27\nx"],
    ),
    "number": (
        "6 + 6 = 12\n#### 1,234.50",
        {},
        ["1234.5", "It is $1,234.50.", "#### 1234.50 dollars, of 99", "1 and 2 make 1,234.5", "**1234.5**", "1.2345e3"],
        ["1234", "-1234.5", "no number", "", "1234.5 and 7", "#### \n", "12345"],
    ),
    "choice": (
        "B",
        {"choices": ["Oslo", "Paris", "Rome", "Bern"]},
        ["B", "(B)", "B. Paris", "The answer is B.", "A is wrong, so the answer is **B**", "Paris", "It is Paris.",
         "Answer: (B)", "\\boxed{B}", "I think it is this one.\nB", "A? No. The answer is: B"],
        ["A", "The answer is A, not B", "", "Oslo or Paris", "Because of this", "C) Paris", "The answer is E",
         "answer is Bern"],
    ),
    "json": (
        "",
        {},
        ['{"a": 1}', "[]", "```json\n{\"a\": [1, 2]}\n```", " 7 ", "```\nnull\n```", "Here it is:\n```json\n1\n```"],
        ["{'a': 1}", '{"a": 1} and more', "", "{", "NaN", '{"a": 1, "a": 2}', "[" * 5000, "```json\n{\n```",
         "[" * 300 + "]" * 300, "9" * 5000],
    ),
    "json_schema": (
        "",
        {"schema": PERSON},
        ['{"name": "Ada", "age": 36}', '{"age": 36.0, "name": "Ada", "tags": ["a", "b"]}'],
        ['{"name": "Ada"}', '{"name": "ada", "age": 3}', '{"name": "Ada", "age": "3"}', '{"name": "Ada", "age": true}',
         '{"name": "Ada", "age": 3, "x": 1}', '{"name": "Ada", "age": 151}', '{"name": "Ada", "age": 3.5}', "[]", "",
         '{"name": "Ada", "age": 3, "tags": ["a", "a"]}', '{"name": "Ada", "age": 3, "tags": ["c"]}'],
    ),
    "python": (
        "",
        {},
        ["x = 1", "Here:\n```python\ndef f():\n    return 1\n```\nDone.", "```py\npass\n```"],
        ["def f(:", "```python\nreturn 1 +\n```", "", "This is prose.", "(" * 3000, "x = '\0'", "if True:\npass"],
    ),
    "tool_call": (
        json.dumps(CALL),
        {},
        [json.dumps(CALL), json.dumps([CALL]), f"<tool_call>\n{json.dumps(CALL)}\n</tool_call>",
         json.dumps({"arguments": {"days": 2.0, "city": "Oslo"}, "name": "weather"}),
         json.dumps({"type": "function", "function": {"name": "weather", "arguments": json.dumps(CALL["arguments"])}}),
         f"[TOOL_CALLS]{json.dumps([CALL])}", f"```json\n{json.dumps(CALL)}\n```"],
        ["", "I call weather(Oslo)", json.dumps({**CALL, "name": "time"}), json.dumps([CALL, CALL]),
         json.dumps({"name": "weather", "arguments": {"city": "Oslo"}}),
         json.dumps({"name": "weather", "arguments": {"city": "Oslo", "days": "2"}}),
         f"Sure! {json.dumps(CALL)}", '{"name": "weather", "arguments": "{"}', "[" * 5000],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def judges() -> Iterator[Judges]:
    """Judges whose command passes answers that are the expected one reversed."""
    program = (
        "import json,sys; g=json.load(sys.stdin); print('not reversed'); sys.exit(g['answer'][::-1]!=g['expected'])"
    )
    made = Judges(command=[sys.executable, "-I", "-c", program])
    yield made
    made.close()


def task(kind: str, expected: str = "", settings: dict[str, Any] | None = None, prompt: str = "?") -> Task:
    return Task("k", "t:1", ({"role": "user", "content": prompt},), expected, (Check(kind, settings or {}),))


@pytest.mark.parametrize("kind", PLANTED)
def test_planted_good_and_bad_answers_are_told_apart(kind: str, judges: Judges) -> None:
    expected, settings, good, bad = PLANTED[kind]
    one = task(kind, expected, settings)
    assert check_problem(one.checks[0], expected, judges) == ""
    verdicts = {answer: judge(answer, one, judges)[0] for answer in [*good, *bad]}
    assert [answer for answer in good if not verdicts[answer].passed] == []
    assert [answer for answer in bad if verdicts[answer].passed is not False] == []
    assert all(verdicts[answer].reason for answer in bad)


def test_every_check_has_planted_answers() -> None:
    assert set(KINDS) - set(PLANTED) == {"command"}  # in a test of its own


def test_long_answers_are_judged_in_time_in_proportion_to_them(judges: Judges) -> None:
    """What takes time in the square of the length would not end within the patience of a test."""
    for kind, (expected, settings, _, _) in PLANTED.items():
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
        ("unit_tests", "", {"tests": "assert f()"}, "runs no code that a model wrote"),
        ("exact", "x", {"pattern": "x"}, "has no setting pattern"),
    ],
)
def test_a_check_that_cannot_judge_is_refused(
    kind: str, expected: str, settings: dict[str, Any], problem: str, judges: Judges
) -> None:
    assert problem in check_problem(Check(kind, settings), expected, judges)


def test_a_command_without_a_program_is_refused() -> None:
    assert "no command" in check_problem(Check("command"), "x", Judges())


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
