from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from cockpit.schedule.facts import RunFacts, StageFacts, add_facts
from cockpit.schedule.resolved_recipe import InputRef, RunRecipe
from cockpit.schedule.scheduling import EndRun, RunStage, next_action
from engines.events.attempts import AttemptEnded, AttemptStarted, ResumedFrom
from engines.events.event import Event
from engines.events.kinds import AnyEvent
from engines.events.runs import FieldChanged, RunEnded, RunStarted, StageStarted, StageSucceeded
from engines.events.steps import GuardTripped
from engines.events.writers import WriterOpened
from engines.guards import DAMAGED_START
from engines.words import EndReason, RunStatus, StartReason, WriterRole
from recipes.schema import Recipe
from tests.cockpit.schedule.test_memory_plan import Attempts
from tests.cockpit.schedule.test_memory_plan import plan as memory_test_plan

ORDER = ["data", "base", "atlas", "report"]


def plan(max_attempts: int = 3, factor: float = 0.5, only: Iterable[str] = ()) -> RunRecipe:
    """prepare -> base -> atlas -> report: fake stages train, so all stages have this kind."""
    stages = [
        {"name": name, "kind": "fake", "retry": {"max_attempts": max_attempts, "learning_rate_factor": factor}}
        for name in ORDER
    ]
    inputs = {name: {"data": InputRef("stage", before, None)} for before, name in pairwise(ORDER)}
    recipe = Recipe.model_validate({"schema": 1, "name": "r", "stage": stages})
    return RunRecipe(recipe, ORDER, inputs, list(only))


class Journal:
    """Events as their writers would write them, one second apart."""

    def __init__(self) -> None:
        self.events: list[AnyEvent] = []
        self.t = 100.0
        self._seq: dict[str, int] = {}

    def _add(self, writer: str, kind: type[Event], /, **fields: Any) -> None:
        self.t += 1.0
        seq = self._seq[writer] = self._seq.get(writer, -1) + 1
        event: Any = kind(v=1, w=writer, seq=seq, t=self.t, m=self.t, **fields)
        self.events.append(event)

    def start(self, reason: str = "launch", supervisor: str = "s1", **fields: Any) -> Journal:
        self._add(
            supervisor,
            RunStarted,
            run="r",
            recipe="r",
            reason=StartReason(reason),
            stages=ORDER,
            kinds=["fake"] * 4,
            **fields,
        )
        return self

    def end(self, state: str, supervisor: str = "s1") -> Journal:
        self._add(supervisor, RunEnded, state=RunStatus(state))
        return self

    def attempt(
        self, stage: str, number: int, end: str = "", *, engine: bool = True, resumed: tuple[int, int] | None = None,
        supervisor_end: str | None = None, detail: str = "", scale: float = 1.0,
    ) -> Journal:  # fmt: skip
        """One attempt from its announcement to its end (`end` is the engine's reason, "" without one)."""
        writer = f"e-{stage}-{number}"
        self._add("s1", StageStarted, stage=stage, kind="fake", attempt=number)
        if engine:
            self._add(
                writer,
                WriterOpened,
                role=WriterRole.ENGINE,
                host="h",
                boot_id="b",
                pid=9,
                start_time=1,
                stage=stage,
                attempt=number,
            )
            point = None if resumed is None else ResumedFrom(attempt=resumed[0], step=resumed[1], sha256="f")
            self._add(
                writer,
                AttemptStarted,
                stage=stage,
                kind="fake",
                attempt=number,
                resumed_from=point,
                learning_rate_scale=scale,
            )
            if end == "guard":
                self._add(
                    writer, GuardTripped, stage=stage, attempt=number, guard="grad_norm", step=5, value=2e3, limit=1e3
                )
            if end == "succeeded":
                self._add(writer, StageSucceeded, stage=stage, attempt=number, fingerprint="f", manifest_sha256="m")
            if end:
                self._add(writer, AttemptEnded, stage=stage, attempt=number, reason=EndReason(end), detail=detail)
        if supervisor_end is not None or end:
            recorded = supervisor_end or end
            self._add(
                "s1",
                AttemptEnded,
                stage=stage,
                attempt=number,
                reason=EndReason(recorded),
                exit=0 if end else -9,
                detail=detail,
            )
        return self

    def done(self, *stages: str) -> Journal:
        for stage in stages:
            self.attempt(stage, 1, "succeeded")
        return self

    def facts(self) -> RunFacts:
        facts = RunFacts()
        add_facts(facts, self.events)
        return facts

    def next(self, recipe: RunRecipe | None = None, not_done: Iterable[str] = ()) -> RunStage | EndRun:
        facts = self.facts()
        action = next_action(
            recipe or plan(), facts, lambda name: bool(facts.stage(name).successes) and name not in not_done
        )
        return action.action


