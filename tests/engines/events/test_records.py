from __future__ import annotations

import json
import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.events.attempts import AttemptEnded
from engines.events.event import Event
from engines.events.kinds import AnyEvent
from engines.events.machine import Device, MachineSampled
from engines.events.records import UnknownKindError, UnreadableRecordError, decode_record, encode_record
from engines.events.runs import RunStarted
from engines.events.steps import Step
from engines.events.writers import Gap, Warned
from engines.words import EndReason, StartReason
from tests.engines.event_strategies import EVENT_TYPES, HEADER, NONFINITE, events, same, structs

RECORD_START = b'{"v":1,"w":"'


def encoded(event: Event, seq: int = 0) -> bytes:
    return encode_record(event, writer="e0123456789", seq=seq, t=1_700_000_000.25, m=12.5)


def step(**fields: Any) -> Step:
    values: dict[str, Any] = {
        "stage": "base", "attempt": 1, "step": 1, "epoch": 0.1, "loss": 2.5, "learning_rate": 1e-4, "grad_norm": 1.0,
        "tokens": 512, "loss_tokens": 500, "step_s": 0.05,
    }  # fmt: skip
    return Step(**{**values, **fields})


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
def test_every_kind_is_read_back_unchanged_with_any_field_values(kind: type[Event]) -> None:
    @settings(max_examples=60)
    @given(structs(kind), st.integers(0, 2**53))
    def round_trip(event: AnyEvent, seq: int) -> None:
        line = encoded(event, seq)
        assert line.startswith(RECORD_START), "readers search bad lines for this"
        assert line.index(b"\n") == len(line) - 1, "one line: its newline is its end"
        back = decode_record(line[:-1])
        assert same(back, event)
        assert (back.v, back.w, back.seq, back.t, back.m) == (1, "e0123456789", seq, 1_700_000_000.25, 12.5)

    round_trip()


@settings(max_examples=200)
@given(events)
def test_a_line_is_strict_json_that_other_programs_read(event: AnyEvent) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    value = json.loads(encoded(event), parse_constant=refuse)
    assert value["k"]


def with_word(kind: type[Any], word: str) -> Any:
    """An instance with the word in each field that may contain a text, and its number in each that has numbers."""
    values = {
        field.name: value_with_word(msgspec.inspect.type_info(field.type), word)
        for field in msgspec.structs.fields(kind)
        if not (issubclass(kind, Event) and field.name in HEADER)
    }
    return kind(**values)


def value_with_word(info: Any, word: str) -> Any:
    match info:
        case msgspec.inspect.ListType():
            return [value_with_word(info.item_type, word)] * 2
        case msgspec.inspect.DictType():
            return {word: value_with_word(info.value_type, word), "x": value_with_word(info.value_type, word)}
        case msgspec.inspect.StructType():
            return with_word(info.cls, word)
        case msgspec.inspect.EnumType():
            return info.cls(word)
        case msgspec.inspect.UnionType():
            some = [one for one in info.types if not isinstance(one, msgspec.inspect.NoneType)]
            return value_with_word(some[0], word)
        case msgspec.inspect.StrType():
            return word
        case msgspec.inspect.FloatType():
            return float(word)
        case msgspec.inspect.BoolType():
            return True
        case _:
            return 7


@pytest.mark.parametrize("word", NONFINITE)
@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
def test_a_text_that_is_the_word_of_a_number_stays_a_text(kind: type[Event], word: str) -> None:
    event = with_word(kind, word)
    assert same(decode_record(encoded(event)[:-1]), event)


def test_null_and_nan_are_different() -> None:
    back = decode_record(encoded(step(loss=math.nan, grad_norm=None, metrics={"a": None, "b": -math.inf}))[:-1])
    assert isinstance(back, Step)
    assert back.loss is not None
    assert math.isnan(back.loss)
    assert back.grad_norm is None
    assert back.metrics == {"a": None, "b": -math.inf}


def test_undecodable_bytes_of_a_file_name_are_escaped() -> None:
    event = AttemptEnded(stage="s", attempt=1, reason=EndReason.ERROR, detail="no file caf\udce9.txt")
    back = decode_record(encoded(event)[:-1])
    assert isinstance(back, AttemptEnded)
    assert back.detail == "no file caf\\udce9.txt"
    nan = decode_record(encoded(step(loss=math.nan, metrics={"\udcff": math.nan}))[:-1])
    assert isinstance(nan, Step)
    assert list(nan.metrics) == ["\\udcff"]


def test_a_field_with_its_default_value_is_not_written() -> None:
    assert b"metrics" not in encoded(step())
    assert b"stage" not in encoded(Warned(message="m"))


