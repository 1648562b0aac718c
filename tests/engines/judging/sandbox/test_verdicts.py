"""A program passes if it does what its tests ask, in the usual forms of tests, and cannot declare itself passed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from itertools import chain

import pytest

from engines.judging.sandbox.limits import Limits, Verdicts
from engines.judging.sandbox.sandbox import Outcome, Sandbox, SandboxError, UnitTests
from tests.engines.judging.sandbox.programs import BODY, CHEATS, GOOD, HUMAN_PROMPT, HUMAN_TEST, IMPORTS, SQUARE


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(Limits(cpu_s=10, wall_s=60.0))
    yield made
    made.close()


def outcomes(sandbox: Sandbox, given: list[UnitTests]) -> list[Outcome | SandboxError]:
    found: dict[int, Outcome | SandboxError] = {}
    sandbox.run_all(given, found.__setitem__, at_once=2)
    return [found[number] for number in range(len(given))]


def test_programs_that_do_what_their_tests_ask_pass_and_cheats_do_not(sandbox: Sandbox) -> None:
    good = [UnitTests(code, tests) for code, tests in GOOD.values()]
    cheats = [UnitTests(f"{IMPORTS}{code}\n", tests) for code, tests in CHEATS.values()]
    found = dict(zip(chain(GOOD, CHEATS), outcomes(sandbox, [*good, *cheats]), strict=True))
    assert {name: found[name] for name in GOOD if found[name] != Outcome(Verdicts.PASSED)} == {}
    bad = {name: found[name] for name in CHEATS}
    assert {
        name: one for name, one in bad.items() if isinstance(one, SandboxError) or one.verdict == Verdicts.PASSED
    } == {}
    assert {name for name, one in bad.items() if isinstance(one, Outcome) and not one.reason} == set()


@pytest.mark.parametrize(
    ("code", "verdict"),
    [
        (BODY, Verdicts.PASSED),
        (f"{BODY}\n\ndef g(x):\n    return [x\n", Verdicts.PASSED),  # cut at the stop words
        (f"def f(a: List[int]) -> int:\n{BODY}", Verdicts.PASSED),
        ("return sum(a)", Verdicts.PASSED),
        ("    return 3\n", Verdicts.FAILED),
        ("    return 1\n\ndef double(x):\n    return 4\n", Verdicts.FAILED),
        (f"def other(a):\n{BODY}", Verdicts.FAILED),
    ],
)
def test_a_program_continues_the_prompt_of_its_function(code: str, verdict: str, sandbox: Sandbox) -> None:
    given = UnitTests(code, HUMAN_TEST, prompt=HUMAN_PROMPT, entry_point="f")
    assert sandbox.run(given).verdict == verdict


def test_a_failed_test_is_named_with_its_line(sandbox: Sandbox) -> None:
    found = sandbox.run(UnitTests("def f(x):\n    return x", f"{SQUARE}"))
    assert found == Outcome(Verdicts.FAILED, "assertion fails, at line 1 of the tests: assert f(2) == 4")
    raised = sandbox.run(UnitTests("def f(x):\n    return 1 / 0", SQUARE))
    assert raised.verdict == Verdicts.ERROR
    assert "ZeroDivisionError (division by zero) at its line 2, at line 1 of the tests" in raised.reason


def test_a_machine_that_refuses_namespaces_runs_nothing_and_says_what_is_missing() -> None:
    refusing = Sandbox(interpreter=["unshare", "-Ur", sys.executable, "-c", _NO_NAMESPACES, sys.executable])
    try:
        reason = refusing.why_not()
    finally:
        refusing.close()
    assert "does not let Cockpit confine programs" in reason
    assert "unshare" in reason


_NO_NAMESPACES = (
    "import os, sys\nwith open('/proc/sys/user/max_user_namespaces', 'w') as file:\n    file.write('0')\n"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def test_the_mask_of_the_operator_s_files_does_not_close_the_library_to_a_program() -> None:
    before = os.umask(0o077)
    made = Sandbox(Limits(cpu_s=10, wall_s=60.0))
    try:
        given = UnitTests("import subprocess\ndef f():\n    return 1\n", "assert f() == 1")
        assert made.run(given) == Outcome(Verdicts.PASSED)
    finally:
        made.close()
        os.umask(before)
