"""The general set: every row can be used, the right answer passes, and an empty or wrong one does not."""

from __future__ import annotations

import json
from pathlib import Path

from engines.judging.checks import Judges, judge
from engines.judging.sets.general import general_set
from engines.judging.task import Task
from engines.judging.test_file import read_tests

WITHOUT_ANSWER = {
    "text/names-in-text": "Klara, Viktor",
    "text/primary": "Red, amber and green",
    "text/seasons": "Spring, summer, autumn, winter",
    "text/weekend": "Saturday and Sunday",
    "text/email": "office@north.example",
    "text/date": "2031-04-19",
    "json/person": '{"name": "Rosa", "age": 41}',
    "json/list": "[3, 5, 8]",
}


def right(task: Task) -> str:
    return task.expected or WITHOUT_ANSWER[task.name]


def test_right_answers_pass_and_wrong_ones_fail() -> None:
    judges = Judges()
    tasks = read_tests(general_set(), [], judges)
    assert len(tasks) == len({task.key for task in tasks}) == len({task.name for task in tasks}) == 84
    kinds = {check.kind for task in tasks for check in task.checks}
    assert {"number", "choice", "exact", "normalized", "contains", "regex", "json_schema"} == kinds
    for task in tasks:
        assert all(verdict.passed for verdict in judge(right(task), task, judges)), task.name
        for wrong in ("", "I do not know.", "It is the 7777th of seven, E, perhaps."):
            assert not all(verdict.passed for verdict in judge(wrong, task, judges)), task.name
    judges.close()


def test_letters_are_spread_and_a_right_choice_is_shown_in_its_prompt() -> None:
    rows = [json.loads(line) for line in Path(general_set()).read_text().splitlines()]
    letters = [row["answer"] for row in rows if "choices" in row]
    assert max(map(letters.count, "ABCD")) - min(map(letters.count, "ABCD")) <= 1
    for row in rows:
        for letter, choice in zip("ABCD", row.get("choices", []), strict=False):
            assert f"\n{letter}. {choice}\n" in row["prompt"]