def test_stages_run_in_order_and_the_run_ends_with_the_last() -> None:
    journal = Journal().start()
    for name in ORDER:
        assert journal.next() == RunStage(name, resume=True, why="first attempt")
        journal.attempt(name, 1, "succeeded")
    assert journal.next() == EndRun(RunStatus.SUCCEEDED)


@pytest.mark.parametrize(
    ("end", "supervisor_end", "engine"),
    [
        ("error", None, True),
        ("out_of_memory", None, True),
        ("", "killed", True),
        ("", "died", True),
        ("", "unknown", True),
        ("", "died", False),
        ("", "error", False),
    ],
)
def test_a_failed_attempt_is_retried_from_its_checkpoint_until_max_attempts(
    end: str, supervisor_end: str | None, engine: bool
) -> None:
    journal = Journal().start().done("data")
    for number in (1, 2):
        journal.attempt("base", number, end, supervisor_end=supervisor_end, engine=engine, detail=f"trouble {number}")
        action = journal.next()
        assert isinstance(action, RunStage)
        assert (action.stage, action.resume, action.healthy_only, action.learning_rate_scale) == (
            "base",
            True,
            False,
            1.0,
        )
        assert f"trouble {number}" in action.why
    journal.attempt("base", 3, end, supervisor_end=supervisor_end, engine=engine, detail="trouble 3")
    assert journal.next() == EndRun(RunStatus.FAILED, "base: trouble 3 (attempt 3 of 3)", failed_stage="base")


@pytest.mark.parametrize("factor", [0.5, 0.1, 1.0])
def test_after_a_guard_the_retry_has_a_lower_rate_and_a_healthy_checkpoint(factor: float) -> None:
    journal = Journal().start().done("data").attempt("base", 1, "guard")
    first = journal.next(plan(factor=factor))
    assert isinstance(first, RunStage)
    assert (first.resume, first.healthy_only, first.learning_rate_scale) == (True, True, factor)
    second = journal.attempt("base", 2, "guard", resumed=(1, 4)).next(plan(factor=factor))
    assert isinstance(second, RunStage)
    assert second.learning_rate_scale == pytest.approx(factor**2)


def test_a_resume_after_a_guard_continues_from_a_healthy_checkpoint() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "guard")
    resumed = journal.start("resume", "s2").next()
    assert isinstance(resumed, RunStage)
    assert (resumed.resume, resumed.healthy_only) == (True, True)


def test_a_resume_after_a_crash_takes_the_newest_checkpoint() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "", supervisor_end="died")
    resumed = journal.start("resume", "s2").next()
    assert isinstance(resumed, RunStage)
    assert (resumed.resume, resumed.healthy_only) == (True, False)


def test_a_crash_after_a_guard_keeps_the_lower_rate() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "guard").attempt("base", 2, "", supervisor_end="killed")
    action = journal.next()
    assert isinstance(action, RunStage)
    assert (action.healthy_only, action.learning_rate_scale) == (True, 0.5)


def test_a_damaged_base_model_is_not_tried_again_and_no_other_rate_is_advised() -> None:
    detail = f"nonfinite_loss at step 1: nan; {DAMAGED_START}: model.norm.weight is not finite"
    action = Journal().start().done("data").attempt("base", 1, "guard", detail=detail).next(plan(max_attempts=3))
    assert action == EndRun(RunStatus.FAILED, f"base: {detail}", failed_stage="base")


def test_with_one_attempt_there_is_no_retry() -> None:
    action = Journal().start().done("data").attempt("base", 1, "guard", detail="nan").next(plan(max_attempts=1))
    assert action == EndRun(RunStatus.FAILED, "base: nan (attempt 1 of 1)", failed_stage="base")


def test_a_stop_is_not_a_failure_and_ends_the_run() -> None:
    assert Journal().start().done("data").attempt("base", 1, RunStatus.STOPPED).next() == EndRun(
        RunStatus.STOPPED, "base was stopped"
    )
    forced = Journal().start().done("data").attempt("base", 1, "", supervisor_end="stopped")
    assert forced.next() == EndRun(RunStatus.STOPPED, "base was stopped")


def test_a_failed_gate_is_not_retried() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "refused", detail="loss <= 2 (got 3)")
    assert journal.next() == EndRun(RunStatus.REFUSED, "loss <= 2 (got 3)", failed_stage="base")


