"""Rows of data as ids and labels, each proven: the loss counts an answer with its end token, and nothing else.

Every consumer uses these functions: the engines, a check before a launch, and the screen that shows rows.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from engines.chat.rendering import TemplateLimitError, Waiting
from engines.data.door import Located
from engines.data.readers.row import MessageRow, TextRow
from engines.labels.conversation import SKIP, Conversations, Proven, Talk, UnfitError, folded
from engines.labels.row import (
    IGNORED,
    DroppedRow,
    LabelCounts,
    LabelledRow,
    LabelRules,
    Piece,
    PieceKind,
    RefusedRow,
)
from engines.labels.skeleton import Answer, Span
from engines.labels.stretches import Stretch, encoded, stretches
from engines.labels.vocabulary import Control, Encoded, TokenizerView
from recipes.problems import OperatorError, printable

CHUNK_ROWS, CHUNK_CHARACTERS = 64, 200_000
"""Rows that one request to the chat template's process has: a request costs as much as several short rows."""
NO_TEMPLATE = (
    "the model's tokenizer has no chat template, so it cannot encode conversations",
    'set chat_template = "chatml", or the template that the model was trained with',
)

_ANOTHER_TEMPLATE = "give another chat template: chat_template in a stage, --chat-template for a command"

ONE_OF_PAIR = (
    'train on the pairs with kind = "dpo"; or name one answer: columns = {user = "prompt", assistant = "chosen"}'
)
"""What to do about a row of preferences in a stage that takes one answer."""

Outcome = LabelledRow | RefusedRow | DroppedRow


@dataclass(frozen=True)
class _Draft:
    """A row before it is tokenized: its parts, and the places that the loss counts."""

    where: str
    text: str
    parts: list[Stretch]
    scored: list[Span]
    pieces: tuple[Piece, ...]
    notes: tuple[str, ...]


_Group = list[_Draft | LabelledRow] | RefusedRow
"""What becomes of one row before it is tokenized."""


def label_rows(
    rows: Iterable[Located],
    view: TokenizerView,
    rules: LabelRules,
    counts: LabelCounts,
    *,
    places: bool = True,
    ahead: bool = False,
    waiting: Waiting | None = None,
) -> Iterator[Outcome]:
    """Each row as ids and labels, or why it has none, in the order of the rows; the memory used does not grow.

    Args:
        rows: the rows.
        view: the model's tokenizer.
        rules: how they are labelled.
        counts: takes the counts.
        places: find out where the text of each token ends; without it `ends` of conversations is empty.
        ahead: the caller wants every row, so a thread tokenizes rows while the template renders those behind them.
        waiting: called now and then while a chat template computes; what it raises ends the labelling.

    Raises:
        OperatorError: the rows are conversations and there is no chat template, or it exceeds its limits.
    """
    labeller = _Labeller(view, rules, counts, places, waiting)
    if ahead:
        with ThreadPoolExecutor(1) as thread:
            yield from labeller.ahead(_chunks(rows), thread)
    else:
        for chunk in _chunks(rows):
            yield from labeller.outcomes(*labeller.begun(chunk))


class _Labeller:
    """Labels chunks of rows in two steps: the template renders them, and the vocabulary tokenizes them."""

    def __init__(
        self, view: TokenizerView, rules: LabelRules, counts: LabelCounts, places: bool, waiting: Waiting | None
    ) -> None:
        self._view, self._rules, self._counts, self._places = view, rules, counts, places
        self._talks = Conversations(view, rules.template or view.template, waiting, rules.moment)
        self._unknown = _unknown(view)

    def ahead(self, chunks: Iterator[list[Located]], thread: Executor) -> Iterator[Outcome]:
        """The outcomes of all chunks; an error of a later chunk comes after the outcomes of the earlier ones."""
        begun: tuple[list[_Group], Future[list[list[Encoded]]]] | None = None
        error: OperatorError | None = None
        while error is None:
            following = None
            try:
                chunk = next(chunks, None)
                if chunk is not None:
                    groups = self._groups(chunk)
                    following = (groups, thread.submit(self._tokens, groups))
            except OperatorError as found:
                error = found
            if begun is not None:
                yield from self.outcomes(begun[0], begun[1].result())
            begun = following
            if begun is None:
                break
        if error is not None:
            raise error

    def begun(self, chunk: Sequence[Located]) -> tuple[list[_Group], list[list[Encoded]]]:
        """A chunk's rows, rendered, and their tokens."""
        groups = self._groups(chunk)
        return groups, self._tokens(groups)

    def outcomes(self, groups: Sequence[_Group], tokens: Sequence[list[Encoded]]) -> Iterator[Outcome]:
        """What becomes of each row, counted."""
        given = iter(tokens)
        self._counts.rows += len(groups)
        for group in groups:
            for one in [group] if isinstance(group, RefusedRow) else group:
                if isinstance(one, _Draft):
                    self._counts.notes.update(one.notes)
                row = _tokenized(one, next(given)) if isinstance(one, _Draft) else one
                found = _fitted(row, self._rules) if isinstance(row, LabelledRow) else row
                _count(found, self._counts)
                self._note_unknown(found)
                yield found

    def _note_unknown(self, found: Outcome) -> None:
        if self._unknown is not None and isinstance(found, LabelledRow) and self._unknown.id in found.labels:
            self._counts.notes[
                f"text that the tokenizer's vocabulary cannot spell is {printable(self._unknown.text, 40)} in what is"
                " trained: the model learns to answer with it"
            ] += 1

    def _tokens(self, groups: Sequence[_Group]) -> list[list[Encoded]]:
        ready = [one for group in groups if isinstance(group, list) for one in group if isinstance(one, _Draft)]
        return encoded([draft.parts for draft in ready], self._view, places=self._places)

    def _groups(self, chunk: Sequence[Located]) -> list[_Group]:
        view, rules = self._view, self._rules
        asked = {at: _talk(one.row, rules) for at, one in enumerate(chunk) if isinstance(one.row, MessageRow)}
        if asked and not (rules.template or view.template):
            raise OperatorError(*NO_TEMPLATE)
        try:
            proven = dict(zip(asked, self._talks.proven(list(asked.values())), strict=True))
        except TemplateLimitError as error:
            places = f"{chunk[0].where}" + (f" to {chunk[-1].where}" if len(chunk) > 1 else "")
            raise OperatorError(f"{places}: {error.message}", error.hint) from error
        return [_draft_of(one, proven.get(at), asked.get(at), view, rules) for at, one in enumerate(chunk)]


