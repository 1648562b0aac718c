"""`host`: a process that runs one program after another, each in namespaces of its own, and watches it.

It starts with an empty environment and reads no job, so that a program finds nothing else than the interpreter in the
memory that it inherits. A job is a message of limits on the socket that is stdin, with the file that has the job; the
reply is one message of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from engines.judging.sandbox import kernel
from engines.judging.sandbox.confine import confine, write_maps
from engines.judging.sandbox.limits import Limits, Verdicts
from engines.judging.sandbox.tests_side import judge, read_job
from recipes import quantities

MOST_MESSAGE_BYTES = 64 * 1024
_LOOK_S = 0.02
_PRELOADED = (
    "typing", "re", "math", "itertools", "functools", "heapq", "string", "copy", "random", "datetime", "bisect",
)  # fmt: skip
"""Modules that programs import most; they are loaded once, and not for each program."""


def serve_jobs() -> None:
    """Serve jobs until the socket ends. A parent-death signal would come at the end of the thread that started this."""
    os.environ.clear()
    sys.executable = os.path.realpath(sys.executable)  # where it is in the private root
    for name in _PRELOADED:
        __import__(name)
    line = socket.socket(fileno=os.dup(0))
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    os.close(null)
    while True:
        data, handles, _, _ = socket.recv_fds(line, MOST_MESSAGE_BYTES, 1)
        if not data:
            return
        reply = run_one(handles[0], Limits(**json.loads(data)), line)
        os.close(handles[0])
        line.send(json.dumps(reply).encode()[:MOST_MESSAGE_BYTES])


@dataclass
class _Ends:
    """Descriptors of this process and of the confined ones, for one job."""

    job: int
    line: socket.socket
    verdict: tuple[int, int]
    output: tuple[int, int]
    ours: socket.socket
    theirs: socket.socket


def run_one(job: int, limits: Limits, line: socket.socket) -> dict[str, str]:
    """Run one program and its tests; returns `verdict` and `reason` when none of its processes is left."""
    ours, theirs = socket.socketpair()
    ends = _Ends(job, line, os.pipe(), os.pipe(), ours, theirs)
    shim = os.fork()
    if shim == 0:
        try:
            _start(ends, limits)
        finally:
            os._exit(1)
    theirs.close()
    os.close(ends.verdict[1])
    os.close(ends.output[1])
    cannot = ""
    try:
        if ours.recv(1):
            write_maps(shim)
            ours.send(b"g")
    except OSError as error:
        cannot = str(error.strerror or error)
    ours.close()
    try:
        found = _watch(shim, ends, limits)
    finally:
        os.close(ends.verdict[0])
        os.close(ends.output[0])
    return {"verdict": Verdicts.CANNOT, "reason": cannot} if cannot else found


def _start(ends: _Ends, limits: Limits) -> NoReturn:
    """In the first child: enter new namespaces, whose first process is a second child, and wait for it."""
    kernel.prctl("ending with the parent", kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    ends.line.close()
    ends.ours.close()
    os.close(ends.verdict[0])
    os.close(ends.output[0])
    os.dup2(ends.output[1], 1)
    os.dup2(ends.output[1], 2)
    os.close(ends.output[1])
    _try(ends, lambda: kernel.unshare(kernel.NEW_NAMESPACES))
    ends.theirs.send(b"u")
    if not ends.theirs.recv(1):
        os._exit(1)
    first = os.fork()
    if first == 0:
        try:
            _inside(ends, limits)
        finally:
            os._exit(1)
    os.close(ends.verdict[1])
    os.close(1)
    os.close(2)
    os.waitpid(first, 0)
    os._exit(0)


def _inside(ends: _Ends, limits: Limits) -> None:
    """In the first process of the namespaces: confine it, and run the tests."""
    ends.theirs.close()
    _try(ends, lambda: confine(limits))

    def close_in_program() -> None:
        os.close(ends.job)
        os.close(ends.verdict[1])

    _send(ends, judge(lambda: read_job(ends.job), limits.cpu_s, close_in_program))
    os._exit(0)


def _try(ends: _Ends, step: Any) -> None:
    try:
        step()
    except OSError as error:
        _send(ends, {"verdict": Verdicts.CANNOT, "reason": str(error.strerror or error)})
        os._exit(1)


def _send(ends: _Ends, verdict: dict[str, str]) -> None:
    os.write(ends.verdict[1], json.dumps(verdict).encode()[:MOST_MESSAGE_BYTES])


def _watch(shim: int, ends: _Ends, limits: Limits) -> dict[str, str]:
    """Read the verdict until the first process has ended, and end all of them at a limit."""
    deadline_s = time.monotonic() + limits.wall_s
    said, printed, stopped = b"", 0, ""
    poll = select.poll()
    for handle in (ends.verdict[0], ends.output[0]):
        poll.register(handle, select.POLLIN | select.POLLHUP)
    poll.register(ends.line.fileno(), 0)  # reports only that the engine is gone
    open_ends = 2
    while open_ends:
        for handle, _ in poll.poll(_LOOK_S * 1000):
            if handle == ends.line.fileno():
                _end(shim)
                os._exit(0)
            data = os.read(handle, 65536)
            if not data:
                poll.unregister(handle)
                open_ends -= 1
            elif handle == ends.verdict[0]:
                said = (said + data)[: MOST_MESSAGE_BYTES + 1]
            else:
                printed += len(data)
        if not stopped and (stopped := _over(shim, limits, deadline_s, printed)):
            _end(shim)
    os.waitpid(shim, 0)
    if stopped:
        return {"verdict": stopped, "reason": _REASONS[stopped](limits)}
    try:
        found = json.loads(said)
        return {"verdict": str(found["verdict"]), "reason": str(found["reason"])}
    except (ValueError, KeyError, TypeError):
        return {"verdict": Verdicts.ERROR, "reason": "the tests ended without a verdict"}


_REASONS = {
    Verdicts.TIMEOUT: lambda limits: f"it took more than {quantities.exact(limits.wall_s)} s",
    Verdicts.MEMORY: lambda limits: f"its processes use more than {limits.memory_bytes >> 20} MiB",
    Verdicts.OUTPUT: lambda limits: f"it prints more than {limits.output_bytes >> 10} KiB",
}


def _over(shim: int, limits: Limits, deadline_s: float, printed: int) -> str:
    if printed > limits.output_bytes:
        return Verdicts.OUTPUT
    if time.monotonic() > deadline_s:
        return Verdicts.TIMEOUT
    return Verdicts.MEMORY if _resident_bytes(shim) > limits.memory_bytes else ""


def _end(shim: int) -> None:
    """End the first process of the namespaces, and with it the kernel ends all others."""
    for pid in [*_children(shim), shim]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    """The child processes of a process, of all its threads."""
    found = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError, ValueError):
                children = Path(f"/proc/{pid}/task/{thread}/children").read_text("ascii")
                found += [int(one) for one in children.split()]
    return found


def _resident_bytes(pid: int) -> int:
    """Memory of all processes under one, without what they share with files."""
    total, waiting = 0, _children(pid)
    while waiting:
        one = waiting.pop()
        waiting += _children(one)
        try:
            with open(f"/proc/{one}/status", encoding="ascii", errors="replace") as file:
                total += sum(int(line.split()[1]) for line in file if line.startswith(("RssAnon:", "RssShmem:")))
        except (OSError, ValueError, IndexError):
            continue
    return total * 1024


if __name__ == "__main__":
    serve_jobs()
