"""Gives the rows of a stage's data one by one, read and labelled as the stage's engine does it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO

import msgspec

from engines.data.door import Located, ReadCounts, Refused, each_row, source_of_stage, splits_in
from engines.data.readers.row import MessageRow, PreferenceRow, Row
from engines.labels.label import label_rows
from engines.labels.pairs import NAMES, answered, label_pairs
from engines.labels.row import IGNORED, DroppedRow, LabelCounts, LabelledRow, LabelRules, RefusedRow
from engines.labels.vocabulary import Vocabulary
from engines.look.row_view import RowsAnswer, RowsJob, RowsRequest, RowView, SpanKind
from engines.look.stage_look import stage_of
from engines.look.tokenizer import view_and_rules
from recipes.problems import OperatorError
from recipes.stages.data_fields import ReadFields
from recipes.stages.dpo import PreferenceFields
from recipes.stages.evaluate import EvaluateStage
from recipes.stages.finetune import FinetuneFields

KEPT_ROWS = 400
"""Rows that are remembered, so that a step back does not read the file again."""
_NO_LIMIT = 1 << 30


def serve_rows(requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer requests, one JSON line each, until the input ends; the first line is the job."""
    rows: Rows | None = None
    job = msgspec.json.decode(requests.readline(), type=RowsJob)
    for line in iter(requests.readline, b""):
        try:
            rows = rows or Rows(job)
            answer = rows.answer(msgspec.json.decode(line, type=RowsRequest))
        except OperatorError as error:
            answer = RowsAnswer(error=error.message, hint=error.hint)
        except MemoryError:
            answer = RowsAnswer(error="the row needs more memory than an examination may take")
        answers.write(msgspec.json.encode(answer) + b"\n")
        answers.flush()


class Rows:
    """The rows of one split, by number.

    Raises:
        OperatorError: the data or the model's tokenizer cannot be read.
    """

    def __init__(self, job: RowsJob) -> None:
        stage = stage_of(dict(job.stage))
        assert isinstance(stage, ReadFields), "the caller names a stage that reads rows"
        place = Path(job.data)
        if job.prepare is not None:
            from engines.look.prepared import prepared_rows

            place = prepared_rows(job.prepare, job.data, Path(job.scratch))
        self._source = source_of_stage(stage, place, str(place))
        have = splits_in(self._source)
        self._split = job.split if job.split in have or job.split else next(iter(have))
        self._view: Vocabulary | None = None
        self._rules: LabelRules | None = None
        if job.model is not None and isinstance(stage, FinetuneFields | EvaluateStage):
            self._view, self._rules = view_and_rules(stage, Path(job.model), job.first_start)
        self._pairs = isinstance(stage, PreferenceFields) or job.any_kind
        self._is_dpo = isinstance(stage, PreferenceFields)
        self._begin()

    def _begin(self) -> None:
        self._rows: Iterator[Located | Refused] = each_row(self._source, self._split, ReadCounts())
        self._read = 0
        self._kept: deque[Located | Refused] = deque(maxlen=KEPT_ROWS)
        self._last = getattr(self, "_last", 0)

    def answer(self, request: RowsRequest) -> RowsAnswer:
        """The row that a request asks for."""
        number = max(1, request.row)
        found = self._find(number, request.find.casefold(), request.back) if request.find else self._row(number)
        if found is None:
            return RowsAnswer(last=self._last)
        place, row = found
        return RowsAnswer(self._views(place, row, tokens=request.tokens), self._last)

    def _row(self, number: int) -> tuple[int, Located | Refused] | None:
        """A row and its number; the last row for a number beyond it, None for data without rows."""
        if number <= self._read - len(self._kept):
            self._begin()
        while self._read < number:
            row = next(self._rows, None)
            if row is None:
                self._last = self._read
                break
            self._read += 1
            self._kept.append(row)
        number = min(number, self._read)
        return (number, self._kept[number - self._read - 1]) if number else None

    def _find(self, number: int, wanted: str, back: bool) -> tuple[int, Located | Refused] | None:
        if back:
            return self._find_back(number, wanted)
        while True:
            found = self._row(number)
            if found is None or found[0] < number:
                return None
            if wanted in texts_of(found[1]).casefold():
                return found
            number += 1

    def _find_back(self, number: int, wanted: str) -> tuple[int, Located | Refused] | None:
        """The last row up to `number` with the text: among those that are remembered, else by reading again."""
        nearest: tuple[int, Located | Refused] | None = None
        first_kept = self._read - len(self._kept) + 1
        for place in range(min(number, self._read), first_kept - 1, -1):
            row = self._kept[place - self._read - 1]
            if wanted in texts_of(row).casefold():
                return place, row
        for place in range(1, min(number + 1, first_kept)):
            found = self._row(place)
            if found is not None and wanted in texts_of(found[1]).casefold():
                nearest = found
        return nearest

    def _views(self, number: int, row: Located | Refused, *, tokens: bool) -> list[RowView]:
        if isinstance(row, Refused):
            return [RowView(number, row.where, "unreadable", reason=_reason(row.what, row.hint))]
        if self._view is None or self._rules is None:
            return [RowView(number, row.where, "raw", text=texts_of(row))]
        if self._is_dpo or (self._pairs and isinstance(row.row, PreferenceRow)):
            return self._pair(number, row, self._view, self._rules, tokens=tokens)
        found = list(label_rows([row], self._view, self._rules, LabelCounts()))
        views = [self._of_outcome(number, row, one, tokens=tokens) for one in found]
        for part, view in enumerate(views, start=1):
            view.part = part if len(views) > 1 else 0
        return views

    def _pair(self, number: int, row: Located, view: Vocabulary, rules: LabelRules, *, tokens: bool) -> list[RowView]:
        """Both answers of a preference, each with its prompt."""
        pair = next(label_pairs([row], view, rules, LabelCounts()))
        if isinstance(pair, RefusedRow) or not isinstance(row.row, PreferenceRow):
            assert isinstance(pair, RefusedRow)
            reason = _reason(pair.reason, pair.way_out)
            return [RowView(number, row.where, "refused", text=texts_of(row), reason=reason)]
        views = []
        for name in NAMES:
            half = Located(row.where, answered(row.row, getattr(row.row, name)))
            one = self._of_outcome(number, half, next(label_rows([half], view, rules, LabelCounts())), tokens=tokens)
            one.answer = name
            if isinstance(pair, DroppedRow) and one.fate != "dropped":
                one.fate, one.reason = "dropped", "the other answer is left out, and so is the pair"
            views.append(one)
        return views

    def _of_outcome(
        self, number: int, row: Located, found: LabelledRow | DroppedRow | RefusedRow, *, tokens: bool
    ) -> RowView:
        if isinstance(found, RefusedRow):
            return RowView(
                number, row.where, "refused", text=texts_of(row), reason=_reason(found.reason, found.way_out)
            )
        if isinstance(found, LabelledRow) and not found.cut:
            view = RowView(number, row.where, "kept", found.text, spans_of(found), len(found.ids), found.scored)
        else:
            view = self._of_long_row(number, row, found)
        if tokens and isinstance(found, LabelledRow):
            view.ids, view.labels = list(found.ids), list(found.labels)
        return view

    def _of_long_row(self, number: int, row: Located, found: LabelledRow | DroppedRow) -> RowView:
        """A row that is cut or left out, whole, with the place of the cut."""
        assert self._view is not None
        assert self._rules is not None
        limit = self._rules.max_length
        endless = replace(self._rules, max_length=_NO_LIMIT, truncation="drop")
        whole = next(label_rows([row], self._view, endless, LabelCounts()))
        if not isinstance(whole, LabelledRow):  # no token of it is scored, however long it may be
            return RowView(number, row.where, "dropped", text=texts_of(row), reason="no token of it would be scored")
        if isinstance(found, DroppedRow):
            long = found.tokens > limit
            reason = f"it has {found.tokens} tokens, and max_length is {limit}" if long else "no token is scored"
            place = whole.ends[limit - 1] if long else -1
            ends = [place, len(whole.text)] if long else [len(whole.text)]
            spans: list[tuple[int, SpanKind]] = [(end, "cut") for end in ends]
            return RowView(number, row.where, "dropped", whole.text, spans, found.tokens, 0, 0, place, reason=reason)
        if found.from_left:
            place = whole.ends[found.cut - 1]
            spans = spans_of(whole, place, from_left=True)
        else:
            place = whole.ends[len(found.ids) - 1]
            spans = spans_of(whole, place)
        tokens = len(whole.ids)
        return RowView(
            number,
            row.where,
            "cut",
            whole.text,
            spans,
            tokens,
            found.scored,
            found.cut,
            place,
            from_left=found.from_left,
        )


