from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from engines.identity import Identity, boot_id, start_time

SLEEPER = (
    "import ctypes, sys; ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0); print('up', flush=True); sys.stdin.read()"
)


@contextmanager
def process(name: bytes = b"sleeper") -> Iterator[subprocess.Popen[str]]:
    """A process with the name `name` that waits until it is ended."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER.format(name=name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def test_a_process_is_itself_until_it_ends() -> None:
    with process() as child:
        known = Identity.of(child.pid)
        assert known is not None
        assert known.is_alive()
        assert Identity.of(child.pid) == known
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert not known.is_alive(), "a zombie is not alive"
        assert Identity.of(child.pid) is None
    assert not known.is_alive()


def test_a_pid_alone_does_not_identify_a_process() -> None:
    with process() as child:
        known = Identity.of(child.pid)
        assert known is not None
        assert not replace(known, start_time=known.start_time - 1).is_alive(), "another process has the pid now"
        assert not replace(known, boot_id="another boot").is_alive(), "the machine was restarted"
        assert not replace(known, pid=os.getpid()).is_alive()


@pytest.mark.parametrize("pid", [-1, 0, 1, 4_194_304, 2**31, 2**70])
def test_an_impossible_pid_is_not_alive(pid: int) -> None:
    assert not Identity(pid, start_time(pid) or 0, boot_id()).is_alive()


@pytest.mark.parametrize(
    "name", [b") R 1 1", b"(((", b"a b\tc", b"\xff\xfe\x80", b"\x1b[2J", b"1 2 3 4 5 6 7 8", b"\n)\n"]
)
def test_a_process_may_have_any_name(name: bytes) -> None:
    with process(name) as child:
        known = Identity.of(child.pid)
        assert known is not None
        assert known.start_time > 0
        assert known.is_alive()
        started = start_time(os.getpid())
        assert started is not None
        assert known.start_time >= started


def test_this_process_has_its_own_identity() -> None:
    assert Identity.own().is_alive()
    assert Identity.own() == Identity.of(os.getpid())


def test_a_machine_without_a_boot_id_has_the_id_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_path: object) -> str:
        raise FileNotFoundError

    boot_id.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", gone)
        assert boot_id() == "unknown"
    boot_id.cache_clear()


def test_an_identity_outlives_signals_that_do_not_end_it() -> None:
    with process() as child:
        known = Identity.of(child.pid)
        assert known is not None
        os.kill(child.pid, signal.SIGSTOP)
        assert known.is_alive()
        os.kill(child.pid, signal.SIGCONT)
