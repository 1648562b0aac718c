"""Values between the process of a program and the process of its tests: plain data as copies, other objects as handles.

What arrives is data of exactly the built-in types: no code of the other side decides how it compares.
"""

from __future__ import annotations

import datetime
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_DEPTH = 100
_SEQUENCES: Mapping[str, Callable[[Any], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}


class ValueProblem(Exception):  # noqa: N818 - a message of the protocol that cannot be used
    """A value that cannot be sent, or a message that is not a value."""


def encode(value: Any, export: Callable[[Any], list[Any]], depth: int = MOST_DEPTH) -> Any:
    """A value as JSON.

    Args:
        value: any object. Subclasses of plain types are sent as these.
        export: makes the handle of an object that is not plain.
        depth: levels of nesting that are left.

    Raises:
        ValueProblem: it is nested too deeply, as a list that contains itself is.
    """
    if value is None or value is True or value is False:
        return value
    if depth == 0:
        raise ValueProblem(f"a value is nested deeper than {MOST_DEPTH} levels")
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return ["int", int.__format__(int.__index__(value), "x")]
    if isinstance(value, float):
        return float.__float__(value)
    for name, kind in _SEQUENCES.items():
        if isinstance(value, kind):  # type: ignore[arg-type]
            return [name, [encode(one, export, depth - 1) for one in kind.__iter__(value)]]  # type: ignore[attr-defined]
    if isinstance(value, dict):
        pairs = [[encode(key, export, depth - 1), encode(one, export, depth - 1)] for key, one in dict.items(value)]
        return ["dict", pairs]
    return _rare(value) or export(value)


def _rare(value: Any) -> list[Any] | None:
    kind = type(value)
    if kind in (bytes, bytearray):
        return [kind.__name__, value.hex()]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind is range:
        return ["range", *(format(one, "x") for one in (value.start, value.stop, value.step))]
    if kind is Decimal:
        return ["decimal", str(value)]
    if kind is Fraction:
        return ["fraction", format(value.numerator, "x"), format(value.denominator, "x")]
    if kind in (datetime.datetime, datetime.date, datetime.time):
        return [kind.__name__, value.isoformat()]
    if kind is datetime.timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    return ["ellipsis"] if value is ... else None


def decode(given: Any, handle: Callable[[str, Any], Any]) -> Any:
    """The value that `encode` has sent.

    Args:
        given: parsed JSON.
        handle: makes the object of a handle: its kind and the rest of it.

    Raises:
        ValueProblem: it is not such a value.
    """
    if given is None or isinstance(given, bool | str | float | int):
        return given
    try:
        return _decode(given, handle)
    except (TypeError, ValueError, IndexError, KeyError, ArithmeticError) as error:
        raise ValueProblem("a message that is not a value") from error


def _decode(given: Any, handle: Callable[[str, Any], Any]) -> Any:
    kind = given[0]
    if kind in _SEQUENCES:
        return _SEQUENCES[kind](decode(one, handle) for one in given[1])
    if kind == "dict":
        return {decode(key, handle): decode(one, handle) for key, one in given[1]}
    return _MADE[kind](*given[1:]) if kind in _MADE else handle(kind, given[1:])


def _hexadecimal(text: str) -> int:
    return int(text, 16)


_MADE: Mapping[str, Callable[..., Any]] = {
    "int": _hexadecimal,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda real, imaginary: complex(float(real), float(imaginary)),
    "range": lambda start, stop, step: range(_hexadecimal(start), _hexadecimal(stop), _hexadecimal(step)),
    "decimal": lambda text: Decimal(str(text)),
    "fraction": lambda one, other: Fraction(_hexadecimal(one), _hexadecimal(other)),
    "datetime": datetime.datetime.fromisoformat,
    "date": datetime.date.fromisoformat,
    "time": datetime.time.fromisoformat,
    "timedelta": datetime.timedelta,
    "ellipsis": lambda: ...,
}


def restore(old: Any, new: Any) -> None:
    """Make a list, dictionary, set or bytearray that was given to a function what the function made of it."""
    kind = type(old)
    if kind is not type(new):
        return
    if kind in (list, bytearray):
        old[:] = new
    elif kind is deque:
        old.clear()
        old.extend(new)
    elif kind in (dict, set):
        old.clear()
        old.update(new)
