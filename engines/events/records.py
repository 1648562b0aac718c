"""The form of an event on the wire: one line of a journal, written and read back."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from engines.events.event import Event
from engines.events.kinds import AnyEvent

MAX_RECORD_BYTES = 65_536
MAX_TIME_S = 253_402_300_799.0
"""The end of the year 9999. Seconds above it are damage, and so large ones have no room for a second more."""
_NONFINITE = {"NaN", "Infinity", "-Infinity"}

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)
_raw_decoder = msgspec.json.Decoder()
_KINDS = frozenset(t.__struct_config__.tag for t in AnyEvent.__args__)


class UnreadableRecordError(ValueError):
    """A line that is not a record (torn, or not JSON, or with fields of the wrong type)."""


class UnknownKindError(UnreadableRecordError):
    """A well-formed record of an unknown kind: readers skip and count it."""


def encode_record(event: Event, *, writer: str, seq: int, t: float, m: float) -> bytes:
    """One complete line, newline included. `t` is Unix seconds, `m` monotonic seconds."""
    try:
        body = _encoder.encode(event)
    except UnicodeEncodeError:
        body = _encoder.encode(_name_nonfinite(_without_surrogates(msgspec.to_builtins(event))))
    if b"null" in body:  # None and non-finite floats become null: distinguish them on this rare path
        body = _encoder.encode(_name_nonfinite(_without_surrogates(msgspec.to_builtins(event))))
    head = b'{"v":1,"w":"%s","seq":%d,"t":%.6f,"m":%.6f,' % (writer.encode(), seq, t, m)
    return head + body[1:] + b"\n"


def decode_record(line: bytes) -> AnyEvent:
    """The event of one line.

    Raises:
        UnknownKindError: the record has an unknown kind.
        UnreadableRecordError: the line is not a record.
    """
    try:
        event = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        event = _decode_slowly(line)
    if event.seq < 0 or not event.w:
        raise UnreadableRecordError("the record has no writer or no sequence number")
    if not (abs(event.t) <= MAX_TIME_S and abs(event.m) <= MAX_TIME_S):
        raise UnreadableRecordError("the record has a time that no clock shows")
    return event


def _decode_slowly(line: bytes) -> AnyEvent:
    try:
        raw = _raw_decoder.decode(line)
        if isinstance(raw, dict) and raw.get("k") not in _KINDS and "seq" in raw and "w" in raw:
            raise UnknownKindError(f"kind {raw.get('k')!r}")
        floats = _FLOATS.get(str(raw.get("k"))) if isinstance(raw, dict) else None
        return msgspec.convert(_number_nonfinite(raw, floats), AnyEvent)
    except UnknownKindError:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, ValueError, TypeError) as error:
        raise UnreadableRecordError(str(error)) from error


def _name_nonfinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _name_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_name_nonfinite(item) for item in value]
    return value


def _float_fields(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Fields that may contain a float, for `_number_nonfinite`: in any other field the word "NaN" is text."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        kind = _float_kind(msgspec.inspect.type_info(field.type))
        if kind is not None:
            found[field.encode_name] = kind
    return found


def _float_kind(info: Any) -> Any:
    """True for a float, a dict for a struct, ("dict" | "list", kind) for a container of them; None where no float is
    allowed."""
    match info:
        case msgspec.inspect.FloatType():
            return True
        case msgspec.inspect.UnionType():
            return next((kind for kind in map(_float_kind, info.types) if kind is not None), None)
        case msgspec.inspect.StructType():
            return _float_fields(info.cls) or None
        case msgspec.inspect.DictType():
            inner = _float_kind(info.value_type)
            return None if inner is None else ("dict", inner)
        case msgspec.inspect.ListType():
            inner = _float_kind(info.item_type)
            return None if inner is None else ("list", inner)
        case _:
            return None


_FLOATS = {str(struct.__struct_config__.tag): _float_fields(struct) for struct in AnyEvent.__args__}


def _number_nonfinite(value: Any, kind: Any) -> Any:
    """Turn the words for non-finite numbers into numbers, where the event has numbers."""
    if kind is True:
        return float(value) if isinstance(value, str) and value in _NONFINITE else value
    if isinstance(kind, dict) and isinstance(value, dict):
        return {key: _number_nonfinite(item, kind[key]) if key in kind else item for key, item in value.items()}
    if isinstance(kind, tuple) and kind[0] == "dict" and isinstance(value, dict):
        return {key: _number_nonfinite(item, kind[1]) for key, item in value.items()}
    if isinstance(kind, tuple) and kind[0] == "list" and isinstance(value, list):
        return [_number_nonfinite(item, kind[1]) for item in value]
    return value


def _without_surrogates(value: Any) -> Any:
    r"""Undecodable bytes in file names become lone surrogates, which JSON text cannot contain: write `\udcff`."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value
