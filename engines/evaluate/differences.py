"""Where an answer first differs from the baseline's, and how close the two tokens were for this model.

Two forms of one model that compute with other rounding give the same greedy answer until two tokens are nearly equally
likely. A small gap is such a tie; a large one is another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from engines.evaluate.asking import Answerer, Progress, Waiting
from engines.judging.compare import Row, paired
from engines.judging.totals import Judged

SHOWN_CHARACTERS = 40


def explained(
    answerer: Answerer, rows: Sequence[Judged], baseline: Sequence[Row], progress: Progress, waiting: Waiting
) -> list[dict[str, Any]]:
    """One record for each answer with other tokens than the baseline's.

    A record has the row's `key` and `name`, the number `at` of the first token that differs, the texts of the two
    tokens (`model`, `baseline`), and `gap`: this model's logit of its own token above that of the baseline's, in nats.
    It is None where one answer only ends earlier, at a limit of tokens, or where the other vocabulary is larger. It is
    negative where the model, which now reads the whole beginning of the answer at once, finds the other token likelier:
    such a tie is within the rounding of one model.

    Args:
        answerer: the model.
        rows: its judged answers.
        baseline: rows of the baseline; those without tokens are left out.
        progress: takes explained and all differing rows.
        waiting: called between rows; what it raises ends the explanation.
    """
    judged = {row.task.key: row for row in rows}
    own = [Row(row.task.key, row.task.expected, row.passed, ids=tuple(row.kept.ids)) for row in rows]
    differing = [
        (judged[row.key], row.ids, theirs.ids)
        for row, theirs in paired(own, baseline)
        if row.ids and theirs.ids and row.ids != theirs.ids
    ]
    if differing:
        answerer.prepare(max(row.kept.prompt_tokens + len(ids) for row, ids, _ in differing))
    found = []
    for done, (row, ids, theirs) in enumerate(differing, start=1):
        waiting()
        found.append(_difference(answerer, row, ids, theirs))
        progress(done, len(differing))
    return found


def _difference(answerer: Answerer, row: Judged, ids: Sequence[int], theirs: Sequence[int]) -> dict[str, Any]:
    pairs = zip(ids, theirs, strict=False)
    at = next((at for at, (own, other) in enumerate(pairs) if own != other), min(len(ids), len(theirs)))
    own, other = (one[at] if at < len(one) else None for one in (ids, theirs))
    gap, their_text = None, ""
    if other is not None:
        logits = answerer.after([*answerer.encode(row.task), *ids[:at]])
        known = other < len(logits)  # llama.cpp aborts at the text of a token that it does not have
        their_text = _text(answerer, other) if known else f"token {other}"
        gap = float(logits[own]) - float(logits[other]) if known and own is not None else None
    return {
        "key": row.task.key,
        "name": row.task.name or row.task.where.rpartition("/")[2],
        "at": at,
        "model": _text(answerer, own),
        "baseline": their_text,
        "gap": gap,
    }


def _text(answerer: Answerer, token: int | None) -> str:
    return "" if token is None else answerer.text(token)[:SHOWN_CHARACTERS]