def test_the_engine_s_reason_has_priority_over_the_supervisor_s() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "guard", supervisor_end="died")
    action = journal.next()
    assert isinstance(action, RunStage)
    assert action.healthy_only


def test_an_attempt_without_a_process_does_not_count() -> None:
    journal = Journal().start().done("data")
    for number in range(1, 6):
        journal.attempt("base", number, engine=False, supervisor_end=EndReason.NOT_STARTED)
    assert journal.next() == RunStage("base", resume=True, why="first attempt")
    journal.attempt("base", 6, engine=False)
    assert journal.next() == RunStage("base", resume=True, why="first attempt")


def test_an_adoption_keeps_the_count_of_attempts_and_a_resume_resets_it() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "error").attempt("base", 2, "error")
    journal.start("adopt", "s2").attempt("base", 3, "error")
    assert isinstance(journal.next(), EndRun), "adoption gives no more attempts"
    journal.end("failed").start("resume", "s3")
    assert journal.next() == RunStage("base", resume=True, why="first attempt")
    journal.attempt("base", 4, "guard")
    action = journal.next()
    assert isinstance(action, RunStage)
    assert action.learning_rate_scale == 0.5
    journal.attempt("base", 5, "error").attempt("base", 6, "error")
    assert isinstance(journal.next(), EndRun)


def test_a_changed_output_is_rebuilt_before_later_stages_run() -> None:
    journal = Journal().start().done(*ORDER).end("succeeded").start("resume", "s2")
    assert journal.next(not_done=["base"]) == RunStage("base", resume=True, why="first attempt")
    assert journal.next() == EndRun(RunStatus.SUCCEEDED)


def test_a_rerun_stage_and_its_dependents_start_from_step_0() -> None:
    journal = Journal().start().done(*ORDER).end("succeeded").start("resume", "s2", redo=["base"])
    facts = journal.facts()
    actions = next_action(plan(), facts, lambda name: bool(facts.stage(name).successes))
    assert actions.done == ["data"]
    assert actions.action == RunStage("base", resume=False, why="first attempt")
    journal.attempt("base", 2, "succeeded")
    assert journal.next() == RunStage("atlas", resume=False, why="first attempt")
    journal.attempt("atlas", 2, "error")
    action = journal.next()
    assert isinstance(action, RunStage)
    assert action.resume, "a retry goes on from the redone attempt's own checkpoints"
    journal.attempt("atlas", 3, "succeeded").attempt("report", 2, "succeeded")
    assert journal.next() == EndRun(RunStatus.SUCCEEDED)


def test_a_rerun_stage_whose_engine_died_before_it_began_still_starts_from_step_0() -> None:
    journal = Journal().start().attempt("data", 1, "succeeded").attempt("base", 1, "succeeded")
    journal.start("resume", "s2", redo=["base"]).attempt("base", 2, engine=False, supervisor_end="died")
    action = journal.next()
    assert isinstance(action, RunStage)
    assert not action.resume


def test_a_checkpoint_that_an_operator_names_is_used_until_an_engine_has_started_with_it() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "error")
    journal.start("resume", "s2", redo=["base"], checkpoint=40, checkpoint_stage="base")
    assert journal.next() == RunStage("base", resume=True, at_step=40, why="first attempt")
    journal.attempt("base", 2, engine=False, supervisor_end="died")
    again = journal.next()
    assert isinstance(again, RunStage)
    assert (again.resume, again.at_step) == (True, 40)
    journal.attempt("base", 3, "error", resumed=(1, 40))
    later = journal.next()
    assert later == EndRun(RunStatus.FAILED, "base: error (attempt 2 of 2)", "base") or isinstance(later, RunStage)
    assert isinstance(later, RunStage)
    assert (later.resume, later.at_step) == (True, None), "from now on the line of attempt 3 counts"
    journal.attempt("base", 4, "succeeded")
    assert journal.next() == RunStage("atlas", resume=False, why="first attempt")


def test_only_the_requested_stages_run() -> None:
    journal = Journal().start(only=["data", "base"])
    assert isinstance(journal.next(), RunStage)
    journal.done("data", "base")
    assert journal.next() == EndRun(RunStatus.SUCCEEDED)
    launched_so = Journal().start().done("data")
    assert launched_so.next(plan(only=["data"])) == EndRun(RunStatus.SUCCEEDED)


def test_a_resume_runs_a_stage_that_the_launch_left_out() -> None:
    journal = Journal().start(only=["data"]).done("data").end("succeeded")
    journal.start("resume", "s2", only=["data", "base"], redo=["base"])
    action = journal.next(plan(only=["data"]))
    assert isinstance(action, RunStage)
    assert action.stage == "base"


