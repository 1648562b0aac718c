"""Write the rows of a spool into the files of their splits, and count what is in each."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engines.data.documents import split_file
from engines.data.preparing.spool import BUFFER_BYTES, Spool
from engines.data.split import SPLITS
from engines.data.text import Report

Splits = npt.NDArray[np.uint8]


def write_splits(spool: Spool, split: Splits, out: Path, report: Report) -> dict[str, dict[str, Any]]:
    """Write train.jsonl, val.jsonl and test.jsonl; rows keep their order.

    Args:
        spool: the rows.
        split: the index of each row's split; larger numbers are left out.
        out: an existing folder.
        report: called with rows done and in total; an exception from it ends the work.

    Returns:
        Of each split the number of examples, bytes, the file's SHA-256, and the statistics of its categories.
    """
    digests = [hashlib.sha256() for _ in SPLITS]
    sizes = [0] * len(SPLITS)
    with ExitStack() as files:
        targets = [files.enter_context(split_file(out, name).open("wb", buffering=BUFFER_BYTES)) for name in SPLITS]
        lines = files.enter_context(spool.lines())
        for number, (line, index) in enumerate(zip(lines, split.tobytes(), strict=True)):
            if index < len(SPLITS):
                targets[index].write(line)
                digests[index].update(line)
                sizes[index] += len(line)
            if not number & 1023:
                report(number, len(spool), "rows")
    report(len(spool), len(spool), "rows")
    return {
        name: {
            "examples": int(np.count_nonzero(split == index)),
            "bytes": sizes[index],
            "sha256": digests[index].hexdigest(),
            "categories": _categories(spool, split == index),
        }
        for index, name in enumerate(SPLITS)
    }


def _categories(spool: Spool, rows: npt.NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    """Of each category: rows, turns, and the mean and the largest number of characters of prompt and answers."""
    category = np.frombuffer(spool.categories, dtype=np.uint16)[rows]
    count = len(spool.category_names)
    examples = np.bincount(category, minlength=count)
    turns = np.bincount(category, _column(spool.turns, np.uint32, rows), minlength=count)
    found: dict[str, dict[str, float]] = {
        name: {"examples": int(examples[index]), "turns": int(turns[index])}
        for index, name in enumerate(spool.category_names)
        if examples[index]
    }
    for part, numbers in (("prompt", spool.prompt_characters), ("answer", spool.answer_characters)):
        characters = _column(numbers, np.uint32, rows)
        total = np.bincount(category, characters, minlength=count)
        largest = np.zeros(count, dtype=np.uint32)
        np.maximum.at(largest, category, characters)
        for index, name in enumerate(spool.category_names):
            if examples[index]:
                found[name][f"{part}_characters_mean"] = round(float(total[index] / examples[index]), 1)
                found[name][f"{part}_characters_max"] = int(largest[index])
    return dict(sorted(found.items()))


def _column(numbers: Any, dtype: Any, rows: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return np.frombuffer(numbers, dtype=dtype)[rows]
