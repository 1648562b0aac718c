"""Kept answers survive a kill at any byte, and belong to one model and one way of asking."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engines.evaluate.asking import ask
from engines.evaluate.differences import explained
from engines.evaluate.results import evaluate_tasks
from engines.judging.answers import AnswerFile, Kept
from engines.judging.checks import Judges
from engines.judging.compare import Baseline, Row, compare, read_baseline
from engines.judging.shares.counts import wilson
from engines.judging.task import Check, Task, sampled
from engines.judging.totals import Judged, judged, totals
from engines.judging.unit_tests import programs_of
from recipes.problems import OperatorError

TASKS = [
    Task(f"key-{at}", f"t:{at}", ({"role": "user", "content": "?" * (1 + at % 5)},), str(at), (Check("number"),))
    for at in range(12)
]


class Counting:
    """Answers a task with its number, and counts who was asked."""

    def __init__(self, batch_size: int = 1, model: str = "a", longest: int = 100) -> None:
        self.identity: Mapping[str, Any] = {"model": model}
        self.batch_size, self.longest, self.limit = batch_size, longest, 4
        self.asked: list[str] = []
        self.prepared: list[int] = []

    def encode(self, task: Task) -> list[int]:
        return [1] * len(task.prompt)

    def prepare(self, longest_prompt: int) -> None:
        self.prepared.append(longest_prompt)

    def answer(self, tasks: Sequence[tuple[Task, list[int]]], waiting: Any) -> list[Kept]:
        self.asked += [task.key for task, _ in tasks]
        return [kept(task.key, task.expected, prompt_tokens=len(ids)) for task, ids in tasks]

    def after(self, ids: Sequence[int]) -> Any:
        raise AssertionError

    def text(self, token: int) -> str:
        raise AssertionError

    def measured(self) -> dict[str, float]:
        return {"size_bytes": 1.0}


def kept(key: str, answer: str, **fields: Any) -> Kept:
    given = {"ended": True, "prompt_tokens": 3, "tokens": 5, "first_token_s": 0.5, "latency_s": 1.5, **fields}
    return Kept(key=key, answer=answer, **given)


def asked(file: Path, answerer: Counting) -> list[Kept]:
    return ask(answerer, TASKS, file, lambda _done, _all: None)


def test_a_file_that_is_cut_at_any_byte_continues_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    whole = asked(tmp_path / "whole", Counting())
    data = (tmp_path / "whole").read_bytes()
    header = data.index(b"\n") + 1
    order = [line.split(b'"key": "')[1].split(b'"')[0].decode() for line in data[header:].splitlines()]
    for cut in [*range(header, header + 400, 7), len(data) - 1, len(data)]:
        (tmp_path / "cut").write_bytes(data[:cut])
        again = Counting(batch_size=3)
        assert asked(tmp_path / "cut", again) == whole
        there = data[header : cut + 1].count(b"\n")  # an answer whose line end alone is missing is whole
        assert sorted(again.asked) == sorted(order[there:])
        third = Counting()
        assert asked(tmp_path / "cut", third) == whole
        assert third.asked == []


def test_the_longest_are_asked_first_in_batches_of_similar_length(tmp_path: Path) -> None:
    one = Counting(batch_size=4)
    asked(tmp_path / "a", one)
    lengths = [len(TASKS[int(key.removeprefix("key-"))].prompt) for key in one.asked]
    assert lengths == sorted(lengths, reverse=True)
    assert one.prepared == [5]


def test_an_answer_is_in_the_file_before_the_next_is_asked(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, _all: int) -> None:
        if done == 5:
            raise StoppedError

    with pytest.raises(StoppedError):
        ask(Counting(), TASKS, tmp_path / "a", stop)
    assert (tmp_path / "a").read_bytes().count(b"\n") == 6
    again = Counting()
    asked(tmp_path / "a", again)
    assert len(again.asked) == 7


def test_answers_of_another_model_are_refused(tmp_path: Path) -> None:
    asked(tmp_path / "a", Counting())
    with pytest.raises(OperatorError, match='model differ; model is "a" there and "b" now'):
        asked(tmp_path / "a", Counting(model="b"))


@pytest.mark.parametrize("data", [b"{}\n", b"not json\n", b"[1]\n", b'{"format": 9, "identity": {}}\n', b"\xff\n"])
def test_another_file_is_not_written_to(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(OperatorError, match="not a file of answers"):
        AnswerFile(tmp_path / "a", {})
    assert (tmp_path / "a").read_bytes() == data


def test_two_evaluations_cannot_write_the_same_answers(tmp_path: Path) -> None:
    first = AnswerFile(tmp_path / "a", {})
    with pytest.raises(OperatorError, match="another process writes"):
        AnswerFile(tmp_path / "a", {})
    first.close()
    AnswerFile(tmp_path / "a", {}).close()


def test_damaged_lines_are_counted_and_their_tasks_asked_again(tmp_path: Path) -> None:
    asked(tmp_path / "a", Counting())
    lines = (tmp_path / "a").read_bytes().splitlines(keepends=True)
    lines[3], lines[4] = b'{"key": 3}\n', b"\x00\x00\n"
    (tmp_path / "a").write_bytes(b"".join(lines))
    found = AnswerFile(tmp_path / "a", {"model": "a"})
    assert found.damaged == 2
    found.close()
    again = Counting()
    asked(tmp_path / "a", again)
    assert len(again.asked) == 2


def test_a_prompt_that_the_model_cannot_take_is_a_failed_row_with_its_reason(tmp_path: Path) -> None:
    one = Counting(longest=8)  # five tokens of prompt and four new ones do not fit
    rows = [judged(task, found, Judges()) for task, found in zip(TASKS, asked(tmp_path / "a", one), strict=True)]
    failed = [row for row in rows if not row.passed]
    assert [len(row.task.prompt) for row in failed] == [5, 5]
    assert "more than the model takes (8)" in failed[0].verdicts[0].reason
    assert len(one.asked) == 10


def result(passed: bool | None, key: str = "k", **fields: Any) -> Judged:
    one = Task(key, "t:1", ({"role": "user", "content": "?"},), "5", (Check("number"),))
    if passed is None:
        one = Task(key, "t:1", one.messages, "5", (Check("command"),))
    return judged(one, kept(key, "5" if passed else "6", **fields), Judges(command=["/nowhere/judge"]))


def test_totals_are_those_counted_by_hand() -> None:
    rows = [result(True, latency_s=2.5), result(False, ended=False), result(True), result(None, tokens=9)]
    found = totals(rows)
    assert (found["success"], found["test_rows"], found["unjudged_rows"]) == (0.5, 4, 1)
    assert found["success_low"] == pytest.approx(0.15, abs=0.01)
    assert found["ended"] == 0.75
    assert found["latency_mean_s"] == 1.75
    assert found["latency_p50_s"] == 1.5
    assert found["latency_max_s"] == 2.5
    assert found["first_token_p50_s"] == 0.5
    assert found["answer_tokens"] == 6
    assert found["answer_tokens_per_second"] == pytest.approx((4 + 4 + 4 + 8) / 5)
    assert "valid_json" not in found


def test_repetition_is_the_share_of_sequences_that_came_before() -> None:
    again = totals([judged(TASKS[0], kept("key-0", "a b c d " * 10), Judges())])
    assert again["repetition"] == pytest.approx(1 - 4 / 37)
    assert again["distinct_1"] == 4 / 40
    once = totals([judged(TASKS[0], kept("key-0", "one two three four five six"), Judges())])
    assert (once["repetition"], once["distinct_2"]) == (0.0, 1.0)


def test_valid_json_counts_the_rows_that_want_json() -> None:
    task = Task(
        "j", "t:1", ({"role": "user", "content": "?"},), "", (Check("json_schema", {"schema": {"type": "array"}}),)
    )
    rows = [judged(task, kept("j", text), Judges()) for text in ("[]", "{}", "no", "{}")]
    found = totals([*rows, result(True)])
    assert (found["valid_json"], found["success"]) == (0.75, 0.4)


def test_a_comparison_is_by_pairs(tmp_path: Path) -> None:
    ours = {"a": True, "b": True, "c": False, "d": True, "e": True, "only": True}
    theirs = {"a": True, "b": False, "c": True, "d": False, "e": False, "other": False}
    found = compare(rows_of(ours), rows_of(theirs))
    assert (found.won, found.lost, found.rows) == (["b", "d", "e"], ["c"], 5)
    assert (found.only_model, found.only_baseline) == (1, 1)
    assert found.difference == pytest.approx(0.4)
    assert found.p_value == pytest.approx(0.625)
    assert found.difference_low <= 0.4 <= found.difference_high
    with pytest.raises(OperatorError, match="has other tasks"):
        compare(rows_of({"a": True}), rows_of({"b": True}))
    two = Baseline([Row(f"key-{at}", str(at), True, answer=str(at)) for at in (1, 2)])
    same = evaluate_tasks(Counting(), TASKS, Judges(), tmp_path / "a", baseline=two)
    assert (same.metrics["difference"], same.metrics["p_value"], same.metrics["same_answers"]) == (0.0, 1.0, 1.0)
    assert same.metrics["unpaired_rows"] == len(TASKS) - 2


def rows_of(passed: Mapping[str, bool]) -> list[Row]:
    return [Row(key, "", value, where=f"t:{key}") for key, value in passed.items()]


def test_pairs_have_the_same_prompt_and_expected_answer_whatever_the_order_of_the_rows() -> None:
    assert compare(rows_of({"a": True}), rows_of({"a": True})).metrics().keys() & {"latency_difference_s"} == set()
    slow, fast = (Row("a", "", True, latency_s=seconds) for seconds in (3.0, 1.0))
    assert compare([slow], [fast]).metrics()["latency_difference_low_s"] == 2.0
    ours = [Row("p", "1", True), Row("p.2", "2", False), Row("p.3", "2", True), Row("q", "5", True, where="t:9")]
    theirs = [Row("p", "2", False), Row("p.2", "2", True), Row("p.3", "1", True), Row("q", "6", True, where="b:9")]
    found = compare(ours, theirs)
    assert (found.won, found.lost, found.rows) == ([], [], 3)
    assert (found.unpaired, found.other_expected) == (["t:9", "b:9"], 1)
    with pytest.raises(OperatorError, match="1 have the same prompt and another expected answer"):
        compare(ours[3:], theirs[3:])


def test_a_comparison_without_changed_rows_still_has_an_interval() -> None:
    """Sixty equal verdicts do not prove that no row ever changes: the bound is Wilson's of 0 in 60."""
    same = rows_of({f"k{at}": at % 3 == 0 for at in range(60)})
    found = compare(same, same)
    assert (found.difference, found.p_value) == (0.0, 1.0)
    assert found.difference_high == pytest.approx(wilson(0, 60).high, abs=1e-9)
    assert found.difference_low == pytest.approx(-wilson(0, 60).high, abs=1e-9)


