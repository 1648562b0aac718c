"""The view of a run grows with its facts: it is the same as one from all facts, and costs what is new."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest

from cockpit.runs.state import RunState, fold
from cockpit.runs.writer_facts import Track, WriterFacts
from engines.events.attempts import AttemptEnded, AttemptStarted, Phase
from engines.events.kinds import AnyEvent
from engines.events.results import Evaluated
from engines.events.runs import ControlApplied, RunEnded, RunStarted, StageFailed, StageStarted, StageSucceeded
from engines.events.steps import CheckpointCommitted, Step
from engines.events.writers import Gap, WriterOpened
from engines.words import EndReason, RunStatus, StartReason, WriterRole
from tests.cockpit.runs.test_state import interleaved
from tests.tui import journals
from tests.tui.journals import Journal


def numbered(launches: int = 3, stages: int = 4, *, ranks: int = 2, numbers: bool = True) -> Journal:
    """A run that several supervisors led, one after another; each reruns the last stage of the one before."""
    journal, names = Journal(), [f"s{number}" for number in range(stages)]
    attempts = dict.fromkeys(names, 0)
    for launch in range(1, launches + 1):
        number = launch if numbers else 0
        opened = WriterOpened(role=WriterRole.SUPERVISOR, host="h", boot_id="b", pid=1, start_time=1, launch=number)
        supervisor = f"sup{launch}"
        reason = StartReason.LAUNCH if launch == 1 else StartReason.RESUME if launch % 2 else StartReason.ADOPT
        started = RunStarted(run="r", recipe="x", reason=reason, stages=names, kinds=["fake"] * stages, launch=number)
        journal.say(supervisor, opened, 1)
        journal.say(supervisor, started, 1)
        journal.say(f"m{launch}", _opened(WriterRole.SAMPLER, number), 0)
        first = (launch - 1) * (stages - 1) // launches
        for name in names[first : first + stages // 2 + 1]:
            attempts[name] += 1
            _attempt(journal, supervisor, name, attempts[name], number, ranks)
        end = RunStatus.SUCCEEDED if launch == launches else RunStatus.STOPPED
        if launch % 2:
            journal.say(supervisor, RunEnded(state=end, reason="because", launch=number), 1)
    return journal


def _opened(role: WriterRole, launch: int, stage: str | None = None, attempt: int | None = None) -> WriterOpened:
    return WriterOpened(
        role=role, host="h", boot_id="b", pid=1, start_time=1, launch=launch, stage=stage, attempt=attempt
    )


def _attempt(journal: Journal, supervisor: str, stage: str, attempt: int, launch: int, ranks: int) -> None:
    journal.say(supervisor, StageStarted(stage=stage, kind="fake", attempt=attempt, steps=5, launch=launch), 1)
    engines = [f"e{stage}.{attempt}.{rank}" for rank in range(ranks)]
    for engine in engines:
        journal.say(engine, _opened(WriterRole.ENGINE, launch, stage, attempt), 1)
    engine = engines[0]
    journal.say(engine, AttemptStarted(stage=stage, kind="fake", attempt=attempt, total_steps=5), 1)
    for step in range(1, 4):
        for writer in engines:
            journal.say(writer, Step(stage=stage, attempt=attempt, step=step, epoch=0.0, loss=1.0, learning_rate=1e-3,
                                     grad_norm=1.0, tokens=step, loss_tokens=1, step_s=0.1), 1)  # fmt: skip
        journal.say(
            engine,
            Evaluated(stage=stage, attempt=attempt, step=step, loss=1.0, perplexity=2.0, tokens=1, protocol="p"),
            1,
        )
        saved = CheckpointCommitted(stage=stage, attempt=attempt, step=step, path="p", sha256=f"{step}", healthy=True)
        journal.say(engine, saved, 1)
    journal.say(engine, ControlApplied(request="pause", by="x", effect="paused", step=3, stage=stage), 1)
    journal.say(engine, Phase(stage=stage, attempt=attempt, name="paused"), 1)
    journal.say(engine, Gap(lost=1, reason="full"), 1)
    reason = EndReason.ERROR if attempt == 2 else EndReason.SUCCEEDED
    if reason == EndReason.SUCCEEDED:
        success = StageSucceeded(stage=stage, attempt=attempt, fingerprint="f", manifest_sha256="m")
        journal.say(engine, success, 1)
    journal.say(engine, AttemptEnded(stage=stage, attempt=attempt, reason=reason), 1)
    journal.say(supervisor, AttemptEnded(stage=stage, attempt=attempt, reason=reason, exit=1), 1)
    if reason != EndReason.SUCCEEDED:
        journal.say(supervisor, StageFailed(stage=stage, reason="why"), 1)


def content(value: Any) -> Any:
    """Everything in a view, comparable between two states."""
    match value:
        case Track():
            return value.canonical()
        case WriterFacts():
            return value.name
        case list():
            return [content(item) for item in value]
        case dict():
            return {key: content(item) for key, item in value.items()}
        case _ if dataclasses.is_dataclass(value):
            fields = [field.name for field in dataclasses.fields(value) if field.name != "_lists"]
            lists = [getattr(value, name) for name in ("checkpoints", "evaluations") if hasattr(value, name)]
            return [content(getattr(value, name)) for name in fields], content(lists)
        case _:
            return repr(value)


JOURNALS = {
    "numbered": numbered(),
    "one rank": numbered(launches=2, ranks=1),
    "by clock": numbered(numbers=False),
    "failed": journals.failed(),
    "live": journals.live(60),
}


@pytest.mark.parametrize("name", JOURNALS)
@pytest.mark.parametrize("mixed", [False, True])
def test_a_view_that_grew_is_the_view_of_all_facts(name: str, *, mixed: bool) -> None:
    events = JOURNALS[name].events
    for seed in range(3):
        rng = random.Random(seed)
        order: list[AnyEvent] = interleaved(events, rng) if mixed else events
        state, at = RunState(), 0
        while at < len(order):
            size = rng.choice([1, 1, 2, 5, 20])
            state.apply_all(order[at : at + size])
            at += size
            assert content(state.view) == content(fold(order[:at]).view), (seed, at)


@pytest.mark.parametrize("numbers", [True, False])
def test_following_a_run_of_many_stages_applies_every_fact_once(numbers: bool) -> None:
    journal = Journal()
    names = [f"s{number}" for number in range(300)]
    launch = int(numbers)
    journal.say("sup", _opened(WriterRole.SUPERVISOR, launch))
    journal.say(
        "sup",
        RunStarted(
            run="r", recipe="x", reason=StartReason.LAUNCH, stages=names, kinds=["fake"] * len(names), launch=launch
        ),
    )
    journal.say("m", _opened(WriterRole.SAMPLER, launch))
    for name in names:
        _attempt(journal, "sup", name, 1, launch, 1)
    state = RunState()
    for event in journal.events:
        state.apply(event)
        assert len(state.stages) in {0, len(names)}
    facts = sum(not isinstance(event, Step | Phase | WriterOpened) for event in journal.events)
    assert state.combined == facts


def test_a_run_s_evaluations_become_a_series_once_per_fact_and_not_at_every_step() -> None:
    journal = numbered(launches=1)
    state = fold(journal.events)
    series = state.series("s0", "eval_loss")
    assert list(series.x) == [1, 2, 3]
    assert state.series("s0", "eval_loss") is series
    journal.say("es0.1.0", Phase(stage="s0", attempt=1, name="saving"))
    assert state.apply(journal.events[-1])
    assert state.series("s0", "eval_loss") is series
    journal.say("sup1", StageStarted(stage="s3", kind="fake", attempt=1, launch=1))
    assert state.apply(journal.events[-1])
    assert state.series("s0", "eval_loss") is series, "another stage's fact"
    journal.say("es0.1.0", Evaluated(stage="s0", attempt=1, step=5, loss=0.5, perplexity=2.0, tokens=1, protocol="p"))
    assert state.apply(journal.events[-1])
    assert list(state.series("s0", "eval_loss").x) == [1, 2, 3, 5]


def test_attempts_whose_starts_were_lost_follow_one_another_by_their_numbers() -> None:
    journal = Journal()
    journal.say("sup", _opened(WriterRole.SUPERVISOR, 1), 1)
    journal.say(
        "sup", RunStarted(run="r", recipe="x", reason=StartReason.LAUNCH, stages=["s"], kinds=["fake"], launch=1), 1
    )
    for attempt, engine in ((1, "z"), (2, "m"), (10, "a")):
        journal.say(engine, _opened(WriterRole.ENGINE, 1, "s", attempt), 1)
        journal.say(engine, AttemptStarted(stage="s", kind="fake", attempt=attempt), 1)
        success = StageSucceeded(stage="s", attempt=attempt, fingerprint="f", manifest_sha256=f"m{attempt}")
        journal.say(engine, success, 1)
    assert fold(journal.events).stage("s").succeeded_attempt == 10
