"""The registry of data formats: each entry reads its own format, and no row is of two."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from engines.data.door import DataSource, read_conversations
from engines.data.readers.formats import CONTAINERS, MAPPED, SHAPES, Shape, shape_of
from engines.data.readers.reading import Reading
from engines.data.readers.row import problem_of
from engines.inputs.data_place import SUFFIXES
from recipes.problems import OperatorError
from recipes.stages.data_fields import DataFields
from recipes.stages.finetune import FinetuneStage

READERS = Path(__file__).resolve().parents[3] / "engines" / "data" / "readers"
SHARED = {"__init__", "bad_row", "formats", "json_stream", "json_values", "lines", "reading", "row", "turns"}
"""Modules of the room that no format has for itself."""


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_example_that_an_error_shows_is_a_row_of_its_shape(shape: Shape) -> None:
    value = msgspec.json.decode(shape.example)
    assert shape_of(value) is shape
    assert problem_of(shape.row(value, Reading())) == ""
    assert value.keys() <= shape.keys


def test_a_row_that_cockpit_writes_is_read_back_as_it_was() -> None:
    for shape in SHAPES:
        row = shape.row(msgspec.json.decode(shape.example), Reading())
        written = msgspec.json.decode(msgspec.json.encode(row))
        again = shape_of(written)
        assert again is not None
        assert again.row(written, Reading()) == row


def test_no_shape_hides_another() -> None:
    """The shapes are tried in order, so no later one may have more marks than an earlier one needs."""
    for place, shape in enumerate(SHAPES):
        hidden = [later.name for later in SHAPES[place + 1 :] if shape.marks < later.marks]
        assert hidden == []


def test_the_recipe_knows_the_shapes_and_the_walk_knows_the_containers() -> None:
    spec = FinetuneStage.model_fields["format"].annotation
    assert {"auto", *(shape.name for shape in SHAPES)} == set(spec.__args__)
    assert {suffix for container in CONTAINERS for suffix in container.suffixes} == set(SUFFIXES)
    assert DataFields.model_fields["format"].default == "auto"


def test_every_file_of_the_readers_is_in_the_registry() -> None:
    """One file beside the registry and one entry in it: a file without an entry has no effect."""
    files = {path.stem for path in READERS.glob("*.py")} - SHARED
    entries = (*(c.values for c in CONTAINERS), *(s.row for s in (*SHAPES, MAPPED)))
    assert files == {entry.__module__.rpartition(".")[2] for entry in entries}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"messages": NaN}', "NaN is not a JSON number"),
        ("\x00", "not JSON"),
        ('"text"', "a row must be an object"),
        ("null", "a row must be an object"),
        ('{"messages": ' + "[" * 100_000, "nested too deeply"),
    ],
)
def test_a_line_that_is_not_a_row_is_named(tmp_path: Path, line: str, says: str) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n")
    with pytest.raises(OperatorError, match=r"train\.jsonl:1: ") as raised:
        next(read_conversations(DataSource(tmp_path), "train"))
    assert says in raised.value.message