def test_programs_of_answers_are_judged_together_and_answers_are_kept(tmp_path: Path) -> None:
    """A killed evaluation asks nothing twice, and judges again."""
    tests = {"tests": "assert f() == 1"}
    tasks = [
        Task(f"p-{at}", f"t:{at}", ({"role": "user", "content": str(at)},), "", (Check("unit_tests", tests),))
        for at in range(3)
    ]
    answers = ["def f(): return 1", "def f(): return 2", ""]

    class Programming(Counting):
        def answer(self, tasks: Sequence[tuple[Task, list[int]]], waiting: Any) -> list[Kept]:
            found = super().answer(tasks, waiting)
            return [
                msgspec.structs.replace(one, answer=answers[int(task.prompt)])
                for one, (task, _) in zip(found, tasks, strict=True)
            ]

    seen: list[tuple[int, int]] = []

    def killed(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    model, judges = Programming(), Judges(programs=programs_of(10))
    try:
        with pytest.raises(KeyboardInterrupt):
            evaluate_tasks(model, tasks, judges, tmp_path / "a", judging=killed)
        asked = len(model.asked)
        found = evaluate_tasks(model, tasks, judges, tmp_path / "a", judging=lambda *both: seen.append(both))
    finally:
        judges.close()
    assert len(model.asked) == asked == 3
    assert [row.passed for row in found.rows] == [True, False, False]
    assert found.rows[2].verdicts[0].reason == "the answer has no code"
    assert seen[-1][0] == seen[-1][1] > 0
    assert found.metrics["success"] == 1 / 3


def test_several_answers_to_one_prompt_are_one_row_of_which_a_part_passed() -> None:
    rows = [
        judged(task, kept(task.key, "2" if number < passing else "3"), Judges())
        for task, passing in ((replace(TASKS[2], key="a"), 1), (replace(TASKS[2], key="b"), 2))
        for number, task in enumerate(sampled([task], 2))
    ]
    found = totals(rows)
    assert (found["test_rows"], found["success"]) == (2, 0.75)
    assert (found["pass_at_1"], found["pass_at_2"]) == (0.75, 1.0)
    assert found["success_low"] == pytest.approx(wilson(1.5, 2).low)
    assert not any(name.startswith("pass_at") for name in totals(rows[:1]))


@pytest.mark.parametrize(
    "change",
    [
        {"latency_s": 1e308}, {"latency_s": float("inf")}, {"latency_s": -1}, {"latency_s": 10**400},
        {"ids": [-7]}, {"ids": [2**40]},
    ],
)  # fmt: skip
def test_a_baseline_with_numbers_that_no_evaluation_writes_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    row = {"key": "k", "passed": True, "expected": "", "latency_s": 1.0, "ids": [5]}
    (tmp_path / "good.json").write_text(json.dumps({"format": 1, "rows": [row]}))
    assert read_baseline(tmp_path / "good.json").rows[0].ids == (5,)
    (tmp_path / "r.json").write_text(json.dumps({"format": 1, "rows": [row | change]}))
    with pytest.raises(OperatorError, match=r"r\.json"):
        read_baseline(tmp_path / "r.json")


def test_a_baseline_of_a_later_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('{"format": 99, "rows": [{"key": "k", "passed": true}]}')
    with pytest.raises(OperatorError, match="format — got 99; allowed: 1"):
        read_baseline(tmp_path / "r.json")


@pytest.mark.parametrize("change", [{"latency_s": 1e308}, {"tokens": -5}, {"ids": [-7]}, {"batch": 0}])
def test_a_kept_answer_with_numbers_that_no_evaluation_writes_is_asked_again(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    asked(tmp_path / "a", Counting())
    head, first, *others = (tmp_path / "a").read_text().splitlines()
    edited = json.dumps(json.loads(first) | change)
    (tmp_path / "a").write_text("\n".join([head, edited, *others]) + "\n")
    again = Counting()
    assert all(0 <= one.latency_s <= 1e9 and one.tokens >= 0 for one in asked(tmp_path / "a", again))
    assert len(again.asked) == 1


@pytest.mark.parametrize("theirs", [(9,), (1, 9)])
def test_a_token_of_a_larger_vocabulary_is_named_by_its_number(theirs: tuple[int, ...]) -> None:
    """llama.cpp ends its process at such a token."""

    class Small(Counting):
        def after(self, ids: Sequence[int]) -> Any:
            return [0.0, 1.0, 2.0]

        def text(self, token: int) -> str:
            return "abc"[token]

    row = judged(TASKS[0], kept("key-0", "0", ids=[1]), Judges())
    base = Row(row.task.key, row.task.expected, True, ids=theirs)
    (found,) = explained(Small(), [row], [base], lambda _done, _all: None, lambda: None)
    assert (found["baseline"], found["gap"]) == ("token 9", None)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The process cannot write a file beyond so many bytes: as on a full disk, a part of a line is written."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_with_what_is_kept_and_only_the_rest_is_asked_afterwards(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    ask(Counting(), TASKS[:5], file, lambda _done, _all: None)
    with (
        files_of_at_most(file.stat().st_size + 20),
        pytest.raises(OSError, match="5 answers are kept, and the same command continues") as error,
    ):
        ask(Counting(), TASKS, file, lambda _done, _all: None)
    assert error.value.filename == str(file)
    again = Counting()
    found = ask(again, TASKS, file, lambda _done, _all: None)
    assert sorted(again.asked) == sorted(task.key for task in TASKS[5:])
    assert [one.key for one in found] == [task.key for task in TASKS]
