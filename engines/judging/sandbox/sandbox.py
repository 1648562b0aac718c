"""The engine's side of the sandbox: hosts that run programs with their tests, several at once."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from engines.judging.sandbox.limits import Limits, Verdicts
from engines.judging.sandbox.syscalls import MACHINES

_ROOT = str(Path(__file__).resolve().parents[3])
_START = "import sys; sys.path.insert(0, {root!r}); from engines.judging.sandbox.host import serve_jobs; serve_jobs()"
_OLDEST_KERNEL = (5, 14)
"""Older ones count processes of the user on the whole machine, not in the namespace."""
_WAIT_S = 0.1
_MARGIN_S = 30.0


class SandboxError(Exception):
    """The sandbox cannot confine programs on this machine, or its host ended; nothing is known about the program."""


@dataclass(frozen=True)
class UnitTests:
    """A program and its tests.

    Attributes:
        code: what the model wrote.
        tests: Python that uses names of the program: assertions, functions test_…, classes of unittest, or HumanEval's
            `check`.
        setup: Python that runs before the tests.
        prompt: Python that the code continues, in HumanEval's form; else empty.
        entry_point: the function that HumanEval's `check` gets; else empty.
    """

    code: str
    tests: str
    setup: str = ""
    prompt: str = ""
    entry_point: str = ""


@dataclass(frozen=True)
class Outcome:
    """How the run of a program and its tests ended: a word of `Verdicts`, and why it is not "passed"."""

    verdict: str
    reason: str = ""


class Sandbox:
    """Hosts for programs; each is started when it is needed first."""

    def __init__(self, limits: Limits | None = None, interpreter: Sequence[str] = (sys.executable,)) -> None:
        """A sandbox.

        Args:
            limits: of each program.
            interpreter: Python 3.11 or newer, and words before it.
        """
        self.limits = limits or Limits()
        self._interpreter = list(interpreter)
        self._idle: list[_Host] = []
        self._lock = threading.Lock()

    def why_not(self) -> str:
        """Why programs cannot be confined on this machine, and what is missing; empty if they can.

        It runs an empty program to see.
        """
        missing = _missing()
        if missing:
            return missing
        try:
            outcome = self.run(UnitTests("def f():\n    return 1\n", "assert f() == 1\n"))
        except SandboxError as error:
            return str(error)
        return "" if outcome.verdict == Verdicts.PASSED else f"a test of the sandbox ended with {outcome}"

    def run(self, given: UnitTests, limits: Limits | None = None) -> Outcome:
        """Run a program and its tests, confined; may be called from several threads.

        Args:
            given: the program.
            limits: others than the sandbox's.

        Raises:
            SandboxError: it could not be confined, so it did not run, or the host ended.
        """
        with self._lock:
            host = self._idle.pop() if self._idle else None
        host = host or _Host(self._interpreter)
        try:
            outcome = host.run(given, limits or self.limits)
        except BaseException:
            host.close()
            raise
        with self._lock:
            self._idle.append(host)
        if outcome.verdict == Verdicts.CANNOT:
            raise SandboxError(_explained(outcome.reason))
        return outcome

    def run_all(
        self,
        given: Sequence[UnitTests],
        done: Callable[[int, Outcome | SandboxError], None],
        waiting: Callable[[], None] = lambda: None,
        at_once: int | None = None,
    ) -> None:
        """Run programs, several at once.

        Args:
            given: programs with their tests.
            done: takes the number of one that ended, and its outcome; it is called in this thread.
            waiting: called several times a second; what it raises ends all.
            at_once: how many run together; by default, one for each processor that is not busy.
        """
        pool = ThreadPoolExecutor(at_once or free_processors(), thread_name_prefix="sandbox")
        try:
            running = {pool.submit(self._outcome, one): number for number, one in enumerate(given)}
            while running:
                waiting()
                for ended in wait(running, timeout=_WAIT_S, return_when="FIRST_COMPLETED").done:
                    done(running.pop(ended), ended.result())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _outcome(self, given: UnitTests) -> Outcome | SandboxError:
        try:
            return self.run(given)
        except SandboxError as error:
            return error

    def close(self) -> None:
        """End the hosts that are idle; safe to call twice."""
        with self._lock:
            hosts, self._idle = self._idle, []
        for host in hosts:
            host.close()


class _Host:
    """A host process, and its socket."""

    def __init__(self, interpreter: list[str]) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the host
        self._process = subprocess.Popen(
            [*interpreter, "-s", "-S", "-P", "-B", "-c", _START.format(root=_ROOT)],
            stdin=theirs.fileno(),
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            cwd="/",
            # The hash seed makes the order of a program's sets the same each time.
            env={"PYTHONHASHSEED": "0"},
        )
        theirs.close()

    def run(self, given: UnitTests, limits: Limits) -> Outcome:
        file = os.memfd_create("job", os.MFD_CLOEXEC)
        try:
            with open(os.dup(file), "wb") as stream:
                stream.write(json.dumps(asdict(given)).encode())
            self._line.settimeout(limits.wall_s + _MARGIN_S)
            socket.send_fds(self._line, [json.dumps(asdict(limits)).encode()], [file])
            reply = self._line.recv(1 << 17)
        except OSError as error:
            raise SandboxError(f"the sandbox's host does not answer: {error}") from error
        finally:
            os.close(file)
        if not reply:
            self._errors.seek(0)
            last = self._errors.read()[-2000:].decode(errors="replace").strip().splitlines()[-1:]
            raise SandboxError(f"the sandbox's host ended: {' '.join(last)}")
        return Outcome(**json.loads(reply))

    def close(self) -> None:
        """End the process, and with it what it runs."""
        self._line.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()


def free_processors() -> int:
    """Processors of this process that are not busy, by the load of the last minute; at least one."""
    mine = len(os.sched_getaffinity(0))
    return max(1, mine - round(os.getloadavg()[0]))


def _missing() -> str:
    """What the sandbox needs and this machine does not have, as far as it can be read."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"the sandbox needs Linux on {' or '.join(MACHINES)}; got {sys.platform} on {platform.machine()}"
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2] if part.isdecimal())
    if version < _OLDEST_KERNEL:
        return f"the sandbox needs Linux 5.14 or newer; got {platform.release()}"
    return ""


_SETTINGS = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces=15000"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "AppArmor's profile for this interpreter with userns, or sysctl kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def _explained(reason: str) -> str:
    """A refusal of the kernel, with the settings of this machine that explain it."""
    found = []
    for path, value, remedy in _SETTINGS:
        with contextlib.suppress(OSError):
            if Path(path).read_text().strip() == value:
                found.append(f"{path} is {value}: {remedy}")
    if not found:
        found.append("in a container, allow user namespaces and mounts: its seccomp profile, or CAP_SYS_ADMIN")
    return f"this machine does not let Cockpit confine programs: {reason}; {'; '.join(found)}"
