"""Programs do not leave the sandbox: not by network, files, other processes, the kernel's interfaces, nor over a limit.

Many attempts share one program, so that they take little time. They are made as this user, and as one without rights
where this user is root. The attempts that any process may make succeed outside of the sandbox: those prove that the
others could fail.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engines.judging.sandbox.limits import Limits, Verdicts
from engines.judging.sandbox.sandbox import Outcome, Sandbox, SandboxError, UnitTests
from tests.engines.judging.sandbox.programs import ENDED, SLOW
from tests.patience import PATIENCE_S

HERE = Path(__file__).parent
ATTEMPTS = (HERE / "attempts.txt").read_text()
LIMITS = Limits(cpu_s=5, wall_s=20.0)
LEAST_ATTEMPTS = 60
NOBODY = 65534


def _as_nobody() -> list[str]:
    """The words that start an interpreter as a user without rights; empty where that is not possible."""
    python = next(
        (one for one in ("/usr/bin/python3.12", "/usr/bin/python3.11", "/usr/bin/python3") if Path(one).exists()), ""
    )
    setpriv = shutil.which("setpriv")
    if os.getuid() or not python or setpriv is None:
        return []
    words = [setpriv, f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", python]
    probe = "import sys; sys.path.insert(0, sys.argv[1]); import engines.judging.sandbox.host"
    tried = subprocess.run([*words, "-S", "-B", "-c", probe, str(HERE.parents[3])], capture_output=True, check=False)
    return words if tried.returncode == 0 else []


USERS = {"this user": [sys.executable], "no rights": _as_nobody()}


@pytest.fixture(scope="module", params=list(USERS))
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    if not USERS[request.param]:
        pytest.skip("this user cannot become another one, or that one has no interpreter")
    made = Sandbox(LIMITS, USERS[request.param])
    yield made
    made.close()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Things on this machine that a program could reach without a sandbox."""
    folder = tmp_path_factory.mktemp("host")
    for one in (folder, *folder.parents):
        if one.owner() == folder.owner() and one != Path(one.anchor):
            one.chmod(one.stat().st_mode | 0o055)
    (folder / "secret").write_text("canary")
    listening = socket.create_server(("127.0.0.1", 0))
    abstract, path = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    name = f"cockpit-test-{os.getpid()}"
    abstract.bind("\0" + name)
    path.bind(str(folder / "unix"))
    (folder / "unix").chmod(0o777)
    for line in (abstract, path):
        line.listen()
    yield {
        "file": str(folder / "secret"),
        "port": listening.getsockname()[1],
        "abstract": name,
        "unix": str(folder / "unix"),
        "pid": os.getpid(),
        "source": str(HERE),
    }
    for line in (listening, abstract, path):
        line.close()


def program(host: dict[str, Any]) -> str:
    return f"HOST = {json.dumps(host)}\n{ATTEMPTS}"


def patiently(found: Callable[[], bool]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + PATIENCE_S
    while not found():
        assert time.monotonic() < until
        time.sleep(0.005)


def nothing_is_left() -> None:
    """No process of a program lives: hosts have no children."""
    for one in psutil.Process().children():
        patiently(lambda one=one: not grandchildren(one))  # type: ignore[misc]


def grandchildren(one: psutil.Process) -> list[psutil.Process]:
    """The descendants of a child; none of one that is gone."""
    try:
        return one.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def run(sandbox: Sandbox, code: str, tests: str = "assert f() == 'never'", **limits: Any) -> Outcome:
    outcome = sandbox.run(UnitTests(code, tests), Limits(**{**LIMITS.__dict__, **limits}))
    nothing_is_left()
    return outcome


def test_no_attempt_leaves_the_sandbox(sandbox: Sandbox, host: dict[str, Any]) -> None:
    tests = f"assert tried() >= {LEAST_ATTEMPTS}\nfound = escaped()\nassert found == [], ' | '.join(found)"
    assert run(sandbox, program(host), tests) == Outcome(Verdicts.PASSED)


def test_attempts_that_need_no_rights_succeed_outside_of_it(host: dict[str, Any]) -> None:
    words = [
        sys.executable,
        "-S",
        "-c",
        f"{program(host)}\nprint(sorted(set(control) - {{n.split(':')[0] for n in escaped(control)}}))",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    "name", [pytest.param(one, marks=pytest.mark.thorough) if one in SLOW else one for one in ENDED]
)
def test_a_program_that_does_not_end_well_is_ended_with_all_its_processes(name: str, sandbox: Sandbox) -> None:
    code, limits, verdict = ENDED[name]
    if os.uname().machine != "x86_64" and "another machine" in name:
        pytest.skip("this machine has one interface")
    assert run(sandbox, code, **limits).verdict == verdict
    assert run(sandbox, "def f():\n    return 1\n", "assert f() == 1").verdict == Verdicts.PASSED


@pytest.mark.thorough
def test_the_end_of_the_engine_ends_the_program(sandbox: Sandbox) -> None:
    before = {one.pid for one in psutil.Process().children()}
    sleeper = UnitTests("import time\ndef f(): time.sleep(60)\n", "f()")

    def program() -> None:
        with contextlib.suppress(SandboxError):
            sandbox.run(sleeper)

    thread = threading.Thread(target=program)
    thread.start()
    started: list[psutil.Process] = []

    def begun() -> bool:
        started[:] = [grand for one in psutil.Process().children() for grand in grandchildren(one)]
        return len(started) >= 3

    patiently(begun)
    for one in psutil.Process().children():
        if one.pid in before or grandchildren(one):
            one.kill()
    thread.join()
    patiently(lambda: not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in started))