def spans_of(row: LabelledRow, cut_at: int | None = None, *, from_left: bool = False) -> list[tuple[int, SpanKind]]:
    """The parts of a row's text by what the loss does with their tokens.

    A part is scored where the labels say so, token by token. The others are the row's own text, or the template's.

    Args:
        row: a labelled row.
        cut_at: the place of a cut; None without one.
        from_left: what lies before the place is cut off; else what follows.
    """
    spans: list[tuple[int, SpanKind]] = []
    own = [(piece.start, piece.end) for piece in row.pieces if piece.kind != "template"]
    start = 0
    for at, end in enumerate(row.ends):
        if end <= start:  # a token that ends inside a character, or a mark without text
            continue
        cut = cut_at is not None and (end <= cut_at if from_left else end > cut_at)
        if cut:
            kind: SpanKind = "cut"
        elif row.labels[at] != IGNORED:
            kind = "scored"
        else:
            kind = "content" if any(a < end and start < b for a, b in own) else "template"
        if spans and spans[-1][1] == kind:
            spans.pop()
        spans.append((end, kind))
        start = end
    if start < len(row.text):
        spans.append((len(row.text), "template"))
    return spans


def texts_of(found: Located | Refused) -> str:
    """The texts of a row, without any template: for a search, and for a row that has no labels."""
    if isinstance(found, Refused):
        return found.line
    row: Row = found.row
    if isinstance(row, MessageRow):
        return "\n\n".join(f"{turn.role}: {turn.content}" for turn in row.messages)
    if isinstance(row, PreferenceRow):
        named = (("prompt", row.prompt), ("chosen", row.chosen), ("rejected", row.rejected))
        return "\n\n".join(f"{name} {turn.role}: {turn.content}" for name, turns in named for turn in turns)
    return row.text


def _reason(what: str, hint: str) -> str:
    return f"{what}; {hint}" if hint else what
