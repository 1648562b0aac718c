from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cockpit.provenance.mark import RUN_ENV
from cockpit.supervision import process_tree
from cockpit.supervision.process_tree import kill_tree, run_processes, signal_process
from engines.identity import Identity, start_time

BUSY = """
import os, signal, sys
if {deaf}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pids = []
for depth in range({children}):
    pid = os.fork()
    if pid == 0:
        os.setsid()
        if {clean}:
            os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {{}})
        signal.pause()
    pids.append(pid)
print(*pids, flush=True)
signal.pause()
"""


@contextmanager
def process(
    run_root: Path | None, *, children: int = 0, deaf: bool = False, clean: bool = False
) -> Iterator[tuple[Identity, list[int]]]:
    """A process, marked as a run's or unmarked, with children in their own sessions; ended with the block."""
    environment = {key: value for key, value in os.environ.items() if key != RUN_ENV}
    if run_root is not None:
        environment[RUN_ENV] = str(run_root)
    child = subprocess.Popen(
        [sys.executable, "-c", BUSY.format(children=children, deaf=deaf, clean=clean)],
        stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert child.stdout is not None
    pids = [int(pid) for pid in child.stdout.readline().split()]
    identity = Identity.of(child.pid)
    assert identity is not None
    try:
        yield identity, pids
    finally:
        for pid in (child.pid, *pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        child.stdout.close()
        child.wait()


def pids(found: list[Identity]) -> set[int]:
    return {identity.pid for identity in found}


def is_gone(pid: int) -> bool:
    return start_time(pid) is None


def test_a_run_s_processes_are_those_marked_and_all_their_descendants(tmp_path: Path) -> None:
    with process(tmp_path / "run", children=2) as (engine, workers), process(None) as (neighbour, _):
        assert pids(run_processes(tmp_path / "run", [])) == {engine.pid, *workers}
        assert neighbour.pid not in pids(run_processes(tmp_path / "run", []))


def test_children_that_dropped_the_mark_are_found_by_their_parent(tmp_path: Path) -> None:
    with process(tmp_path / "run", children=2, clean=True) as (engine, workers):
        assert pids(run_processes(tmp_path / "run", [])) == {engine.pid, *workers}


def test_the_process_tree_ends_and_no_other_process_does(tmp_path: Path) -> None:
    run, other = tmp_path / "run", tmp_path / "run-2"
    with (
        process(run, children=3, deaf=True) as (engine, workers),
        process(other, children=1) as (other_engine, others),
        process(tmp_path, children=1) as (parent_folder, in_parent),
        process(None, children=1) as (neighbour, neighbours),
    ):
        assert kill_tree(run, [engine], term_grace_s=0.0) == []
        for pid in workers:
            assert is_gone(pid)
        assert not engine.is_alive()
        alive = [other_engine.pid, *others, parent_folder.pid, *in_parent, neighbour.pid, *neighbours, os.getpid()]
        assert [pid for pid in alive if is_gone(pid)] == []


def test_a_process_that_handles_term_has_a_grace_period(tmp_path: Path) -> None:
    with process(tmp_path / "run") as (engine, _):
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            select.select([], [], [], seconds)

        assert kill_tree(tmp_path / "run", [engine], term_grace_s=30.0, wait=wait) == []
        assert not engine.is_alive()
        assert sum(waits) < 30.0, "it did not wait longer than there was something to wait for"


def test_a_process_that_reuses_the_pid_is_not_signalled(tmp_path: Path) -> None:
    with process(None) as (neighbour, _):
        for forged in (
            replace(neighbour, start_time=neighbour.start_time + 1),
            replace(neighbour, start_time=0),
            replace(neighbour, boot_id="the boot before"),
        ):
            assert not signal_process(forged, signal.SIGKILL)
            assert run_processes(tmp_path / "run", [forged]) == []
            assert kill_tree(tmp_path / "run", [forged], term_grace_s=0.0) == []
        assert neighbour.is_alive()
        assert signal_process(neighbour, signal.SIGCONT)


@pytest.mark.parametrize("pid", [0, 1, -1, 2**22 + 1])
def test_invalid_recorded_identities_are_not_signalled(tmp_path: Path, pid: int) -> None:
    forged = Identity(pid, start_time(pid) or 0, Identity.own().boot_id)
    assert not signal_process(forged, 0)
    assert run_processes(tmp_path / "run", [forged]) == []


def test_this_process_and_its_ancestors_are_not_included(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, parent = Identity.own(), Identity.of(os.getppid())
    assert parent is not None
    with process(None) as (child, _):
        found = run_processes(tmp_path / "run", [own])
        assert own.pid not in pids(found)
        assert child.pid not in pids(found), "this process is not the run's, whatever the run's files say"
    table = {own.pid: (parent.pid, 7), parent.pid: (1, 7), 1: (0, 7)}
    monkeypatch.setattr(process_tree, "_process_table", lambda _: (table, {1, own.pid}))
    assert run_processes(tmp_path / "run", [own, parent]) == []


def test_a_marked_process_of_another_user_is_not_the_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process(tmp_path / "run") as (engine, _):
        monkeypatch.setattr(os, "getuid", lambda: 54_321)
        assert engine.pid not in pids(run_processes(tmp_path / "run", []))


def test_a_mark_inside_another_variable_does_not_count(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "print('up', flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"NOTE": f"{RUN_ENV}={tmp_path / 'run'}", f"X{RUN_ENV}": str(tmp_path / "run")},
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    assert run_processes(tmp_path / "run", []) == []
    child.kill()
    child.communicate()


@pytest.mark.parametrize("name", [b"\xff\xfe", b") Z 1 1 (", b"\n1 2 3"])
def test_a_process_with_a_strange_name_is_found(tmp_path: Path, name: bytes) -> None:
    code = f"import ctypes; ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0); print('up', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={RUN_ENV: str(tmp_path / "run")},
    )  # fmt: skip
    assert child.stdout is not None
    child.stdout.readline()
    assert pids(run_processes(tmp_path / "run", [])) == {child.pid}
    assert kill_tree(tmp_path / "run", [], term_grace_s=0.0) == []
    assert child.poll() is not None
    child.communicate()


def test_a_run_directory_whose_name_is_not_utf_8_works(tmp_path: Path) -> None:
    assert run_processes(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")), []) == []


def test_children_are_reaped_with_their_statuses_and_those_to_keep_are_kept() -> None:
    code = """
import os, sys
from cockpit.supervision.process_tree import become_subreaper, reap_children
assert become_subreaper()
def child(status):
    pid = os.fork()
    if pid == 0:
        os._exit(status)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid
first, second = child(3), child(4)
assert reap_children() == {first: 3, second: 4}
assert reap_children() == {}
kept = child(5)
assert reap_children(frozenset({kept})) == {}
assert os.waitpid(kept, 0)[1] >> 8 == 5
middle = os.fork()
if middle == 0:  # its own child is orphaned, and becomes ours
    if os.fork() == 0:
        os.kill(os.getpid(), 9)
    os._exit(0)
os.waitpid(middle, 0)
os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
assert list(reap_children().values()) == [-9]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_exit_status_that_another_call_waits_for_is_left_to_it(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)"], env={**os.environ, RUN_ENV: str(tmp_path)}
    )
    assert kill_tree(tmp_path, [], term_grace_s=0.0, keep=frozenset({child.pid})) == []
    assert child.wait() in {-signal.SIGTERM, -signal.SIGKILL}
