"""What every event of a journal is: a struct with the header of its record."""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="k", omit_defaults=True):
    """One fact. Reading a record fills in the five header fields; a writer does not set them."""

    v: int = 0
    w: str = ""
    seq: int = -1
    t: float = 0.0
    m: float = 0.0


def kind_of(event: Event) -> str:
    """The event's kind on the wire."""
    return str(type(event).__struct_config__.tag)
