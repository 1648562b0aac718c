"""Wall clocks are for people: whatever a clock does, the state of a run and what happens next stay the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.runs.log_lines import line_of
from cockpit.runs.state import RunState, fold
from cockpit.schedule.facts import RunFacts, add_facts
from cockpit.schedule.resolved_recipe import InputRef, RunRecipe
from cockpit.schedule.scheduling import next_action
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.event import Event
from engines.events.kinds import AnyEvent
from engines.events.machine import MachineSampled
from engines.events.runs import ControlApplied, RunEnded, RunStarted, StageStarted, StageSucceeded
from engines.events.steps import Step
from engines.events.writers import WriterOpened
from engines.words import EndReason, RunStatus, StartReason, WriterRole
from recipes.schema import Recipe

DAY_S = 86_400.0
STEPS_S = [sign * seconds for sign in (-1, 1) for seconds in (20.0, 3600.0, DAY_S)]
PLAN = RunRecipe(
    Recipe.model_validate({"schema": 1, "name": "r", "stage": [{"name": n, "kind": "fake"} for n in ("a", "b")]}),
    ["a", "b"],
    {"b": {"data": InputRef("stage", "a", None)}},
    [],
)


class Story:
    """The records of a run's processes, one second apart."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self._m = 100.0
        self._seq: dict[str, int] = {}

    def say(self, writer: str, event: Event) -> None:
        self._m += 1.0
        seq = self._seq[writer] = self._seq.get(writer, -1) + 1
        self.events.append(msgspec.structs.replace(event, v=1, w=writer, seq=seq, t=1e9 + self._m, m=self._m))  # type: ignore[arg-type]

    def opened(self, writer: str, role: str, launch: int, stage: str | None = None, attempt: int | None = None) -> None:
        words: dict[str, Any] = {"host": "h", "boot_id": "b", "pid": 9, "start_time": 1}
        self.say(writer, WriterOpened(role=WriterRole(role), stage=stage, attempt=attempt, launch=launch, **words))

    def supervisor(self, launch: int, reason: str, **fields: Any) -> str:
        name = f"s{9 - launch}"  # the names sort in the other direction
        self.opened(name, "supervisor", launch)
        started = RunStarted(
            run="r", recipe="r", reason=StartReason(reason), stages=["a", "b"], kinds=["fake", "fake"], launch=launch,
            **fields,
        )  # fmt: skip
        self.say(name, started)
        return name

    def engine(self, supervisor: str, launch: int, stage: str, attempt: int, steps: int) -> str:
        name = f"e{9 - launch}{stage}{attempt}"
        self.say(supervisor, StageStarted(stage=stage, kind="fake", attempt=attempt, launch=launch))
        self.opened(name, "engine", launch, stage, attempt)
        self.say(name, AttemptStarted(stage=stage, kind="fake", attempt=attempt, launch=launch))
        for number in range(1, steps + 1):
            self.say(name, _step(stage, attempt, number))
        return name

    def sample(self, launch: int, load: float) -> None:
        name = f"m{9 - launch}"
        self.opened(name, "sampler", launch)
        reading = MachineSampled(
            host="h", cpu_percent=load, ram_total_bytes=1, ram_available_bytes=1, engine_rss_bytes=1, unified=False,
            devices=[],
        )  # fmt: skip
        self.say(name, reading)


def _step(stage: str, attempt: int, number: int) -> Step:
    return Step(
        stage=stage, attempt=attempt, step=number, epoch=0.0, loss=1.0, learning_rate=1.0, grad_norm=1.0, tokens=1,
        loss_tokens=1, step_s=1.0,
    )  # fmt: skip


def stopped_and_resumed() -> Story:
    """Launched, stopped, resumed; the second supervisor died, a third adopted the run and ended it."""
    story = Story()
    one = story.supervisor(1, "launch")
    story.sample(1, 10.0)
    engine = story.engine(one, 1, "a", 1, 2)
    story.say(engine, StageSucceeded(stage="a", attempt=1, fingerprint="f", manifest_sha256="m"))
    story.say(engine, AttemptEnded(stage="a", attempt=1, reason=EndReason.SUCCEEDED))
    story.say(one, AttemptEnded(stage="a", attempt=1, reason=EndReason.SUCCEEDED, exit=0))
    engine = story.engine(one, 1, "b", 1, 3)
    story.say(engine, ControlApplied(request="stop", by="operator", effect="stopping", step=3, stage="b"))
    story.say(engine, AttemptEnded(stage="b", attempt=1, reason=EndReason.STOPPED))
    story.say(one, AttemptEnded(stage="b", attempt=1, reason=EndReason.STOPPED, exit=0))
    story.say(one, RunEnded(state=RunStatus.STOPPED, launch=1))
    two = story.supervisor(2, "resume", attempts={"a": 1, "b": 1})
    story.sample(2, 90.0)
    engine = story.engine(two, 2, "b", 2, 2)
    three = story.supervisor(3, "adopt")
    story.say(engine, AttemptEnded(stage="b", attempt=2, reason=EndReason.ERROR, detail="broken"))
    story.say(three, AttemptEnded(stage="b", attempt=2, reason=EndReason.ERROR))
    story.say(three, RunEnded(state=RunStatus.FAILED, launch=3))
    return story