# ---- lineage


def lineage(*attempts: tuple[int, tuple[int, int] | None]) -> dict[int, int | None]:
    journal = Journal().start()
    for number, resumed in attempts:
        journal.attempt("base", number, "error", resumed=resumed)
    return journal.facts().stage("base").lineage()


def test_the_lineage_of_three_attempts_is_cut_where_each_was_resumed() -> None:
    assert lineage() == {}
    assert lineage((1, None)) == {1: None}
    assert lineage((1, None), (2, (1, 30)), (3, (2, 50))) == {3: None, 2: 50, 1: 30}
    assert lineage((1, None), (2, (1, 30)), (3, (1, 10))) == {3: None, 1: 10}, "attempt 2 is superseded whole"
    assert lineage((1, None), (2, (1, 30)), (3, (2, 20))) == {3: None, 2: 20, 1: 20}, "a step back cuts all before it"
    assert lineage((1, None), (2, None)) == {2: None}, "a fresh start has no past"
    assert lineage((1, None), (2, None), (3, (1, 7))) == {3: None, 1: 7}


def test_a_circle_of_attempts_ends() -> None:
    assert lineage((1, (2, 5)), (2, (1, 3))) == {2: None, 1: 3}
    assert lineage(
        (1, (1, 5)),
    ) == {1: None}


def test_attempts_that_never_began_are_not_in_the_lineage() -> None:
    journal = Journal().start().attempt("base", 1, "error").attempt("base", 2, engine=False, supervisor_end="died")
    assert journal.facts().stage("base").lineage() == {1: None}


# ---- order


def interleavings(events: list[AnyEvent], draw: random.Random) -> list[AnyEvent]:
    """The same records with their writers' orders kept and nothing else."""
    queues: dict[str, list[AnyEvent]] = {}
    for event in events:
        queues.setdefault(event.w, []).append(event)
    result = []
    while queues:
        writer = draw.choice(sorted(queues))
        result.append(queues[writer].pop(0))
        if not queues[writer]:
            del queues[writer]
    return result


def shown(facts: RunFacts) -> object:
    def stage(one: StageFacts) -> object:
        attempts = [
            (a.number, a.launched_t, a.started, a.opened, a.reason, a.detail, a.guard)
            for _, a in sorted(one.attempts.items())
        ]
        return attempts, sorted((e.attempt, e.w, e.seq) for e in one.successes), one.lineage()

    stages = {name: stage(one) for name, one in sorted(facts.stages.items()) if one.attempts or one.successes}
    return stages, facts.operator, facts.ended, facts.latest_start, facts.has_ended


@pytest.mark.parametrize("seed", range(60))
def test_the_order_between_writers_does_not_matter(seed: int) -> None:
    draw = random.Random(seed)
    journal = Journal().start()
    number = dict.fromkeys(ORDER, 0)
    for part in range(draw.randrange(1, 10)):
        for _ in range(draw.randrange(4)):
            name = draw.choice(ORDER)
            number[name] += 1
            end = draw.choice(["succeeded", "guard", "error", "stopped", "refused", ""])
            journal.attempt(
                name, number[name], end, engine=bool(end) or draw.random() < 0.5,
                supervisor_end=draw.choice([None, "died", "killed", EndReason.NOT_STARTED]), detail=draw.choice(["",
                "why"]),
                resumed=draw.choice([None, (draw.randrange(1, 5), draw.randrange(100))]),
            )  # fmt: skip
        if draw.random() < 0.3:
            journal.end(draw.choice(["failed", "succeeded"]), f"s{part + 1}")
        if draw.random() < 0.5:
            redo = draw.choice([[], ["base"]])
            journal.start(draw.choice(["adopt", "resume"]), f"s{part + 2}", redo=redo)
    expected = journal.facts()

    def decide(facts: RunFacts) -> object:
        return next_action(plan(), facts, lambda name: bool(facts.stage(name).successes))

    for _ in range(20):
        facts = RunFacts()
        mixed = interleavings(journal.events, draw)
        cut = draw.randrange(len(mixed) + 1)
        add_facts(facts, mixed[:cut])
        add_facts(facts, mixed[cut:])
        assert shown(facts) == shown(expected)
        assert decide(facts) == decide(expected)


def test_a_training_that_does_not_improve_is_not_retried_and_says_so() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "guard", detail="loss has not improved")
    trip = next(event for event in journal.events if isinstance(event, GuardTripped))
    place = journal.events.index(trip)
    journal.events[place] = msgspec.structs.replace(trip, guard="no_improvement")
    assert journal.next() == EndRun(RunStatus.FAILED, "base: loss has not improved", failed_stage="base")


