"""The first process of the namespaces: it runs the tests, and asks the program's process for what the program does.

No code of the program runs here, so nothing of it can declare the tests passed.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import linecache
import os
import signal
import socket
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from typing import Any

from engines.judging.sandbox.limits import Verdicts
from engines.judging.sandbox.peer import Peer
from engines.judging.sandbox.program_side import LOAD, NAMES, run_program, whole
from engines.judging.sandbox.remote import Remote

MODULE = "tests"
TESTS_FILE = "<tests>"
Verdict = dict[str, str]
_SAFE = frozenset(
    {"abs", "all", "any", "bool", "chr", "complex", "divmod", "float", "hash", "hex", "int", "len", "list", "max",
     "min", "oct", "ord", "pow", "range", "repr", "reversed", "round", "set", "sorted", "str", "sum", "tuple"}
)  # fmt: skip
"""Built-in functions that a test may give to a program as an argument."""


def judge(read: Callable[[], dict[str, Any]], cpu_s: int, close_in_program: Callable[[], None]) -> Verdict:
    """Run a program and its tests.

    Args:
        read: gives the job: `code`, `prompt`, `entry_point`, `setup`, `tests`; see `sandbox.UnitTests`.
        cpu_s: processor seconds of the program.
        close_in_program: closes what the program must not have.
    """
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        try:
            ours.close()
            close_in_program()
            run_program(theirs)
        finally:
            os._exit(0)
    theirs.close()
    peer = Peer(ours, may, Remote)
    # Only now, so that the program's process inherits no copy of its tests.
    found = _judged(read(), peer)
    if peer.ended or (found["verdict"] == Verdicts.PASSED and os.waitpid(child, os.WNOHANG)[0]):
        return _ended(child, cpu_s)
    return found


def read_job(handle: int) -> dict[str, Any]:
    """The job in a file; called after the program's process has begun without it."""
    import json

    parts, at = [], 0
    while part := os.pread(handle, 1 << 20, at):
        parts.append(part)
        at += len(part)
    job: dict[str, Any] = json.loads(b"".join(parts))
    return job


def _judged(job: dict[str, Any], peer: Peer) -> Verdict:
    where = "the program"
    try:
        peer.ask("call", LOAD, job["prompt"], job["code"], job["entry_point"])
        where = "the tests"
        namespace = _namespace(job, peer)
        _run(job, namespace)
    except BaseException as error:  # noqa: BLE001 - also SystemExit: tests that end early have not passed
        return _verdict(error, where)
    return {"verdict": Verdicts.PASSED, "reason": ""}


def _namespace(job: dict[str, Any], peer: Peer) -> dict[str, Any]:
    """The names of the tests: the prompt's helpers, their own, and of the program those that they use.

    A name that Python has built in, or that the standard library has, is never the program's.
    """
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module
    namespace = module.__dict__
    if job["prompt"]:
        exec(compile(whole(job["prompt"]), "<prompt>", "exec"), namespace)  # noqa: S102 - of the test file, confined
    entry = job["entry_point"]
    wanted = _used(job["setup"], job["tests"]) - set(dir(builtins)) - namespace.keys() | ({entry} if entry else set())
    found = peer.ask("call", NAMES, sorted(wanted))
    bound = {name: _bound(name, found[name], peer) for name in wanted & found.keys()}
    bound = {name: value for name, value in bound.items() if value is not _NOTHING}
    if entry and not callable(bound.get(entry)):
        raise LookupError(f"the program does not define {entry}")
    if not bound:
        raise LookupError("the tests use nothing that the program defines")
    namespace.update(bound)
    return namespace


_NOTHING = object()


def _bound(name: str, given: Any, peer: Peer) -> Any:
    kind = given[0]
    if name in sys.stdlib_module_names:
        return importlib.import_module(name)
    if kind == "module":
        return importlib.import_module(given[1]) if given[1] in sys.stdlib_module_names else _NOTHING
    if kind == "exception":
        return peer.exception_class(given[1], given[2])
    if kind == "from":
        if given[1].partition(".")[0] not in sys.stdlib_module_names:
            return _NOTHING
        return getattr(importlib.import_module(given[1]), name, _NOTHING)
    return given[1]


