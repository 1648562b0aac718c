"""What becomes of one row of data: ids with labels, or the reason why it is refused; and the counts of both."""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from recipes.stages.label_fields import LABEL_METRICS

IGNORED = -100
"""Label of a position that the loss does not count (torch's own convention)."""

TrainOn = Literal["answers", "last-answer", "all"]
Truncation = Literal["error", "drop", "left", "answer"]
PieceKind = Literal["template", "content", "scored"]


@dataclass(frozen=True)
class LabelRules:
    """How rows become ids and labels.

    Attributes:
        max_length: tokens of the longest row.
        train_on: what the loss counts: every answer, the last one, or every token.
        truncation: what becomes of a longer row: refused, left out and counted, cut at its beginning, or cut at the end
            of its last answer.
        template: the text of the chat template; empty for the one of the tokenizer.
        fold_system: put the text of a system turn before the first user turn.
        train_on_template: count what the template adds inside an answer too, such as an empty think block.
        moment: the local time whose date a template writes that asks for the present one, in ISO form: the stage's
            first start; empty for the time at which the labelling begins.
    """

    max_length: int
    train_on: TrainOn = "answers"
    truncation: Truncation = "drop"
    template: str = ""
    fold_system: bool = False
    train_on_template: bool = False
    moment: str = ""


class Piece(msgspec.Struct, frozen=True):
    """A part of a row's text: characters from `start` up to `end`."""

    start: int
    end: int
    kind: PieceKind


@dataclass(frozen=True)
class LabelledRow:
    """One example, as the engine trains on it and as a screen draws it.

    Attributes:
        where: file and line, or file and row.
        text: the whole conversation as the chat template renders it.
        ids: token ids, at most `max_length` of them.
        labels: the ids at positions that the loss counts, `IGNORED` elsewhere; as long as `ids`.
        ends: for each id, where its text ends in `text`, in characters; empty if not requested.
        pieces: the parts of `text`, in order and without gaps.
        cut: tokens that were cut off.
        from_left: they were cut off at the beginning.
    """

    where: str
    text: str
    ids: array[int]
    labels: array[int]
    ends: array[int]
    pieces: tuple[Piece, ...]
    cut: int = 0
    from_left: bool = False

    @property
    def scored(self) -> int:
        """Number of tokens that the loss counts; the first token has no context and does not count."""
        return scored_tokens(self.labels)


@dataclass(frozen=True)
class RefusedRow:
    """A row that cannot become labels: where it is, why, and what the operator can do."""

    where: str
    reason: str
    way_out: str


@dataclass(frozen=True)
class DroppedRow:
    """A row that is left out because of its length: it has `tokens` tokens."""

    where: str
    tokens: int


@dataclass
class LabelCounts:
    """Counts of rows: every row that is cut or left out is counted.

    Attributes:
        rows: rows that were given.
        examples: examples that they became; a long text becomes several.
        truncated_rows: rows that were cut and kept.
        dropped_rows: rows that were left out: too long, or without any scored token within `max_length`.
        refused_rows: rows that cannot become labels.
        tokens: ids of all examples.
        scored_tokens: tokens that the loss counts.
        longest: tokens of the longest row before it was cut.
        notes: facts about the template that the operator should know, each with its number of rows.
    """

    rows: int = 0
    examples: int = 0
    truncated_rows: int = 0
    dropped_rows: int = 0
    refused_rows: int = 0
    tokens: int = 0
    scored_tokens: int = 0
    longest: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def metrics(self) -> dict[str, int]:
        """The counts by name, for gates and reports."""
        return {name: getattr(self, name) for name in LABEL_METRICS}


def scored_tokens(labels: array[int]) -> int:
    """Number of labels that the loss counts; the first token has no context."""
    return len(labels) - labels.count(IGNORED) - (len(labels) > 0 and labels[0] != IGNORED)
