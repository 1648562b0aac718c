"""Rows that share most of their words are found, and exactly those: the similarity itself decides."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from engines.data.preparing.bands import PERMUTATIONS, RECALL, bands_of
from engines.data.preparing.near_duplicates import shingles_of
from engines.data.readers.row import Message, MessageRow, TextRow
from engines.data.split import SPLITS
from tests.engines.data.test_preparing import Made, given_splits, prepared, talk, write_lines

WORDS = [f"word{number}" for number in range(400)]


def texts(count: int = 60, seed: int = 0) -> list[str]:
    """Texts of forty words; each third has one to three words of the one before it changed."""
    rng = random.Random(seed)
    found: list[str] = []
    for number in range(count):
        words = rng.choices(WORDS, k=40)
        if number % 3 == 2:
            words = found[-1].split()
            for place in rng.sample(range(40), 1 + number % 2 * 2):
                words[place] = rng.choice(WORDS)
        found.append(" ".join(words))
    return found


def jaccard(one: str, other: str) -> float:
    first, second = shingles_of(TextRow(one)), shingles_of(TextRow(other))
    return len(first & second) / len(first | second)


def made(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Made:
    return prepared(write_lines(tmp_path / "d.jsonl", rows), tmp_path, **options)


def test_exactly_the_similar_rows_are_left_out(tmp_path: Path) -> None:
    every = texts()
    similar = {other for one, other in combinations(every, 2) if jaccard(one, other) >= 0.6}
    assert 5 < len(similar) < 20
    found = made(tmp_path, [{"text": one} for one in every], near_duplicates="drop", near_duplicate_similarity=0.6)
    kept = {row["text"] for split in SPLITS for row in found.rows[split]}
    assert kept == set(every) - similar
    assert found.metadata["duplicates"]["near"]["rows"] == len(similar)


def test_similar_rows_that_are_kept_are_in_one_split(tmp_path: Path) -> None:
    found = made(tmp_path, [{"text": one} for one in texts()], near_duplicates="keep", near_duplicate_similarity=0.6)
    assert sum(found.sizes) == 60
    parts = [[row["text"] for row in found.rows[split]] for split in SPLITS]
    for one, other in combinations(parts, 2):
        assert all(jaccard(a, b) < 0.6 for a in one for b in other)


def test_near_repeats_of_a_held_out_row_are_dropped_from_train(tmp_path: Path) -> None:
    long = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    folder = given_splits(
        tmp_path / "d",
        train=[talk(long.upper()), talk(long.upper()), talk("something else entirely, in other words")],
        test=[talk(long)],
    )
    found = prepared(folder, tmp_path, near_duplicates="drop")
    assert found.sizes == (1, 0, 1)
    near = found.metadata["duplicates"]["near"]
    assert (near["rows"], near["across_given_splits"]) == (2, 2)


def test_a_thousand_rows_of_one_form_are_compared_with_a_bounded_number_and_the_rest_is_counted(tmp_path: Path) -> None:
    rows = [
        {"text": f"{'the same beginning of every row ' * 3}{n} {n * 7} {n * 13} {n * 17} {n * 31}"} for n in range(90)
    ]
    found = made(tmp_path, rows, near_duplicates="keep", near_duplicate_similarity=0.95)
    assert found.metadata["duplicates"]["near"]["rows"] == 0
    assert found.metadata["duplicates"]["near"]["not_compared_with_all"] < 90


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.8, 0.9, 1.0])
def test_pairs_at_the_threshold_become_candidates(similarity: float) -> None:
    bands, rows = bands_of(similarity)
    assert bands * rows <= PERMUTATIONS
    assert 1 - (1 - similarity**rows) ** bands >= RECALL


def test_shingles_are_runs_of_five_words_without_system_turns() -> None:
    turns = [Message("system", "Ignored."), Message("user", "One two, three"), Message("assistant", "FOUR.")]
    assert shingles_of(MessageRow(turns)) == {"one two , three four", "two , three four ."}
    assert shingles_of(TextRow("Two words")) == {"two words"}
