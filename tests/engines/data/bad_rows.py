"""The bad rows of a place, read to its end."""

from __future__ import annotations

from typing import NamedTuple

from engines.data.door import DataSource, ReadCounts, Refused, each_row
from recipes.problems import OperatorError


class Problems(NamedTuple):
    """Every bad row, and what was read. A file that cannot be read further is the last of them, without a place."""

    found: list[Refused]
    counts: ReadCounts


def problems_in(source: DataSource, split: str = "") -> Problems:
    counts = ReadCounts()
    found: list[Refused] = []
    try:
        found.extend(one for one in each_row(source, split, counts) if isinstance(one, Refused))
    except OperatorError as error:
        found.append(Refused("", error.message, "the file cannot be read further", error.hint))
    return Problems(found, counts)