def _unknown(view: TokenizerView) -> Control | None:
    """The token that stands for text without a spelling; None where it is also the end, or another named token."""
    named = [view.controls.get(text) for text in view.special.values() if isinstance(text, str)]
    found = view.controls.get(str(view.special.get("unk_token") or ""))
    return found if sum(one is not None and found is not None and one.id == found.id for one in named) == 1 else None


def _draft_of(
    one: Located,
    proven: Proven | UnfitError | None,
    talk: Talk | None,
    view: TokenizerView,
    rules: LabelRules,
) -> _Group:
    try:
        if isinstance(proven, UnfitError):
            raise proven
        if proven is not None and talk is not None:
            return [_conversation(one.where, proven, _chosen(proven, talk, rules), view, rules)]
        if isinstance(one.row, TextRow):
            return [*_windows(one.where, one.row.text, view, rules)]
        raise UnfitError(
            "a row of preferences (prompt, chosen, rejected) is a pair of answers, and this stage takes one",
            ONE_OF_PAIR,
        )
    except UnfitError as error:
        return RefusedRow(one.where, error.reason, error.way_out)


def _talk(row: MessageRow, rules: LabelRules) -> Talk:
    talk = Talk(row.as_dicts(), row.tools, tuple(turn.weight for turn in row.messages))
    return folded(talk) if rules.fold_system else talk


def _chosen(proven: Proven, talk: Talk, rules: LabelRules) -> list[Answer]:
    """The answers that the loss counts.

    Raises:
        UnfitError: one of them has no end token, so the model would not learn to stop.
    """
    if rules.train_on == "all":
        return []
    answers = proven.answers[-1:] if rules.train_on == "last-answer" else proven.answers
    chosen = [answer for answer in answers if answer.marked and talk.weight(answer.turn) > 0]
    endless = next((answer for answer in chosen if not answer.ended), None)
    if endless is not None and endless.behind:
        raise UnfitError(
            f"the chat template changes the text of turn {endless.turn + 1}: it writes"
            f" '{printable(endless.behind, 40)}' between the answer and its end token",
            'set chat_template to another template, such as "chatml"',
        )
    if endless is not None:
        raise UnfitError(
            f"the chat template writes no end token after the answer of turn {endless.turn + 1}, so the model would not"
            " learn to stop",
            'set chat_template to another template, such as "chatml"',
        )
    return chosen


def _conversation(
    where: str, proven: Proven, answers: Sequence[Answer], view: TokenizerView, rules: LabelRules
) -> _Draft:
    if rules.train_on == "all":
        scored = [(0, len(proven.text))]
    else:
        scored = [(one.start if rules.train_on_template else one.own, one.end) for one in answers]
    cuts = [place for span in scored for place in span]
    parts = stretches(proven.text, proven.contents, cuts, view)
    return _Draft(where, proven.text, parts, scored, _pieces(len(proven.text), proven.contents, scored), proven.notes)


def _pieces(length: int, contents: Sequence[Span], scored: Sequence[Span]) -> tuple[Piece, ...]:
    """The parts of a text: what the loss counts, the row's other texts, and the template's own."""
    found: list[Piece] = []
    kinds: list[tuple[Span, PieceKind]] = [(span, "scored") for span in scored]
    kinds += [(span, "content") for span in contents if not any(a <= span[0] and span[1] <= b for a, b in scored)]
    at = 0
    for (start, end), kind in sorted(kinds):
        if start > at:
            found.append(Piece(at, start, "template"))
        if max(start, at) < end:
            found.append(Piece(max(start, at), end, kind))
        at = max(at, end)
    if at < length:
        found.append(Piece(at, length, "template"))
    return tuple(found)


