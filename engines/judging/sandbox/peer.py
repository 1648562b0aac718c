"""One end of the line between a program and its tests: asks the other end, and serves it meanwhile."""

from __future__ import annotations

import builtins
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

from engines.judging.sandbox.values import ValueProblem, decode, encode, restore

_LENGTH = struct.Struct("<I")
ANSWER_FILE = "<answer>"
"""The name of a program's text in its tracebacks."""
MOST_BYTES = 32 * 1024 * 1024
_MOST_HANDLES = 100_000


Allowed = Callable[[str, Any, Any], bool]


class Ended(BaseException):
    """The other end is gone. No `except Exception` of a test may take it for the program's own exception."""


class Peer:
    """One end.

    Attributes:
        ended: the other end was gone once.
    """

    def __init__(self, line: socket.socket, allowed: Allowed, remote: Any) -> None:
        """An end of a line.

        Args:
            line: a stream socket.
            allowed: whether the other end may do something (`call`, `get`, `set`, `do`) to an object of this end, with
                an argument.
            remote: the class of objects that stand for those of the other end.
        """
        self.ended = False
        self._line, self._allowed, self._remote = line, allowed, remote
        self._exports: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}
        self._exceptions: dict[tuple[str, str], type[BaseException]] = {}

    def ask(self, what: str, number: int, *arguments: Any, **named: Any) -> Any:
        """Let the other end do something to its object, and return the result or raise its exception.

        Lists, dictionaries and sets among the arguments are afterwards what the other end made of them.

        Raises:
            Ended: it is gone, or what it sent cannot be used.
        """
        given = encode([list(arguments), named], self._export)
        self._send({"ask": what, "object": number, "given": given})
        while True:
            message = self._receive()
            if "ask" in message:
                self._serve(message)
                continue
            if "after" in message:
                after = self._decoded(message["after"])
                for old, new in zip([*arguments, *named.values()], after, strict=False):
                    restore(old, new)
            if "raise" in message:
                raise self._exception(message)
            return self._decoded(message.get("value"))

    def serve(self) -> None:
        """Serve the other end until it is gone."""
        while True:
            self._serve(self._receive())

    def exception_class(self, name: str, base: str) -> type[BaseException]:
        """The class of this end for an exception class of the other one: a new one under the built-in `base`, or the
        built-in itself if the name is its."""
        found = getattr(builtins, base, None)
        if not isinstance(found, type) or not issubclass(found, BaseException):
            found = Exception
        if name == found.__name__:
            return found
        return self._exceptions.setdefault((name, base), type(name, (found,), {}))

    def _serve(self, message: dict[str, Any]) -> None:
        before: Any = message.get("given")
        try:
            what, target = message["ask"], self._exports[message["object"]]
            arguments, named = self._decoded(before)
            if not self._allowed(what, target, arguments[0] if arguments else None):
                raise TypeError(f"the tests' objects cannot be used so: {what}")
            value = act(what, target, arguments, named)
            answer = {"value": encode(value, self._export)}
            after = encode([*arguments, *named.values()], self._export)
            if after[1] != [*before[1][0][1], *(pair[1] for pair in before[1][1][1])]:
                answer["after"] = after
        except Ended:
            raise
        except BaseException as error:  # noqa: BLE001 - the other end raises it
            answer = _raised(error)
        self._send(answer)

    def _exception(self, message: dict[str, Any]) -> BaseException:
        name, base, texts = message["raise"]
        made = self.exception_class(str(name)[:200], str(base))
        try:
            error = made(*self._decoded(texts))
        except Exception:  # noqa: BLE001 - a class with another signature, such as UnicodeDecodeError
            error = RuntimeError(f"{name}: {texts}"[:500])
        error.__dict__.update(of_program=True, program_line=message.get("line"))
        return error

    def _export(self, value: Any) -> list[Any]:
        own = self._remote.number_of(value, self)
        if own is not None:
            return ["yours", own]
        number = self._numbers.get(id(value))
        if number is None:
            number = len(self._exports)
            if number >= _MOST_HANDLES:
                raise ValueProblem(f"more than {_MOST_HANDLES} objects")
            self._exports[number] = value
            self._numbers[id(value)] = number
        return ["mine", number]

    def export_first(self, value: Any) -> None:
        """Make an object number 0 of this end."""
        self._export(value)

    def _decoded(self, given: Any) -> Any:
        return decode(given, self._handle)

    def _handle(self, kind: str, rest: list[Any]) -> Any:
        if kind == "yours":
            return self._exports[rest[0]]
        if kind == "mine" and isinstance(rest[0], int):
            return self._remote(self, rest[0])
        raise ValueProblem("a message that is not a value")

    def _send(self, message: dict[str, Any]) -> None:
        data = json.dumps(message).encode()
        if len(data) > MOST_BYTES:
            raise MemoryError(f"a value has more than {MOST_BYTES} bytes")
        try:
            self._line.sendall(_LENGTH.pack(len(data)) + data)
        except OSError as error:
            self.ended = True
            raise Ended from error

    def _receive(self) -> dict[str, Any]:
        try:
            (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
            if length > MOST_BYTES:
                raise Ended
            message = json.loads(self._exactly(length))
            if not isinstance(message, dict):
                raise Ended
        except (OSError, ValueError, RecursionError, Ended) as error:
            self.ended = True
            raise Ended from error
        return message

    def _exactly(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            part = self._line.recv(min(count - len(parts), 1 << 20))
            if not part:
                raise Ended
            parts += part
        return bytes(parts)


def _raised(error: BaseException) -> dict[str, Any]:
    kind = type(error)
    base = next(one for one in kind.__mro__ if one.__module__ == "builtins")
    plain = [one for one in error.args if isinstance(one, str | int | float | None)]
    try:
        texts = encode(plain, lambda _one: ["ellipsis"])
    except Exception:  # noqa: BLE001 - the exception is the program's
        texts = ["list", []]
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == ANSWER_FILE else line
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename == ANSWER_FILE:
        line, texts = error.lineno or 0, ["list", [error.msg]]
    return {"raise": [kind.__name__, base.__name__, texts], "line": line}


def act(what: str, target: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
    """Do something to an object.

    Raises:
        BaseException: whatever it raises.
    """
    if what == "call":
        return target(*arguments, **named)
    if what == "get":
        return getattr(target, arguments[0])
    if what == "set":
        return setattr(target, arguments[0], arguments[1])
    return _ACTS[arguments[0]](target, *arguments[1:])


_ACTS: dict[str, Callable[..., Any]] = {
    "iter": iter,
    "next": next,
    "len": len,
    "str": str,
    "repr": repr,
    "hash": hash,
    "bool": bool,
    "item": lambda target, key: target[key],
    "setitem": lambda target, key, value: target.__setitem__(key, value),
    "delitem": lambda target, key: target.__delitem__(key),
    "equal": lambda target, other: bool(target == other),
    "less": lambda target, other: bool(target < other),
    "isinstance": lambda target, other: isinstance(other, target),
    "enter": lambda target: target.__enter__(),
    "exit": lambda target: target.__exit__(None, None, None),
}
