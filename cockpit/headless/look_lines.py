"""What a look at a stage's data found, as lines: rows, tokens, a histogram with the cut, and the trained share."""

from __future__ import annotations

from collections.abc import Iterator

from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from engines.look.answer import SplitLook, StageLook
from recipes.stages.fields import StageFields
from recipes.stages.steps import eval_every, save_every
from recipes.stages.training import TrainingFields

_BAR_CELLS = 40
_LISTED = 8
"""Most steps that are listed."""


def look_lines(look: StageLook, stage: StageFields) -> list[str]:
    """The lines about one stage; empty for a stage whose data has no rows to show."""
    if not look.splits:
        return []
    lines = ["", f"data of {look.stage}:", ""]
    lines += text_table(
        ("split", "rows", "examples", "tokens", "trained", "cut", "left out", "longest", "format"),
        [_row(one) for one in look.splits],
        right=range(1, 8),
    )
    if look.unlabelled:
        lines.append(f"no tokens are counted: {safe_text(look.unlabelled, 200)}")
    for one in look.splits:
        lines += _in_part(one)
    if look.divided:
        rows = ", ".join(f"{fmt.counted(rows, 'row')} of {name}" for name, rows in look.divided.items())
        lines.append(f"it will be divided into {rows}")
    if look.steps is not None and isinstance(stage, TrainingFields):
        evaluates = eval_every(stage, look.examples or 1) if look.evaluations else None
        lines.append(
            f"{fmt.counted(look.steps, 'step')}; evaluations at: {due_words(evaluates, look.steps)};"
            f" checkpoints at: {due_words(save_every(stage, look.examples or 1), look.steps)}"
        )
    shown = next((one for one in look.splits if one.histogram), None)
    if shown is not None:
        lines += ["", f"tokens of a row of {shown.split}:", *histogram_lines(shown, look.max_length)]
    return lines


def due_words(every: int | None, last: int) -> str:
    """The steps at which work is due: every `every` steps and at the last; shortened if they are many."""
    if every is None:
        return "none"
    steps = [*range(every, last, every), last]
    shown = steps if len(steps) <= _LISTED else [*steps[: _LISTED - 2], -1, last]
    return ", ".join("…" if step < 0 else str(step) for step in shown)


def histogram_lines(one: SplitLook, max_length: int, cells: int = _BAR_CELLS) -> Iterator[str]:
    """The bars of a histogram, with a line where rows are cut.

    Args:
        one: a split.
        max_length: where rows are cut; 0 without a limit.
        cells: length of the longest bar.
    """
    most = max((count for _, _, count in one.histogram), default=0) or 1
    width = len(str(one.histogram[-1][1])) if one.histogram else 1
    drawn = not max_length or one.longest <= max_length
    for first, last, count in one.histogram:
        if not drawn and first > max_length:
            yield f"  {'─' * (2 * width + 3)} cut at max_length {max_length}"
            drawn = True
        bar = "█" * max(round(cells * count / most), 1 if count else 0)
        yield f"  {first:>{width}} - {last:>{width}}  {bar} {count}".rstrip()


def trained_share(one: SplitLook) -> float | None:
    """The share of a split's tokens that the loss counts; None without tokens."""
    return one.scored_tokens / one.tokens if one.tokens else None


def _row(one: SplitLook) -> list[str]:
    share = trained_share(one)
    known = one.labelled > 0
    return [
        one.split,
        fmt.whole(one.rows) + ("" if one.read_all else "+"),
        fmt.whole(one.examples) if known else "-",
        fmt.count(one.tokens) if known else "-",
        "-" if share is None else fmt.percent(share, 1),
        fmt.whole(one.truncated_rows) if known else "-",
        fmt.whole(one.skipped_rows + one.dropped_rows + one.refused_rows),
        fmt.whole(one.longest) if known else "-",
        safe_text(", ".join(one.formats[:3]), 80),
    ]


def _in_part(one: SplitLook) -> Iterator[str]:
    """What of a split was not examined."""
    if not one.read_all:
        yield f"{one.split}: the first {fmt.whole(one.rows)} rows were read"
    if not one.labelled_all:
        yield f"{one.split}: tokens are those of the first {fmt.whole(one.labelled)} rows"