def running_again() -> Story:
    """Launched, stopped, resumed with a stage that runs again, and paused now."""
    story = Story()
    one = story.supervisor(1, "launch")
    engine = story.engine(one, 1, "a", 1, 2)
    story.say(engine, StageSucceeded(stage="a", attempt=1, fingerprint="f", manifest_sha256="m"))
    story.say(engine, AttemptEnded(stage="a", attempt=1, reason=EndReason.SUCCEEDED))
    story.say(one, RunEnded(state=RunStatus.STOPPED, launch=1))
    two = story.supervisor(2, "resume", redo=["a"], attempts={"a": 1})
    engine = story.engine(two, 2, "a", 2, 2)
    story.say(engine, ControlApplied(request="pause", by="operator", effect="paused", step=2, stage="a"))
    return story


def view(state: RunState) -> object:
    stages = [
        (s.name, s.state, s.reason, s.succeeded_attempt, s.at_step, [(a.attempt, a.reason, a.exit) for a in s.attempts])
        for s in state.stages
    ]
    current = state.current_stage
    machine = state.machine()
    return (
        state.state,
        state.reason,
        stages,
        current and current.name,
        state.attempts_since_resume("b"),
        machine and machine.cpu_percent,
        [line.text for line in state.log()],
    )


def decided(events: list[AnyEvent]) -> object:
    facts = RunFacts()
    add_facts(facts, events)
    return facts.has_ended, next_action(PLAN, facts, lambda name: bool(facts.stage(name).successes))


def shifted(events: list[AnyEvent], writer: str, at: int, by_s: float) -> list[AnyEvent]:
    """The clock of one process is set at its record `at`."""
    return [
        msgspec.structs.replace(event, t=event.t + by_s) if event.w == writer and event.seq >= at else event
        for event in events
    ]


@pytest.mark.parametrize("story", [stopped_and_resumed, running_again])
@given(data=st.data())
@settings(max_examples=150)
def test_no_step_of_any_clock_changes_the_state_or_the_next_action(
    story: Callable[[], Story], data: st.DataObject
) -> None:
    events = story().events
    moved = events
    for _ in range(data.draw(st.integers(1, 4))):
        event = data.draw(st.sampled_from(events))
        moved = shifted(moved, event.w, event.seq, data.draw(st.sampled_from(STEPS_S)))
    assert view(fold(moved)) == view(fold(events))
    assert decided(moved) == decided(events)


@pytest.mark.parametrize("by_s", STEPS_S)
def test_a_machine_whose_clock_is_set_between_two_launches_shows_the_newest(by_s: float) -> None:
    events = stopped_and_resumed().events
    second = next(n for n, event in enumerate(events) if isinstance(event, RunStarted) and event.launch == 2) - 1
    moved = [msgspec.structs.replace(e, t=e.t + by_s) if n >= second else e for n, e in enumerate(events)]
    state = fold(moved)
    assert (state.state, state.reason) == ("failed", "")
    assert state.machine() is not None
    assert state.machine().cpu_percent == 90.0
    assert [line.text for line in state.log()] == [
        line_of(event).text for event in moved if not isinstance(event, Step | MachineSampled)
    ]


def test_the_expected_states_are_those_of_the_stories() -> None:
    ended = fold(stopped_and_resumed().events)
    assert (ended.state, [s.state for s in ended.stages]) == ("failed", ["succeeded", "failed"])
    again = fold(running_again().events)
    assert (again.state, [s.state for s in again.stages]) == ("paused", ["running", "pending"])


def test_a_supervisors_number_is_above_every_number_in_the_journal() -> None:
    facts = RunFacts()
    assert facts.next_launch == 1
    add_facts(facts, stopped_and_resumed().events)
    assert facts.next_launch == 4
    old = [msgspec.structs.replace(e, launch=0) for e in stopped_and_resumed().events if isinstance(e, RunStarted)]
    older = RunFacts()
    add_facts(older, old)
    assert older.next_launch == 4, "older journals have no numbers: their starts are counted"