def _used(*texts: str) -> set[str]:
    """The names that a text reads."""
    trees = [ast.parse(text, TESTS_FILE) for text in texts]
    return {node.id for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _run(job: dict[str, Any], namespace: dict[str, Any]) -> None:
    entry, own = job["entry_point"], namespace.keys() - {job["entry_point"]}
    for text in (job["setup"], job["tests"]):
        lines = text.splitlines(keepends=True)
        linecache.cache[TESTS_FILE] = (len(text), None, lines, TESTS_FILE)
        exec(compile(text, TESTS_FILE, "exec"), namespace)  # noqa: S102 - of the test file, confined
    if entry and callable(namespace.get("check")):
        namespace["check"](namespace[entry])
    for name in [name for name in namespace if name.startswith("test_") and name not in own]:
        one = namespace[name]
        if isinstance(one, types.FunctionType) and not one.__code__.co_argcount:
            one()
    _run_cases([one for one in namespace.values() if isinstance(one, type) and one.__module__ == MODULE])


def _run_cases(classes: list[type]) -> None:
    """Run classes of unittest."""
    unittest = sys.modules.get("unittest")
    if unittest is None:
        return
    for one in classes:
        if issubclass(one, unittest.TestCase):
            for case in unittest.defaultTestLoader.loadTestsFromTestCase(one):
                case.debug()


def may(what: str, target: Any, argument: Any) -> bool:
    """Whether a program may do something to an object of the tests that it was given."""
    if what == "call":
        function = getattr(target, "__func__", target)
        if isinstance(function, types.FunctionType):
            return function.__module__ == MODULE
        name = getattr(target, "__name__", "")
        if isinstance(target, types.BuiltinFunctionType | type) and getattr(builtins, name, None) is target:
            return name in _SAFE
        return _is_own(type(target)) or (isinstance(target, type) and _is_own(target))
    if what in ("get", "set"):
        return isinstance(argument, str) and not argument.startswith("_") and _is_own(type(target))
    return _is_own(type(target)) or (argument in ("iter", "next") and isinstance(target, Iterator))


def _is_own(kind: type) -> bool:
    return kind.__module__ == MODULE


def _verdict(error: BaseException, where: str) -> Verdict:
    name = type(error).__name__
    text = _text(error)
    if isinstance(error, MemoryError):
        return {"verdict": Verdicts.MEMORY, "reason": "it ran out of memory"}
    of_program = error.__dict__.get("of_program", False)
    line = _line(error)
    at = f", at line {line} of the tests: {linecache.getline(TESTS_FILE, line).strip()[:200]}" if line else ""
    if of_program:
        program_line = error.__dict__.get("program_line")
        told = f"the program raises {name}{text}" + (f" at its line {program_line}" if program_line else "")
        return {"verdict": Verdicts.ERROR, "reason": told + at}
    if isinstance(error, AssertionError):
        return {"verdict": Verdicts.FAILED, "reason": f"assertion{text} fails{at}"}
    return {"verdict": Verdicts.ERROR, "reason": f"{where}: {name}{text}{at}"}


def _text(error: BaseException) -> str:
    """What an exception says, from its texts alone: other objects may be the program's."""
    texts = [str(one) for one in error.args if type(one) in (str, int, float)]
    return f" ({', '.join(texts)[:200]})" if texts and texts != [""] else ""


def _line(error: BaseException) -> int:
    """The line of the tests that raised; 0 outside of them."""
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename == TESTS_FILE), 0)


def _ended(child: int, cpu_s: int) -> Verdict:
    """Why the program's process is gone."""
    try:
        os.kill(child, signal.SIGKILL)
        _, status, used = os.wait4(child, 0)
    except (ProcessLookupError, ChildProcessError):
        return {"verdict": Verdicts.FAILED, "reason": "the program ended itself before its tests were done"}
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGXCPU or used.ru_utime + used.ru_stime >= cpu_s:
        return {"verdict": Verdicts.TIMEOUT, "reason": f"it took more than {cpu_s} s of processor time"}
    if code >= 0:
        reason = f"the program ended itself with status {code} before its tests were done"
        return {"verdict": Verdicts.FAILED, "reason": reason}
    reason = f"the program was ended by {signal.Signals(-code).name} before its tests were done"
    return {"verdict": Verdicts.ERROR, "reason": reason}
