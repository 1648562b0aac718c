"""No test fails because the machine is busy: limits are for hangs, and there is one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.patience import PATIENCE_S

TESTS = Path(__file__).resolve().parent
WAITS = {"wait", "communicate", "run", "check_output", "check_call"}
FILES = sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py"))


def short_waits(source: str) -> list[int]:
    """Lines with a call that waits for a process, with a limit of its own below the common one."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in WAITS):
            continue
        limits = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
        limits += node.args[:1] if node.func.attr == "wait" else []
        for limit in limits:
            short = (
                isinstance(limit, ast.Constant) and isinstance(limit.value, (int, float)) and limit.value < PATIENCE_S
            )
            found += [node.lineno] if short else []
    return found


@pytest.mark.parametrize("name", FILES)
def test_a_process_is_waited_for_with_the_common_patience(name: str) -> None:
    assert short_waits((TESTS / name).read_text()) == []


def test_no_test_has_a_time_limit_of_its_own() -> None:
    limited = [name for name in FILES if "@pytest.mark.time" + "out" in (TESTS / name).read_text()]
    assert limited == []


def test_a_short_wait_is_found() -> None:
    assert short_waits("child.wait(30)\nchild.communicate(timeout=60)\nchild.wait(PATIENCE_S)\nchild.wait()") == [1, 2]


def test_properties_are_searched_without_a_clock() -> None:
    assert settings().deadline is None
    assert HealthCheck.too_slow in settings().suppress_health_check


@pytest.mark.parametrize("name", FILES)
def test_no_property_sets_a_clock_of_its_own(name: str) -> None:
    """`deadline` and `suppress_health_check` in a test would replace those of all tests."""
    calls = [node for node in ast.walk(ast.parse((TESTS / name).read_text())) if isinstance(node, ast.Call)]
    ours = {"conftest.py", "test_patience.py"}
    own = [
        node.lineno
        for node in calls
        for keyword in node.keywords
        if keyword.arg in {"deadline", "suppress_health_check"} and name not in ours
    ]
    assert own == []