def test_a_second_tripped_guard_is_counted_for_the_second_warm_up() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "guard").attempt("base", 2, "guard")
    action = journal.next()
    assert isinstance(action, RunStage)
    assert action.guard_trips == 2


def _lowered_twice() -> Journal:
    """A launch whose third attempt trains with a quarter of the rate, then an operator's stop."""
    journal = Journal().start().done("data").attempt("base", 1, "guard").attempt("base", 2, "guard", scale=0.5)
    return journal.attempt("base", 3, "stopped", scale=0.25).end("stopped")


def _change(number: int, field: str, stage: str = "base") -> FieldChanged:
    return FieldChanged(number=number, stage=stage, field=field, old="2e-4", new="1e-4")


def test_a_resume_keeps_the_rate_that_guards_lowered_and_says_so() -> None:
    journal = _lowered_twice().start("resume", "s2", launch=2, attempts={"base": 3})
    action = journal.next()
    assert isinstance(action, RunStage)
    assert (action.learning_rate_scale, action.guard_trips) == (0.25, 2)
    assert "stays scaled by 0.25" in action.note
    journal.attempt("base", 4, "guard", scale=0.25)
    retry = journal.next()
    assert isinstance(retry, RunStage)
    assert (retry.learning_rate_scale, retry.guard_trips, retry.note) == (0.125, 3, "")
    journal.attempt("base", 5, "stopped", scale=0.125).start("resume", "s3", launch=3, attempts={"base": 5})
    again = journal.next()
    assert isinstance(again, RunStage)
    assert again.learning_rate_scale == 0.125


@pytest.mark.parametrize("field", ["learning_rate", "retry.learning_rate_factor"])
def test_a_resume_that_sets_the_rate_has_the_operator_s_rate_and_later_resumes_too(field: str) -> None:
    journal = _lowered_twice().start("resume", "s2", launch=2, attempts={"base": 3}, changes=[_change(1, field)])
    for supervisor in ("s3", "s4"):
        action = journal.next()
        assert isinstance(action, RunStage)
        assert (action.learning_rate_scale, action.guard_trips) == (1.0, 0)
        assert "that of the recipe again" in action.note
        journal.start("resume", supervisor, launch=int(supervisor[1:]), attempts={"base": 3})
    journal.attempt("base", 4, "stopped").start("resume", "s5", launch=5, attempts={"base": 4})
    action = journal.next()
    assert isinstance(action, RunStage)
    assert (action.learning_rate_scale, action.note) == (1.0, "")


@pytest.mark.parametrize("change", [_change(1, "max_steps"), _change(1, "learning_rate", "atlas")])
def test_a_resume_that_changes_something_else_keeps_the_lowered_rate(change: FieldChanged) -> None:
    journal = _lowered_twice().start("resume", "s2", launch=2, attempts={"base": 3}, changes=[change])
    action = journal.next()
    assert isinstance(action, RunStage)
    assert action.learning_rate_scale == 0.25


def test_a_rerun_from_step_0_has_the_recipe_s_rate_also_after_a_stop() -> None:
    journal = _lowered_twice().start("resume", "s2", launch=2, attempts={"base": 3}, redo=["base"])
    action = journal.next()
    assert isinstance(action, RunStage)
    assert (action.resume, action.learning_rate_scale, action.guard_trips) == (False, 1.0, 0)
    journal.attempt("base", 4, "stopped").start("resume", "s3", launch=3, attempts={"base": 4})
    action = journal.next()
    assert isinstance(action, RunStage)
    assert (action.resume, action.learning_rate_scale) == (True, 1.0)


def test_the_advice_after_the_last_guard_is_below_the_rate_that_tripped_it() -> None:
    attempts = Attempts(memory_test_plan(learning_rate=1e-3))
    for scale in (1.0, 0.5):
        action = attempts.next()
        assert isinstance(action, RunStage)
        assert action.learning_rate_scale == scale
        attempts.attempt(EndReason.GUARD)
    end = attempts.next()
    assert isinstance(end, EndRun)
    assert "--set base.learning_rate=2.5e-4 " in end.reason


def test_an_attempt_that_stops_by_itself_gives_the_run_its_reason() -> None:
    journal = Journal().start().done("data").attempt("base", 1, "stopped", detail="wall_clock: 2h are over")
    assert journal.next() == EndRun(RunStatus.STOPPED, "base was stopped: wall_clock: 2h are over")