def _windows(where: str, text: str, view: TokenizerView, rules: LabelRules) -> list[LabelledRow]:
    """A document, every token scored, with the tokenizer's own beginning and its end token; windows if it is long."""
    tokens = encoded([[Stretch(0, len(text), text=text)]], view)[0][0]
    ids = [*view.begin, *tokens.ids]
    ends = [*(0 for _ in view.begin), *tokens.ends]
    if view.end is not None:
        ids.append(view.end.id)
        ends.append(len(text))
    found = []
    for at in range(0, len(ids), rules.max_length):
        window = array("i", ids[at : at + rules.max_length])
        start, stop = (ends[at - 1] if at else 0), ends[min(at + rules.max_length, len(ends)) - 1]
        places = array("i", (end - start for end in ends[at : at + rules.max_length]))
        whole = (Piece(0, stop - start, "scored"),)
        found.append(LabelledRow(where, text[start:stop], window, array("i", window), places, whole))
    return found


def _tokenized(draft: _Draft, tokens: Sequence[Encoded]) -> LabelledRow:
    ids: list[int] = []
    labels: list[int] = []
    ends: list[int] = []
    scored = iter([*draft.scored, (len(draft.text) + 1, len(draft.text) + 2)])
    start, end = next(scored)
    for part, one in zip(draft.parts, tokens, strict=True):
        while part.start >= end:
            start, end = next(scored)
        ids += one.ids
        ends += one.ends
        labels += one.ids if start <= part.start else [IGNORED] * len(one.ids)
    return LabelledRow(draft.where, draft.text, array("i", ids), array("i", labels), array("i", ends), draft.pieces)


def _fitted(row: LabelledRow, rules: LabelRules) -> Outcome:
    """A row that is not longer than `max_length`, or what becomes of a longer one."""
    cut = len(row.ids) - rules.max_length
    if cut > 0 and rules.truncation == "error":
        return RefusedRow(
            row.where,
            f"the row has {len(row.ids)} tokens; max_length is {rules.max_length}",
            'raise max_length, or set truncation = "drop", "left" or "answer"',
        )
    if row.scored == 0 or (cut > 0 and rules.truncation == "drop"):
        return DroppedRow(row.where, len(row.ids))
    if cut <= 0:
        return row
    kept = slice(cut, None) if rules.truncation == "left" else slice(None, rules.max_length)
    short = replace(
        row,
        ids=row.ids[kept],
        labels=row.labels[kept],
        ends=row.ends[kept],
        cut=cut,
        from_left=rules.truncation == "left",
    )
    return short if short.scored else DroppedRow(row.where, len(row.ids))


def _count(found: Outcome, counts: LabelCounts) -> None:
    if isinstance(found, RefusedRow):
        counts.refused_rows += 1
    elif isinstance(found, DroppedRow):
        counts.dropped_rows += 1
        counts.longest = max(counts.longest, found.tokens)
    else:
        counts.examples += 1
        counts.truncated_rows += found.cut > 0
        counts.tokens += len(found.ids)
        counts.scored_tokens += found.scored
        counts.longest = max(counts.longest, len(found.ids) + found.cut)


def prompt_ids(
    turns: Sequence[dict[str, Any]],
    tools: Sequence[dict[str, Any]],
    view: TokenizerView,
    rules: LabelRules,
    *,
    waiting: Waiting | None = None,
) -> list[int]:
    """Ids of a conversation up to where the model's answer begins: those that training has before an answer.

    Args:
        turns: the conversation.
        tools: descriptions of tools that it may call.
        view: the model's tokenizer.
        rules: as for the rows that it was trained on.
        waiting: as for `label_rows`.

    Raises:
        OperatorError: there is no chat template, or it does not render the conversation.
    """
    template = rules.template or view.template
    if not template:
        raise OperatorError(*NO_TEMPLATE)
    talk = Talk(list(turns), list(tools))
    try:
        talks = Conversations(view, template, waiting, rules.moment)
        text, contents = talks.prompt(folded(talk) if rules.fold_system else talk)
    except UnfitError as error:
        # A prompt that is to be answered is no row of a training, which could leave it out.
        hint = _ANOTHER_TEMPLATE if SKIP in error.way_out else error.way_out
        raise OperatorError(error.reason, hint) from error
    parts = encoded([stretches(text, contents, (), view)], view)[0]
    return [token for part in parts for token in part.ids]


def _chunks(rows: Iterable[Located]) -> Iterator[list[Located]]:
    """Rows that are rendered in one request: `CHUNK_ROWS` of them, or `CHUNK_CHARACTERS` of their text.

    The first row comes alone: what is wrong with every row is then found before many are rendered.
    """
    chunk: list[Located] = []
    size, most = 0, 1
    for one in rows:
        chunk.append(one)
        if isinstance(one.row, MessageRow):
            size += sum(len(turn.content) for turn in one.row.messages)
        elif isinstance(one.row, TextRow):
            size += len(one.row.text)
        if len(chunk) == most or size > CHUNK_CHARACTERS:
            yield chunk
            chunk, size, most = [], 0, CHUNK_ROWS
    if chunk:
        yield chunk
