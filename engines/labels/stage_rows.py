"""The rows of a stage as examples: its rules from its fields, and its policy for a row that is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from engines.chat.rendering import Waiting
from engines.data.door import Located
from engines.labels.label import label_rows
from engines.labels.row import DroppedRow, LabelCounts, LabelledRow, LabelRules, RefusedRow
from engines.labels.templates import chosen_template
from engines.labels.vocabulary import TokenizerView
from recipes.problems import OperatorError, printable
from recipes.stages.data_fields import DataFields
from recipes.stages.label_fields import LabelFields

_SHOWN_ROWS = 3


def rules_of(stage: LabelFields, max_length: int, moment: str = "") -> LabelRules:
    """The rules that a stage's fields state; `moment` as in `LabelRules`.

    Raises:
        OperatorError: there is no such chat template.
    """
    chosen = chosen_template(stage.chat_template)
    return LabelRules(
        max_length=max_length,
        train_on=stage.train_on,
        truncation=stage.truncation,
        template="" if chosen is None else chosen.text,
        fold_system=stage.fold_system,
        train_on_template=stage.train_on_template,
        moment=moment,
    )


def protocol_of(rules: LabelRules) -> str:
    """How rows are labelled, for reports: only losses of the same protocol are comparable."""
    more = [] if rules.train_on == "answers" else [f"train_on={rules.train_on}"]
    more += ["fold_system"] if rules.fold_system else []
    more += ["train_on_template"] if rules.train_on_template else []
    return ", ".join([f"max_length={rules.max_length}", f"truncation={rules.truncation}", *more])


def examples_of(
    rows: Iterable[Located],
    view: TokenizerView,
    rules: LabelRules,
    counts: LabelCounts,
    *,
    skip_refused: bool = False,
    max_tokens: int | None = None,
    refused: Callable[[RefusedRow], None] = lambda _row: None,
    waiting: Waiting | None = None,
) -> Iterator[LabelledRow]:
    """The rows that the loss can use.

    Args:
        rows: the rows of a split.
        view: the model's tokenizer.
        rules: as `rules_of` gives them.
        counts: takes the counts.
        skip_refused: leave out and count a row that is refused.
        max_tokens: stop taking rows when this many tokens are scored.
        refused: takes each row that is left out so.
        waiting: as for `label_rows`.

    Raises:
        OperatorError: a row is refused; the message begins with its place.
    """
    scored = 0
    ahead = max_tokens is None
    for one in label_rows(rows, view, rules, counts, places=False, ahead=ahead, waiting=waiting):
        if isinstance(one, RefusedRow):
            if not skip_refused:
                raise OperatorError(f"{one.where}: {one.reason}", one.way_out)
            refused(one)
        elif not isinstance(one, DroppedRow):
            yield one
            scored += one.scored
            if max_tokens is not None and scored >= max_tokens:
                return


class Warnings:
    """What the operator should know about the rows of a split."""

    def __init__(self, rules: LabelRules) -> None:
        self._rules = rules
        self._reasons: Counter[str] = Counter()
        self._places: list[str] = []

    def add(self, row: RefusedRow) -> None:
        """A row that was left out because it was refused."""
        self._reasons[row.reason] += 1
        if len(self._places) < _SHOWN_ROWS:
            self._places.append(row.where)

    def texts(self, counts: LabelCounts) -> list[str]:
        """One sentence for each fact."""
        found = []
        length = self._rules.max_length
        if counts.truncated_rows:
            side = "beginning" if self._rules.truncation == "left" else "end"
            found.append(
                f"{counts.truncated_rows} of {counts.rows} rows lost their {side}: longer than {length} tokens"
            )
        if counts.dropped_rows:
            found.append(
                f"{counts.dropped_rows} of {counts.rows} rows were left out: longer than {length} tokens, or without an"
                f" answer; the longest row has {counts.longest} tokens"
            )
        if counts.refused_rows:
            (reason, _), *_ = self._reasons.most_common(1) or [("", 0)]
            found.append(
                f"{counts.refused_rows} of {counts.rows} rows were left out, {', '.join(self._places)} for example:"
                f" {printable(reason, 300)}"
            )
        return found + [f"{note} ({number} of {counts.rows} rows)" for note, number in counts.notes.items()]


def why_no_evaluation(rows: int | None, longest: int, max_length: int) -> str:
    """Why a training has nothing to evaluate on.

    Args:
        rows: rows of the val split; None without the split.
        longest: tokens of its longest row.
        max_length: tokens after which a row is cut or left out.
    """
    if rows is None:
        return "the data has no val split"
    if not rows:
        return "the val split of the data has no rows"
    limit = f" within {max_length} tokens; the longest has {longest}" if longest > max_length else ""
    return f"none of the {rows} rows of the val split has an answer{limit}"


def skips_refused(stage: DataFields) -> bool:
    """Whether a stage leaves out a row that is refused."""
    return stage.on_bad_row == "skip"
