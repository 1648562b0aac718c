"""A test file becomes tasks, or every row that cannot be used is named with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from engines.judging.checks import Judges
from engines.judging.task import Task
from engines.judging.test_file import read_prompts, read_tests
from engines.judging.unit_tests import Programs
from recipes.problems import OperatorError


def tasks(tmp_path: Path, rows: list[Any], *checks: str) -> list[Task]:
    file = tmp_path / "tests.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return read(file, *checks)


def read(file: Path, *checks: str) -> list[Task]:
    judges = Judges()
    try:
        return read_tests(file, checks, judges)
    finally:
        judges.close()


def test_rows_of_known_forms_become_tasks(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "2+2?"}]
    rows: list[dict[str, Any]] = [
        {"question": "1+1?", "answer": "1+1=2\n#### 2"},
        {"messages": [*talk, {"role": "assistant", "content": "4"}], "id": "sum"},
        {"instruction": "Add", "input": "3 and 4", "output": "7"},
        {"prompt": "Give JSON", "schema": {"type": "object"}},
        {"prompt": "Which?", "choices": ["a", "b"], "answer": "b"},
        {"prompt": "Say 5", "answer": 5, "checks": ["exact", {"kind": "regex", "pattern": "^5$"}]},
    ]
    found = tasks(tmp_path, rows, "number")
    assert [one.expected for one in found] == ["1+1=2\n#### 2", "4", "7", "", "b", "5"]
    kinds = [[check.kind for check in one.checks] for one in found]
    assert kinds == [["number"], ["number"], ["number"], ["json_schema"], ["choice"], ["exact", "regex"]]
    assert (found[1].messages, found[1].name) == (tuple(talk), "sum")
    assert found[2].prompt == "Add\n3 and 4"
    assert found[0].where.endswith("tests.jsonl:1")


def test_a_json_array_and_lines_give_the_same_tasks(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "answer": "b"}, {"prompt": "a", "answer": "c"}]
    lines = tasks(tmp_path, rows, "exact")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    array = read(tmp_path / "rows.json", "exact")
    assert [one.key for one in array] == [one.key for one in lines]
    assert len({one.key for one in lines}) == 2  # equal prompts are two tasks


def test_a_prompt_keeps_its_key_when_its_checks_change(tmp_path: Path) -> None:
    before = tasks(tmp_path, [{"prompt": "a", "answer": "b"}], "exact")[0]
    after = tasks(tmp_path, [{"prompt": "a", "answer": "bb"}], "contains")[0]
    other = tasks(tmp_path, [{"prompt": "a", "answer": "b", "system": "x"}], "exact")[0]
    assert before.key == after.key != other.key


def test_checks_of_the_whole_file_may_have_their_setting(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "answer": "c", "checks": "exact"}]
    found = tasks(tmp_path, rows, "regex=^a=b$", 'json_schema={"type": "object"}')
    assert [(check.kind, dict(check.settings)) for check in found[0].checks] == [
        ("regex", {"pattern": "^a=b$"}),
        ("json_schema", {"schema": {"type": "object"}}),
    ]
    assert [check.kind for check in found[1].checks] == ["exact"]
    with pytest.raises(OperatorError, match="json_schema — not JSON"):
        tasks(tmp_path, rows, "json_schema={")
    with pytest.raises(OperatorError, match="no such check"):
        tasks(tmp_path, rows, "exact=3")


def test_every_bad_row_is_named_at_once(tmp_path: Path) -> None:
    rows = [
        {"prompt": "fine", "answer": "x"},
        "{not json",
        [1],
        {"answer": "x"},
        {"prompt": "no answer"},
        {"messages": [{"role": "judge", "content": "x"}]},
        {"messages": [{"role": "user", "content": ["x"]}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"prompt": "x", "answer": "y", "checks": [3]},
        {"prompt": "x", "answer": "y", "checks": "exakt"},
        {"prompt": "x", "tools": [3], "answer": "y"},
        "[" * 10_000,
        {"prompt": "x", "tests": "assert True"},
        {"prompt": "def f():", "test": "def check(f): pass", "entry_point": "f"},
        {"text": "x", "test_list": ["assert f()"]},
    ]
    with pytest.raises(OperatorError) as refused:
        tasks(tmp_path, rows, "exact")
    lines = refused.value.message.splitlines()
    assert lines[0] == "14 rows of the test file cannot be used:"
    assert [line.partition("tests.jsonl:")[2].partition(" ")[0] for line in lines[1:]] == [str(n) for n in range(2, 16)]
    assert all("run code that a model wrote, which is off" in line for line in lines[-3:])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (
            '{"prompt": "x", "answer": 2, "checks": [{"kind": "number", "tolerance": 1e999}]}',
            "tolerance is out of range",
        ),
        ('{"prompt": "x", "answer": 2, "checks": [{"kind": "number", "tolerance": NaN}]}', "tolerance is out of range"),
        ('{"prompt": "x", "answer": 2, "checks": [{"kind": "number", "tolerance": -1}]}', "tolerance is out of range"),
        ('{"prompt": "x", "answer": "The!", "checks": ["normalized"]}', "only punctuation and articles"),
        ('{"prompt": "x", "pattern": ""}', "the pattern is empty"),
    ],
)
def test_a_check_that_passes_whatever_is_answered_is_refused(tmp_path: Path, row: str, problem: str) -> None:
    with pytest.raises(OperatorError, match=problem):
        tasks(tmp_path, [row])


@pytest.mark.parametrize("row", ['{"prompt": "say \\ud800", "answer": "x"}', '{"prompt": "say", "answer": "\\udfff"}'])
def test_half_of_a_surrogate_pair_is_refused_with_its_row(tmp_path: Path, row: str) -> None:
    file = tmp_path / "tests.jsonl"
    file.write_text(row)
    with pytest.raises(OperatorError, match=r"tests\.jsonl:1  a text has \\ud[8f]"):
        read(file, "exact")
    with pytest.raises(OperatorError, match=r"tests\.jsonl:1  a text has \\ud[8f]"):
        read_prompts(file)


def test_rows_with_unit_tests_have_their_forms(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": "def f():\n",
            "test": "def check(c): pass",
            "entry_point": "f",
            "canonical_solution": "x",
            "task_id": "HumanEval/0",
        },
        {
            "text": "Add.",
            "test_list": ["assert f()"],
            "test_setup_code": "x = 1",
            "test_imports": ["import math"],
            "task_id": 7,
        },
        {"prompt": "Add.", "tests": "assert f()", "setup": "x = 1"},
        {"prompt": "Add.", "checks": ["unit_tests", "python"], "tests": ["assert f()"]},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judges = Judges(programs=Programs())
    try:
        found = read_tests(tmp_path / "t.jsonl", (), judges)
    finally:
        judges.close()
    assert [dict(one.checks[0].settings) for one in found] == [
        {"tests": "def check(c): pass", "entry_point": "f", "prompt": "def f():\n"},
        {"tests": ["assert f()"], "setup": ["import math", "x = 1"]},
        {"tests": "assert f()", "setup": "x = 1"},
        {"tests": ["assert f()"]},
    ]
    assert [one.name for one in found] == ["HumanEval/0", "7", "", ""]


@pytest.mark.parametrize("text", ["", "\n\n", "[]", "[1, 2", "\x1f\x8b"])
def test_a_file_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(OperatorError):
        read(tmp_path / "t.jsonl", "exact")


ACCENTED = {"prompt": "Où est le café ?", "answer": "là"}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("form", ["rows", "array"])
def test_a_unicode_file_is_read_by_its_first_bytes(tmp_path: Path, encoding: str, form: str) -> None:
    line = json.dumps(ACCENTED, ensure_ascii=False)
    text = f"{line}\n{line}\n" if form == "rows" else f"[{line}, {line}]"
    (tmp_path / "t.jsonl").write_bytes(text.encode(encoding))
    assert [task.expected for task in read(tmp_path / "t.jsonl", "exact")] == ["là", "là"]


def test_a_file_in_another_encoding_is_refused_as_a_whole_with_a_way_to_convert_it(tmp_path: Path) -> None:
    line = json.dumps(ACCENTED, ensure_ascii=False)
    (tmp_path / "t.jsonl").write_bytes(b'{"prompt": "a", "answer": "b"}\n' + f"{line}\n".encode("latin-1") * 9)
    with pytest.raises(OperatorError) as caught:
        read(tmp_path / "t.jsonl", "exact")
    assert caught.value.message == f"{tmp_path}/t.jsonl:2  the file is not UTF-8 text: byte 0xf9, byte 45 of the file"
    assert "iconv -f LATIN1 -t UTF-8" in caught.value.hint


def test_a_unicode_file_that_is_cut_off_is_refused_by_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(json.dumps(ACCENTED).encode("utf-16")[:-1])
    with pytest.raises(OperatorError, match=r"begins as UTF-16-LE text and is not: at byte .*, truncated data"):
        read(tmp_path / "t.jsonl", "exact")


def test_rows_without_a_check_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="names no check"):
        tasks(tmp_path, [{"prompt": "a", "answer": "b"}])


def test_a_missing_file_is_an_operators_mistake(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="cannot be read"):
        read(tmp_path / "none.jsonl", "exact")