def test_a_field_that_this_version_does_not_know_is_skipped() -> None:
    line = encoded(Gap(lost=3))[:-2] + b',"colour":"red","nested":{"a":[1,null]}}'
    assert same(decode_record(line), Gap(lost=3))


def test_an_unknown_kind_is_distinguished_from_damage() -> None:
    line = encoded(Gap(lost=3))[:-1].replace(b'"gap"', b'"gap_of_2031"')
    with pytest.raises(UnknownKindError):
        decode_record(line)


def test_the_known_fields_of_a_later_version_s_record_are_read() -> None:
    line = encoded(Gap(lost=3))[:-1].replace(b'{"v":1,', b'{"v":2,')
    back = decode_record(line)
    assert (back.v, back.seq) == (2, 0)
    assert same(back, Gap(lost=3))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"null",
        b"[]",
        b"7",
        b'"text"',
        b"{}",
        b"NaN",
        b'{"k":"gap","lost":1}',
        b'{"v":1,"w":"","seq":0,"t":0,"m":0,"k":"gap","lost":1}',
        b'{"v":1,"w":"e","seq":-1,"t":0,"m":0,"k":"gap","lost":1}',
        b'{"v":1,"w":"e","seq":"NaN","t":0,"m":0,"k":"gap","lost":1}',
        b'{"v":1,"w":"e","seq":0,"t":0,"m":0,"k":"gap","lost":NaN}',
        b'{"v":1,"w":"e","seq":0,"t":0,"m":0,"k":["gap"],"lost":1}',
        b'{"v":1,"w":"e","seq":0,"t":0,"m":0,"k":{},"lost":1}',
        b'{"v":1,"w":"e","seq":0,"t":1e999,"m":0,"k":"gap","lost":1}',
        b'{"v":1,"w":"e","seq":0,"t":1e300,"m":0,"k":"gap","lost":1}',
        b'{"v":1,"w":"e","seq":0,"t":0,"m":-1e300,"k":"gap","lost":1}',
        b'{"v":1,"w":"e","seq":0,"t":0,"m":0,"k":"warned","message":"\\ud800"}',
        b'{"v":1,"w":"e","seq":0,"t":0,"m":0,"k":"warned","message":"\xff\xfe"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"v":1,"w":"e","seq":0,"t":0,"m":0,"k":"gap","lost":' + b"9" * 50_000 + b"}",
        b'{"v":1,"w":"e","seq":' + b"9" * 5_000 + b',"t":0,"m":0,"k":"gap","lost":1}',
        b'{"v":1,"w":"e","seq":0,"t":0,"m":0,"k":"step","metrics":' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}",
    ],
)
def test_a_line_that_is_not_a_record_raises_one_error_class(line: bytes) -> None:
    with pytest.raises(UnreadableRecordError):
        decode_record(line)


def test_fuzzed_records_raise_nothing_but_the_reader_s_own_error() -> None:
    draw = random.Random(20261120)
    seeds = [
        encoded(step(loss=math.nan, metrics={"a": 1.5, "b": None})),
        encoded(Warned(message="Grüße 💥 \0 \x1b[2J", stage="NaN")),
        encoded(RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["a", "b"], kinds=["fake", "fake"])),
        encoded(
            MachineSampled(
                host="h", cpu_percent=1.5, ram_total_bytes=1, ram_available_bytes=None, engine_rss_bytes=3,
                unified=True, devices=[Device(id=0, name="GB10", power_w=math.nan)],
            )
        ),
    ]  # fmt: skip
    pieces = [
        b"NaN",
        b"null",
        b"[" * 50,
        b'"',
        b"\\ud800",
        b"1e999",
        b"-",
        b"\0",
        b"\xff",
        b"{",
        b"}",
        b"9" * 30,
        RECORD_START,
    ]
    readable = unreadable = 0
    for _ in range(60_000):
        line = bytearray(draw.choice(seeds))
        for _ in range(draw.choice([1, 1, 2, 5])):
            at = draw.randrange(len(line))
            match draw.randrange(5):
                case 0:
                    line[at] ^= 1 << draw.randrange(8)
                case 1:
                    line[at] = draw.randrange(256)
                case 2:
                    line[at:at] = draw.choice(pieces)
                case 3:
                    del line[at : at + draw.choice([1, 3, 40])]
                case _:
                    line += draw.choice(seeds)[draw.randrange(60) :]
            if not line:
                break
        try:
            decode_record(bytes(line))
            readable += 1
        except UnreadableRecordError:
            unreadable += 1
    assert readable > 1000
    assert unreadable > 1000
