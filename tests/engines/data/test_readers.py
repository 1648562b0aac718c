"""The registry of data formats: each entry reads its own format, and no two match the same."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgspec
import pytest

from engines.data.readers.folder import read_messages
from engines.data.readers.formats import CONTAINERS, SHAPES, shape_of
from engines.data.readers.row import problem_of
from recipes.problems import OperatorError

READERS = Path(__file__).resolve().parents[3] / "engines" / "data" / "readers"
NOT_FORMATS = {"__init__", "folder", "formats", "row"}


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_the_example_that_an_error_shows_is_a_row_of_its_shape(shape: object) -> None:
    value = msgspec.json.decode(shape.example)  # type: ignore[attr-defined]
    assert shape_of(value) is shape
    assert problem_of(shape_of(value).row(value)) == ""


def test_no_row_has_two_shapes() -> None:
    assert all(shape.marks for shape in SHAPES)
    assert not any(a.marks & b.marks for a, b in itertools.combinations(SHAPES, 2))


def test_no_file_is_of_two_containers() -> None:
    suffixes = [container.suffix for container in CONTAINERS]
    assert len(set(suffixes)) == len(suffixes)
    assert all(suffix.startswith(".") for suffix in suffixes)


def test_every_file_of_the_readers_is_in_the_registry() -> None:
    """One file beside the registry and one entry in it: a file without an entry has no effect."""
    files = {path.stem for path in READERS.glob("*.py")} - NOT_FORMATS
    used = {
        entry.__module__.rpartition(".")[2] for entry in (*(c.values for c in CONTAINERS), *(s.row for s in SHAPES))
    }
    assert files == used


@pytest.mark.parametrize("line", ["[" * 100_000, '{"messages": NaN}', "\x00", '"text"', "null"])
def test_a_line_that_is_not_a_row_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "train.jsonl").write_text(line + "\n")
    with pytest.raises(OperatorError, match=r"train\.jsonl:1: not a row of messages"):
        next(read_messages(tmp_path, "train"))
