"""`docs/faults.md`: every fault has a test that exists, or says why it has none."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "faults.md"
ROW = re.compile(r"\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
FAULTS, ATTACKS, WITHOUT = 69, 28, 7


def table(heading: str) -> list[tuple[str, str, str, str]]:
    """The rows below a heading: number, fault, what Cockpit does, tests."""
    section = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    found = [ROW.fullmatch(line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if match is None]
    return [(match[1], match[2], match[3], match[4]) for match in found if match]


ROWS = [(heading, *row) for heading in ("Faults", "Attacks") for row in table(heading)]


@cache
def functions_of(file: str) -> dict[str, list[str]]:
    """The tests of a file, each with the names of its decorators."""
    tree = ast.parse((ROOT / file).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name: [ast.unparse(one) for one in node.decorator_list] for node in functions}


@pytest.mark.parametrize(("heading", "count"), [("Faults", FAULTS), ("Attacks", ATTACKS)])
def test_every_row_is_there_once(heading: str, count: int) -> None:
    assert [number for number, *_ in table(heading)] == [str(number) for number in range(1, count + 1)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1]}")
def test_a_row_names_tests_that_exist_and_always_run_or_says_why_not(row: tuple[str, ...]) -> None:
    _, _, fault, does, cell = row
    assert fault
    assert does
    named = TEST.findall(cell)
    if not named:
        assert re.fullmatch(r"no test: \S.{20,}", cell)
        return
    assert "<br>".join(f"`{file}::{name}`" for file, name in named) == cell, "nothing but tests"
    for file, name in named:
        assert (ROOT / file).is_file()
        assert name in functions_of(file), f"{file} has no {name}"
        assert not [one for one in functions_of(file)[name] if "skip" in one or "xfail" in one]


def test_few_faults_and_no_attack_are_without_a_test() -> None:
    without = [(heading, number) for heading, number, _, _, cell in ROWS if not TEST.search(cell)]
    assert len([number for heading, number in without if heading == "Faults"]) <= WITHOUT
    assert [number for heading, number in without if heading == "Attacks"] == []
