"""Conversations as rows, and their labels as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.data.door import Located
from engines.data.readers.row import Message, MessageRow
from engines.labels.label import Outcome, label_rows
from engines.labels.row import IGNORED, LabelCounts, LabelledRow, LabelRules
from engines.labels.vocabulary import TokenizerView, view_of
from engines.look.rows import spans_of

Turns = list[dict[str, Any]]


def placed(talks: Sequence[Turns], tools: list[dict[str, Any]] | None = None) -> list[Located]:
    rows = [MessageRow([Message(**turn) for turn in talk], tools or []) for talk in talks]
    return [Located(f"train.jsonl:{number}", row) for number, row in enumerate(rows, start=1)]


def outcomes(
    talks: Sequence[Turns],
    view: TokenizerView,
    max_length: int = 4096,
    counts: LabelCounts | None = None,
    tools: list[dict[str, Any]] | None = None,
    **rules: Any,
) -> list[Outcome]:
    """What becomes of each conversation."""
    return list(
        label_rows(
            placed(talks, tools), view, LabelRules(max_length, **rules), LabelCounts() if counts is None else counts
        )
    )


def labelled(talk: Turns, tokenizer: Any, max_length: int = 4096, **rules: Any) -> LabelledRow:
    """The labels of one conversation by a transformers tokenizer or a view; fails if the row is refused or dropped."""
    view = view_of(tokenizer) if hasattr(tokenizer, "backend_tokenizer") else tokenizer
    found = outcomes([talk], view, max_length, **rules)[0]
    assert isinstance(found, LabelledRow), found
    return found


def drawn_wrong(row: LabelledRow) -> list[int]:
    """The tokens of a row that a screen draws otherwise than their labels say, by their number."""
    kinds: list[str] = []
    for end, kind in spans_of(row):
        kinds += [kind] * (end - len(kinds))
    assert len(kinds) == len(row.text)
    found, start = [], 0
    for number, (label, end) in enumerate(zip(row.labels, row.ends, strict=True)):
        if any((kind == "scored") != (label != IGNORED) for kind in kinds[start:end]):
            found.append(number)
        start = max(start, end)
    return found


def scored_texts(row: LabelledRow) -> list[str]:
    """The texts of each run of labels, from the places of its tokens in the row's text."""
    found: list[str] = []
    before = IGNORED
    for at, label in enumerate(row.labels):
        text = row.text[row.ends[at - 1] if at else 0 : row.ends[at]]
        if label == IGNORED:
            before = label
            continue
        assert label == row.ids[at]
        if before == IGNORED:
            found.append("")
        found[-1] += text
        before = label
    return found
