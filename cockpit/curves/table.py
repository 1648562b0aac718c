"""Every step and evaluation of a run as rows of CSV: raw values, not reduced and not smoothed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence

from cockpit.runs.state import EVAL, RunState
from cockpit.text.safe_text import safe_text
from engines.events.kinds import AnyEvent
from engines.events.results import Evaluated
from engines.events.steps import Step

STEP_COLUMNS = ("epoch", "loss", "learning_rate", "grad_norm", "tokens", "loss_tokens", "step_s", "data_wait_s")
EVALUATION_COLUMNS = ("eval_loss", "eval_perplexity", "eval_tokens")
_FIRST = ("stage", "attempt", "step", "t")


def csv_lines(state: RunState, events: Iterable[AnyEvent], stages: Sequence[str] = ()) -> Iterator[str]:
    """The header and one line for each step and each evaluation, in the order of the journal.

    The last columns are what methods measured, at steps and at evaluations (rewards, for example).

    `t` is in Unix seconds, losses are in nats per token (of a dpo stage: means over pairs). A number that is not
    finite is NaN, Infinity or -Infinity; an empty cell was not measured. Steps that a later attempt replaced are left
    out, as on the charts.

    Args:
        state: the fold of the same events.
        events: the run's journal.
        stages: only these; empty for all.
    """
    known = {*STEP_COLUMNS, "tokens_per_second"}
    names = (name.removeprefix(EVAL) for stage in state.stages for name in state.series_names(stage.name))
    more = dict.fromkeys(name for name in names if name not in known)
    yield _line([*_FIRST, *STEP_COLUMNS, *EVALUATION_COLUMNS, *(safe_text(name, 200) for name in more)])
    cuts = {
        (stage.name, attempt.attempt): cut
        for stage in state.stages
        if not stages or stage.name in stages
        for attempt, cut in stage.lineage
    }
    for event in events:
        if not isinstance(event, Step | Evaluated):
            continue
        cut = cuts.get((event.stage, event.attempt))
        if cut is None or (event.step or 0) > cut:
            continue
        yield _line(_step(event, more) if isinstance(event, Step) else _evaluation(event, more))


def _step(event: Step, more: Iterable[str]) -> list[str]:
    values = [_cell(getattr(event, name)) for name in STEP_COLUMNS]
    metrics = [_cell(event.metrics.get(name)) for name in more]
    return [*_head(event), *values, *([""] * len(EVALUATION_COLUMNS)), *metrics]


def _evaluation(event: Evaluated, more: Iterable[str]) -> list[str]:
    values = [_cell(event.loss), _cell(event.perplexity), _cell(event.tokens)]
    metrics = [_cell(event.metrics.get(name)) for name in more]
    return [*_head(event), *([""] * len(STEP_COLUMNS)), *values, *metrics]


def _head(event: Step | Evaluated) -> list[str]:
    return [safe_text(event.stage, 100), str(event.attempt), _cell(event.step), _cell(event.t)]


def _cell(value: float | None) -> str:
    """A number with all its digits."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return repr(value)


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
