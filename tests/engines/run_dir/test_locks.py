from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from engines.run_dir.locks import Lock, lock_holder, lock_is_held

HOLD = """
import os, sys
from pathlib import Path
from engines.run_dir.locks import Lock
lock = Lock(Path(sys.argv[1]))
print(lock.acquire({"pid": os.getpid()}), flush=True)
sys.stdin.read()
"""


def test_a_lock_has_one_named_holder_and_a_dead_process_holds_none(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not lock_is_held(path)
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(6)
    ]
    answers = [holder.stdout.readline().strip() for holder in holders]
    assert sorted(answers) == ["False"] * 5 + ["True"]
    owner = holders[answers.index("True")]
    assert lock_is_held(path)
    assert lock_holder(path) == {"pid": owner.pid}
    assert not Lock(path).acquire({"pid": 0})
    assert lock_holder(path) == {"pid": owner.pid}, "a refused process writes nothing"
    owner.kill()
    owner.wait()
    assert not lock_is_held(path)
    for holder in holders:
        holder.kill()
        holder.communicate()


def test_forks_hold_the_lock_until_the_last_of_them_ends(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    assert lock.acquire({})
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    lock.release()
    assert lock_is_held(tmp_path / "lock")
    os.close(writer)
    os.close(reader)
    os.waitpid(child, 0)
    assert not lock_is_held(tmp_path / "lock")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xff", b"7"])
def test_an_unreadable_holder_is_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lock").write_bytes(content)
    assert lock_holder(tmp_path / "lock") == {}
