"""Journals that released versions wrote are read today: every record, with the state they ended in.

`released/<version>-run.jsonl` is the journal of a real run of that version; `<version>-kinds.jsonl` has one record of
each of its kinds, with every field set. They are never edited; a release adds its own.
"""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

import cockpit
from cockpit.headless.report import report_lines
from cockpit.runs.state import fold
from engines.events.event import kind_of
from engines.events.kinds import AnyEvent
from engines.events.records import decode_record
from engines.journal import JournalReader, read_journal

RELEASED = Path(__file__).parent / "released"
VERSIONS = sorted(path.name.removesuffix("-run.jsonl") for path in RELEASED.glob("*-run.jsonl"))


def test_the_present_release_has_its_journals() -> None:
    major_minor = ".".join(cockpit.__version__.split(".")[:2])
    assert major_minor in VERSIONS


@pytest.mark.parametrize("path", sorted(RELEASED.glob("*.jsonl")), ids=lambda path: path.name)
def test_every_record_of_a_release_is_read_with_every_field(path: Path) -> None:
    reader = JournalReader(path)
    records = reader.read(1 << 20) + reader.finish()
    lines = path.read_bytes().splitlines()
    assert [record.line for record in records] == lines
    assert (reader.bad, reader.unknown) == (0, 0)
    for line in lines:
        written, event = json.loads(line), decode_record(line)
        assert written["k"] == kind_of(event)
        known = set(event.__struct_fields__) | {"k"}
        assert set(written) <= known, "no field of a release was renamed or dropped"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_released_version_s_kinds_are_all_in_its_file(version: str) -> None:
    kinds = {kind_of(event) for event in read_journal(RELEASED / f"{version}-kinds.jsonl")}
    assert {kind_of(event) for event in read_journal(RELEASED / f"{version}-run.jsonl")} <= kinds
    today = {str(kind.__struct_config__.tag) for kind in AnyEvent.__args__}
    assert kinds <= today


def test_the_run_of_0_2_has_the_state_that_0_2_showed() -> None:
    state = fold(read_journal(RELEASED / "0.2-run.jsonl"))
    assert state.state == "succeeded"
    base, again = state.stages
    assert [(one.attempt, one.reason) for one in base.attempts] == [(1, "guard"), (2, "succeeded")]
    assert list(state.series("base", "loss").x) == list(range(1, 13))
    assert [(stage.name, stage.state) for stage in (base, again)] == [("base", "succeeded"), ("again", "succeeded")]
    assert [checkpoint.step for checkpoint in base.checkpoints] == [4, 12]
    assert state.missing == 0
    assert "succeeded" in "\n".join(report_lines(state))


def test_a_field_of_a_record_is_never_required_later() -> None:
    """A released record lacks what later versions added: each later field needs a default."""
    for line in (RELEASED / "0.2-kinds.jsonl").read_bytes().splitlines():
        event = decode_record(line)
        added = set(event.__struct_fields__) - set(json.loads(line))
        required = {field.name for field in msgspec.structs.fields(type(event)) if field.required}
        assert not added & required
