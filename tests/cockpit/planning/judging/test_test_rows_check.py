"""Rows of tests that no stage could judge are refused before anything runs."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from cockpit.planning.judging.test_rows_check import test_row_problems as problems_of
from recipes.load import LoadedRecipe, load_recipe


def recipe(folder: Path, rows: str, more: str = "", data: str = "rows.jsonl") -> LoadedRecipe:
    (folder / "model").mkdir()
    place = folder / data
    place.parent.mkdir(exist_ok=True)
    place.write_text(rows)
    file = folder / "r.toml"
    given = data.partition("/")[0]
    file.write_text(
        'schema = 1\nname = "r"\n[[stage]]\nname = "judge"\nkind = "evaluate"\nmodel = "./model"\n'
        f'data = "./{given}"\ntest_data = "./{given}"\n{more}'
    )
    return load_recipe(file)


def test_rows_without_a_check_are_named_at_the_line_of_the_file(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, '{"question": "?", "answer": "1"}\n{"question": "??", "answer": "2"}\n')
    first, *rows = problems_of(loaded)
    assert (first.key, first.line) == ("judge.test_data", 8)
    assert "2 rows of the test file cannot be used" in first.message
    assert [row.message.split()[0].rpartition(":")[2] for row in rows] == ["1", "2"]
    assert "names no check" in rows[0].message


@pytest.mark.parametrize(
    "more",
    [
        'checks = ["number"]\n',
        'judge_url = "http://127.0.0.1:1/v1"\njudge_model = "m"\nchecks = ["judge"]\n',
        "allow_code_execution = true\n",
    ],
)
def test_rows_that_can_be_judged_or_that_another_judge_decides_pass(tmp_path: Path, more: str) -> None:
    assert problems_of(recipe(tmp_path, '{"question": "?", "answer": "1"}\n', more)) == []


def test_the_split_of_a_folder_is_read(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, '{"question": "?"}\nnot json\n', 'checks = ["exact"]\n', "rows/test.jsonl")
    assert any("not JSON" in problem.message for problem in problems_of(loaded))


def test_a_file_that_is_not_there_is_left_to_the_check_of_inputs(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, "", 'checks = ["exact"]\n')
    (tmp_path / "rows.jsonl").unlink()
    assert problems_of(loaded) == []


@pytest.mark.parametrize(("blank_mib", "problems"), [(1, 2), (65, 0)])
def test_a_packed_file_of_many_rows_is_left_to_its_stage(tmp_path: Path, blank_mib: int, problems: int) -> None:
    loaded = recipe(tmp_path, "", data="rows.jsonl.gz")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wb", compresslevel=1) as file:
        file.write(b'{"question": "?", "answer": "1"}\n')  # names no check
        for _ in range(blank_mib):
            file.write(b"\n" * (1 << 20))
    assert len(problems_of(loaded)) == problems


def test_a_damaged_packed_file_is_a_problem(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, "not packed", data="rows.jsonl.gz")
    (problem,) = problems_of(loaded)
    assert "damaged" in problem.message


@pytest.mark.parametrize("data", ["rows/other.jsonl", "pipe"])
def test_what_is_no_file_is_refused_as_its_stage_would(tmp_path: Path, data: str) -> None:
    loaded = recipe(tmp_path, "", 'checks = ["exact"]\n', data)
    if data == "pipe":
        (tmp_path / data).unlink()
        os.mkfifo(tmp_path / data)
    [problem] = problems_of(loaded)
    assert "is not a file" in problem.message
