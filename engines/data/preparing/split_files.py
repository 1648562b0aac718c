"""Write the rows of a spool into the files of their splits, and count what is in each."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from engines.data.documents import split_file
from engines.data.preparing.assign import SplitColumn
from engines.data.preparing.spool import BUFFER_BYTES, Facts, Spool
from engines.data.split import SPLITS
from engines.data.text import Report

_PARTS = ("prompt", "answer")


def write_splits(spool: Spool, split: SplitColumn, out: Path, report: Report) -> dict[str, dict[str, Any]]:
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
        splits = (index for chunk in split for index in chunk.tolist())
        done = 0
        for block in spool.blocks():
            of_block = list(islice(splits, len(block)))
            for index, (target, digest) in enumerate(zip(targets, digests, strict=True)):
                lines = b"".join(line for line, its_split in zip(block, of_block, strict=True) if its_split == index)
                target.write(lines)
                digest.update(lines)
                sizes[index] += len(lines)
            done += len(block)
            report(done, len(spool), "rows")
    report(len(spool), len(spool), "rows")
    categories = _categories(spool, split)
    return {
        name: {
            "examples": split.rows[index],
            "bytes": sizes[index],
            "sha256": digests[index].hexdigest(),
            "categories": categories[index],
        }
        for index, name in enumerate(SPLITS)
    }


def _categories(spool: Spool, split: SplitColumn) -> list[dict[str, dict[str, float]]]:
    """Of each split and category: rows, turns, and the mean and the largest number of characters of prompt and
    answers."""
    counts = [_Counts(len(spool.category_names)) for _ in SPLITS]
    for (_, facts), splits in zip(spool.facts(), split, strict=True):
        for index, found in enumerate(counts):
            found.add(facts[splits == index])
    return [found.by_name(spool.category_names) for found in counts]


class _Counts:
    """What is counted of the rows of one split, by category."""

    def __init__(self, categories: int) -> None:
        self._examples, self._turns = (np.zeros(categories, dtype=np.int64) for _ in range(2))
        self._total = {part: np.zeros(categories) for part in _PARTS}
        self._largest = {part: np.zeros(categories, dtype=np.uint32) for part in _PARTS}

    def add(self, facts: Facts) -> None:
        category, count = facts["category"], len(self._examples)
        self._examples += np.bincount(category, minlength=count)
        self._turns += np.bincount(category, facts["turns"], minlength=count).astype(np.int64)
        for part in _PARTS:
            characters = facts[f"{part}_characters"]
            self._total[part] += np.bincount(category, characters, minlength=count)
            np.maximum.at(self._largest[part], category, characters)

    def by_name(self, names: list[str]) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for index, name in enumerate(names):
            if not (examples := int(self._examples[index])):
                continue
            found[name] = {"examples": examples, "turns": int(self._turns[index])}
            for part in _PARTS:
                found[name][f"{part}_characters_mean"] = round(float(self._total[part][index] / examples), 1)
                found[name][f"{part}_characters_max"] = int(self._largest[part][index])
        return dict(sorted(found.items()))
