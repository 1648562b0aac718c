"""The process in which the program of a model runs: it loads the program, and does what the tests ask of it."""

from __future__ import annotations

import os
import re
import socket
import sys
import types
from typing import Any

from engines.judging.sandbox.peer import ANSWER_FILE, Ended, Peer
from engines.judging.sandbox.remote import Remote

MODULE = "solution"
LOAD, NAMES = 0, 1
"""Numbers of the objects that the tests' process asks first."""
_STOPS = re.compile(r"\n(?:class|def|#|if|print|@|```)")
"""Where a continuation of a function has ended: the stop words of Chen et al. (2021), arXiv:2107.03374, with decorators
and fences."""


def run_program(line: socket.socket) -> None:
    """Serve the tests' process until it is gone."""
    module = types.ModuleType(MODULE)
    sys.modules[MODULE] = module

    def load(prompt: str, code: str, entry_point: str) -> None:
        exec(compile(compose(prompt, code, entry_point), ANSWER_FILE, "exec"), module.__dict__)  # noqa: S102 - confined

    def names(wanted: list[str]) -> dict[str, Any]:
        return {name: _described(name, module.__dict__[name]) for name in wanted if name in module.__dict__}

    os.register_at_fork(after_in_child=line.close)  # a copy of the program would answer a second time
    peer = Peer(line, lambda _what, _target, _argument: True, Remote)
    peer.export_first(load)
    peer.export_first(names)
    try:
        peer.serve()
    except Ended:
        return


def compose(prompt: str, code: str, entry_point: str) -> str:
    """The program's text: the prompt before an answer that continues it; before one that defines the function again,
    the prompt's imports and helpers.

    Args:
        prompt: Python that ends within a function; empty if the answer is a whole program.
        code: the answer's code.
        entry_point: the function that the prompt ends within.
    """
    if not prompt:
        return code
    if re.search(rf"^(?:async )?def {re.escape(entry_point)}\b", code, re.MULTILINE) and _parses(code):
        return f"{whole(prompt)}\n{code}"
    continued = prompt + code if code[:1].isspace() or prompt[-1:].isspace() else f"{prompt}\n{code}"
    if _parses(continued):
        return continued
    stop = _STOPS.search(code)
    cut = continued[: len(continued) - len(code) + stop.start()] if stop is not None else continued
    if _parses(cut):
        return cut
    indented = f"{prompt.rstrip()}\n" + "".join(f"    {line}\n" for line in code.split("\n"))
    return indented if _parses(indented) else continued


def whole(prompt: str) -> str:
    """A prompt that ends within a function, as code: a function without statements gets one."""
    return prompt if _parses(prompt) else f"{prompt.rstrip()}\n    pass\n"


def _parses(text: str) -> bool:
    try:
        compile(text, ANSWER_FILE, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _described(name: str, value: Any) -> list[Any]:
    """How the tests' process gets a name of the program: what the standard library has, it takes from there."""
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if isinstance(value, type) and issubclass(value, BaseException):
        base = next(one for one in value.__mro__ if one.__module__ == "builtins")
        return ["exception", value.__name__, base.__name__]
    home = getattr(value, "__module__", None)
    if isinstance(home, str) and home != MODULE and getattr(value, "__name__", None) == name:
        return ["from", home]
    return ["value", value]
