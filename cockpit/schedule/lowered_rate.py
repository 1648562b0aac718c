"""What an operator's resume keeps of the learning rate that retries lowered, by the facts of a run.

The training is the same one, and a guard has shown that its recipe's rate is too high for it. So the factor stays until
the operator sets the rate: a fact of the attempts, like a micro-batch that was halved.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from cockpit.schedule.facts import AttemptFacts, RunFacts
from cockpit.schedule.memory_plan import ran_out
from engines.events.runs import RunStarted
from engines.guards import NO_IMPROVEMENT
from engines.words import EndReason
from recipes import quantities
from recipes.stages.fields import Retry, TrainingRetry

RATES = frozenset({"learning_rate", "retry.learning_rate_factor"})
"""Fields whose change at a resume says which rate the operator wants."""


@dataclass(frozen=True)
class Lowered:
    """The factor on the recipe's learning rate, the guards for which retries lowered it, and what to say of it."""

    scale: float = 1.0
    trips: int = 0
    note: str = ""


UNCHANGED = Lowered()


def lowered_before(facts: RunFacts, name: str, began: RunStarted | None, retry: Retry) -> Lowered:
    """What the attempts before the last launch or resume leave to those after it.

    A stop that came before a retry had begun leaves what that retry would have had.

    Args:
        facts: of the run.
        name: the stage.
        began: the request with which its present training began; None for the launch.
        retry: the stage's.
    """
    since = facts.attempts_since(facts.operator, name)
    numbers = {attempt.number for attempt in since}
    before = [attempt for attempt in facts.attempts_since(began, name) if attempt.number not in numbers]
    last = next((attempt for attempt in reversed(before) if attempt.started is not None), None)
    scale = 1.0 if last is None or last.started is None else last.started.learning_rate_scale
    due = bool(before) and _is_due(facts, name, before[-1], retry)
    if due and isinstance(retry, TrainingRetry):
        scale *= retry.learning_rate_factor
    if last is None or scale == 1.0:
        return UNCHANGED
    shown = quantities.exact(scale)
    if _is_set_after(facts, name, last):
        return Lowered(
            note=f"the learning rate is that of the recipe again, as changed; retries had scaled it by {shown}"
        )
    return Lowered(
        scale,
        sum(_lowers(attempt, after) for attempt, after in pairwise(before)) + due,
        f"the learning rate stays scaled by {shown}, because guards tripped in earlier attempts; a resume with --set"
        f" {name}.learning_rate=… sets another one",
    )


def _is_set_after(facts: RunFacts, name: str, last: AttemptFacts) -> bool:
    """Whether a resume after this attempt has changed the rate."""
    return any(
        change.stage == name and change.field in RATES
        for start in facts.operator_starts()
        if last.number not in {attempt.number for attempt in facts.attempts_since(start, name)}
        for change in start.changes
    )


def _is_due(facts: RunFacts, name: str, last: AttemptFacts, retry: Retry) -> bool:
    """Whether a guard ended the last attempt, and the retry that the recipe allows did not begin."""
    if last.reason != EndReason.GUARD or last.guard == NO_IMPROVEMENT:
        return False
    starts = reversed(facts.operator_starts())
    start = next((one for one in starts if last in facts.attempts_since(one, name)), None)
    made = [attempt for attempt in facts.attempts_since(start, name) if attempt.number <= last.number]
    return sum(not ran_out(attempt) for attempt in made) < retry.max_attempts


def _lowers(attempt: AttemptFacts, after: AttemptFacts) -> bool:
    """Whether the next attempt is a retry that a guard of this one has lowered the rate of."""
    tripped = attempt.reason == EndReason.GUARD and attempt.guard != NO_IMPROVEMENT
    if not tripped or attempt.started is None or after.started is None:
        return False
    return after.started.learning_rate_scale != attempt.started.learning_rate_scale
