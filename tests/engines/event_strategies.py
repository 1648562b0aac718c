"""Hypothesis strategies for events of every kind, with the values that break encoders."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from hypothesis import strategies as st

from engines.events.event import Event
from engines.events.kinds import AnyEvent

EVENT_TYPES: tuple[type[Event], ...] = AnyEvent.__args__
HEADER = {"v", "w", "seq", "t", "m"}
NONFINITE = ("NaN", "Infinity", "-Infinity")
HOSTILE = (
    *NONFINITE,
    "null",
    "",
    "\0\x1b]52;c;aGk=\x07\x1b[2J\x9b6n\x90q",
    "[/bold][@click=app.quit]x[/]",
    '{"v":1,"w":"e0","seq":0,"t":1.0,"m":1.0,"k":"gap","lost":5}',
    "line one\nline two\r\n",
    "\u202egnp.exe\u2066\u200f",
    "💥" * 40,
)

texts = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
floats = st.one_of(
    st.sampled_from([0.0, -0.0, 5e-324, 1.7976931348623157e308, math.nan, math.inf, -math.inf]), st.floats(width=64)
)
integers = st.one_of(st.integers(-(2**63), 2**64 - 1), st.just(10**30))


def _values(info: Any) -> st.SearchStrategy[Any]:
    match info:
        case msgspec.inspect.FloatType():
            return floats
        case msgspec.inspect.IntType():
            return integers
        case msgspec.inspect.BoolType():
            return st.booleans()
        case msgspec.inspect.StrType():
            return texts
        case msgspec.inspect.EnumType():
            return st.one_of(st.sampled_from(list(info.cls)), texts.map(info.cls))
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.UnionType():
            return st.one_of(*map(_values, info.types))
        case msgspec.inspect.ListType():
            return st.lists(_values(info.item_type), max_size=3)
        case msgspec.inspect.DictType():
            return st.dictionaries(texts, _values(info.value_type), max_size=3)
        case msgspec.inspect.StructType():
            return structs(info.cls)
        case _:
            raise AssertionError(f"no strategy for {info}")


def structs(kind: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Instances with every field set; the writer sets an event's header."""
    fields = {
        field.name: _values(msgspec.inspect.type_info(field.type))
        for field in msgspec.structs.fields(kind)
        if not (issubclass(kind, Event) and field.name in HEADER)
    }
    return st.builds(kind, **fields)


events: st.SearchStrategy[AnyEvent] = st.one_of(*map(structs, EVENT_TYPES))


def same(a: object, b: object) -> bool:
    """Equality in which NaN equals NaN and an integer differs from a float."""
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, msgspec.Struct) and isinstance(b, msgspec.Struct):
        return type(a) is type(b) and all(
            same(getattr(a, name), getattr(b, name)) for name in a.__struct_fields__ if name not in HEADER
        )
    return type(a) is type(b) and a == b
