"""Pairs of answers as ids and labels: both answers of a preference, each proven as any other row, over one prompt.

Both answers are labelled by `label_rows`; the answers inside the prompt have weight 0, so the loss counts only what
differs between the two.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import msgspec

from engines.chat.rendering import Waiting
from engines.data.door import Located
from engines.data.readers.row import Message, MessageRow, PreferenceRow
from engines.labels.label import Outcome, label_rows
from engines.labels.row import IGNORED, DroppedRow, LabelCounts, LabelledRow, LabelRules, RefusedRow
from engines.labels.vocabulary import TokenizerView

NAMES = ("chosen", "rejected")
_NO_PAIR = (
    "the row has one answer, and this training compares two",
    'give rows with prompt, chosen and rejected, or train on it with kind = "finetune"',
)


@dataclass(frozen=True)
class LabelledPair:
    """Two answers to one prompt, each as an example of its own."""

    where: str
    chosen: LabelledRow
    rejected: LabelledRow

    @property
    def both(self) -> tuple[LabelledRow, LabelledRow]:
        """The preferred answer, then the other."""
        return self.chosen, self.rejected

    @property
    def tokens(self) -> int:
        """Tokens of both."""
        return len(self.chosen.ids) + len(self.rejected.ids)

    @property
    def scored(self) -> int:
        """Tokens of both answers that the loss counts."""
        return self.chosen.scored + self.rejected.scored


PairOutcome = LabelledPair | RefusedRow | DroppedRow


def label_pairs(
    rows: Iterable[Located],
    view: TokenizerView,
    rules: LabelRules,
    counts: LabelCounts,
    *,
    places: bool = True,
    ahead: bool = False,
    waiting: Waiting | None = None,
) -> Iterator[PairOutcome]:
    """Each row as a pair, or why it is refused, in the order of the rows; the memory used does not grow.

    A pair counts as one row and one example, with the tokens of both answers; it is left out if either answer is too
    long, or has no token that the loss counts.

    Args:
        rows: the rows; one without two answers is refused.
        view: the model's tokenizer.
        rules: how they are labelled.
        counts: takes the counts.
        places: as for `label_rows`.
        ahead: as for `label_rows`.
        waiting: as for `label_rows`.

    Raises:
        OperatorError: as `label_rows`.
    """
    pending: deque[Located] = deque()
    inner = LabelCounts()

    def halves() -> Iterator[Located]:
        for one in rows:
            pending.append(one)
            if isinstance(one.row, PreferenceRow):
                yield Located(one.where, answered(one.row, one.row.chosen))
                yield Located(one.where, answered(one.row, one.row.rejected))

    outcomes = label_rows(halves(), view, rules, inner, places=places, ahead=ahead, waiting=waiting)
    for chosen in outcomes:
        rejected = next(outcomes)
        yield from _counted(_without_pair(pending), counts)
        yield from _counted([_paired(pending.popleft().where, chosen, rejected, rules)], counts)
        counts.notes.update(dict.fromkeys(inner.notes, 1))
        inner.notes.clear()
    yield from _counted(_without_pair(pending), counts)


def answered(row: PreferenceRow, answer: Sequence[Message]) -> MessageRow:
    """The conversation with one of the answers; what the assistant says in the prompt is not scored."""
    asked = [msgspec.structs.replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in row.prompt]
    return MessageRow([*asked, *answer], row.tools)


def _without_pair(pending: deque[Located]) -> Iterator[RefusedRow]:
    """The rows before the next pair."""
    while pending and not isinstance(pending[0].row, PreferenceRow):
        yield RefusedRow(pending.popleft().where, *_NO_PAIR)


def _paired(where: str, chosen: Outcome, rejected: Outcome, rules: LabelRules) -> PairOutcome:
    for name, one in zip(NAMES, (chosen, rejected), strict=True):
        if isinstance(one, RefusedRow):
            return replace(one, reason=f"{name}: {one.reason}")
    if isinstance(chosen, LabelledRow) and isinstance(rejected, LabelledRow):
        return _compared(where, chosen, rejected, rules)
    return DroppedRow(where, max(_length(one) for one in (chosen, rejected)))


def _length(one: Outcome) -> int:
    if isinstance(one, DroppedRow):
        return one.tokens
    return len(one.ids) + one.cut if isinstance(one, LabelledRow) else 0


def _compared(where: str, chosen: LabelledRow, rejected: LabelledRow, rules: LabelRules) -> PairOutcome:
    """The pair, if both answers follow the same prompt and differ in what the loss counts."""
    first, second = _prompt(chosen), _prompt(rejected)
    if first != second:
        return RefusedRow(
            where,
            "the chat template renders the prompt differently before the two answers, so they cannot be compared",
            'set chat_template to another template, such as "chatml"',
        )
    if chosen.ids == rejected.ids:
        return RefusedRow(
            where,
            f"chosen and rejected have the same tokens within max_length ({rules.max_length})",
            'raise max_length, or set truncation = "drop"',
        )
    return LabelledPair(where, chosen, rejected)


def _prompt(row: LabelledRow) -> array[int]:
    """The ids before the first one that the loss counts."""
    return row.ids[: next(at for at, label in enumerate(row.labels) if label != IGNORED)]


def _counted(found: Iterable[PairOutcome], counts: LabelCounts) -> Iterator[PairOutcome]:
    for one in found:
        counts.rows += 1
        if isinstance(one, RefusedRow):
            counts.refused_rows += 1
        elif isinstance(one, DroppedRow):
            counts.dropped_rows += 1
            counts.longest = max(counts.longest, one.tokens)
        else:
            counts.examples += 1
            counts.truncated_rows += any(half.cut for half in one.both)
            counts.tokens += one.tokens
            counts.scored_tokens += one.scored
            counts.longest = max(counts.longest, *(len(half.ids) + half.cut for half in one.both))
        yield one
