"""One row as a screen shows it: its text in spans by what the loss does with them, and what becomes of the row."""

from __future__ import annotations

from typing import Literal

import msgspec

SpanKind = Literal["template", "content", "scored", "cut"]
"""`cut` is a part beyond max_length, whatever it was."""
Fate = Literal["kept", "cut", "dropped", "refused", "unreadable", "raw"]
"""`raw` is a row whose model is not known, so it has no tokens."""


class RowView(msgspec.Struct, omit_defaults=True):
    """A row.

    Attributes:
        number: from 1, in the order of the files.
        where: file and line, or file and row.
        fate: what becomes of it.
        text: what the model sees, or the row's own texts if it is refused or raw.
        spans: parts of the text in order: the place after the last character, and the kind.
        tokens: of the whole row, before a cut.
        scored: tokens that the loss counts, after a cut.
        lost: tokens that are cut off.
        cut_at: the place in the text where it is cut; -1 without a cut.
        from_left: what lies before `cut_at` is cut off; else what follows.
        reason: why the row is not kept, and what to do.
        part: of a long text that becomes several examples, from 1; 0 for others.
        answer: of a pair, which answer this is: chosen or rejected; empty for others.
        ids, labels: of the example that the engine trains on, where a request has `tokens`.
    """

    number: int
    where: str
    fate: Fate
    text: str = ""
    spans: list[tuple[int, SpanKind]] = []
    tokens: int = 0
    scored: int = 0
    lost: int = 0
    cut_at: int = -1
    from_left: bool = False
    reason: str = ""
    part: int = 0
    answer: str = ""
    ids: list[int] = []
    labels: list[int] = []


class RowsRequest(msgspec.Struct, omit_defaults=True):
    """Rows that are asked for.

    Attributes:
        row: the number of a row, from 1; a number beyond the last row gives the last one.
        find: instead of a row's number, a text: the next row from `row` on that contains it, in any case.
        back: look for the text towards the first row.
        tokens: give ids and labels too.
    """

    row: int = 1
    find: str = ""
    back: bool = False
    tokens: bool = False


class RowsAnswer(msgspec.Struct, omit_defaults=True):
    """The answer to a request.

    Attributes:
        views: the row; several for a text that becomes several examples; empty if no row was found.
        last: the number of the last row, once it is known; 0 before.
        error: why there are no rows, and what to do.
    """

    views: list[RowView] = []
    last: int = 0
    error: str = ""
    hint: str = ""


class RowsJob(msgspec.Struct, omit_defaults=True):
    """The first line that a process of rows gets.

    Attributes:
        stage: the fields of a stage, as recipe.json has them.
        data: the file or folder of its data; with `prepare`, of that stage's data.
        model: the folder with the tokenizer; None if it does not exist yet.
        split: the split to show; empty for the first.
        prepare: the fields of the prepare stage whose output the stage will read; None if the data exists.
        scratch: an empty folder for that output; the sender removes it.
        first_start: when the stage first started, for rows of a run; empty for a stage that has not.
        any_kind: the data is shown without a recipe, so a row with two answers is shown as a pair.
    """

    stage: dict[str, object]
    data: str
    model: str | None = None
    split: str = ""
    prepare: dict[str, object] | None = None
    scratch: str = ""
    first_start: str = ""
    any_kind: bool = False
