"""After memory ran out, the retry's plan follows from the journal alone, for any supervisor."""

from __future__ import annotations

from typing import Any

import pytest

from cockpit.schedule.facts import RunFacts, add_facts
from cockpit.schedule.memory_plan import new_values
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.schedule.scheduling import EndRun, RunStage, next_action
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.kinds import AnyEvent
from engines.events.runs import Adjusted, RunStarted, StageStarted
from engines.events.writers import WriterOpened
from engines.words import EndReason, MemoryEnd, RunStatus, StartReason, WriterRole
from recipes.schema import Recipe
from recipes.stages.pretrain import PretrainStage
from recipes.stages.steps import planned_steps, smaller_batch
from tests.engines.training.tiny import PRETRAIN


def plan(**fields: Any) -> RunRecipe:
    retry = {"max_attempts": 2, **fields.pop("retry", {})}
    stage = {**PRETRAIN, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "retry": retry, **fields}
    recipe = Recipe.model_validate({"schema": 1, "name": "r", "stage": [stage]})
    return RunRecipe(recipe, ["base"], {"base": {}}, [])


class Attempts:
    """Attempts of the stage as the supervisors' and engines' records."""

    def __init__(self, recipe: RunRecipe) -> None:
        self.recipe = recipe
        self.events: list[AnyEvent] = []
        self.supervisor = ""
        self.number = 0
        self.start("launch")

    def start(self, reason: str) -> None:
        self.supervisor += "s"
        self._add(self.supervisor, RunStarted(
            run="r", recipe="r", reason=StartReason(reason), stages=["base"], kinds=["pretrain"],
            launch=len(self.supervisor), attempts={"base": self.number} if reason != "adopt" else {},
        ))  # fmt: skip

    def _add(self, writer: str, event: Any) -> None:
        seq = sum(known.w == writer for known in self.events)
        fields = {name: getattr(event, name) for name in event.__struct_fields__} | {"w": writer, "seq": seq, "v": 1}
        self.events.append(type(event)(**fields))

    def next(self) -> RunStage | EndRun:
        facts = RunFacts()
        add_facts(facts, self.events)
        return next_action(self.recipe, facts, lambda _: False).action

    def attempt(self, reason: EndReason, *, phase: str = "", memory: MemoryEnd = MemoryEnd.UNKNOWN) -> dict[str, Any]:
        """The next attempt as it is planned, with its end; returns its changed fields."""
        action = self.next()
        assert isinstance(action, RunStage), action
        self.number += 1
        engine = f"e{self.number}"
        self._add(self.supervisor, StageStarted(
            stage="base", kind="pretrain", attempt=self.number, launch=len(self.supervisor),
            adjusted=list(action.adjusted),
        ))  # fmt: skip
        self._add(engine, WriterOpened(
            role=WriterRole.ENGINE, host="h", boot_id="b", pid=1, start_time=1, stage="base", attempt=self.number
        ))  # fmt: skip
        self._add(engine, AttemptStarted(
            stage="base", kind="pretrain", attempt=self.number, learning_rate_scale=action.learning_rate_scale
        ))  # fmt: skip
        if reason == EndReason.KILLED:
            self._add(self.supervisor, AttemptEnded(
                stage="base", attempt=self.number, reason=reason, exit=-9, memory=memory
            ))  # fmt: skip
        else:
            detail = "RuntimeError: no memory"
            self._add(engine, AttemptEnded(
                stage="base", attempt=self.number, reason=reason, detail=detail, phase=phase
            ))  # fmt: skip
        return new_values(action.adjusted)


def test_memory_halves_the_micro_batch_three_times_then_checkpoints_then_ends_with_the_reason() -> None:
    attempts = Attempts(plan())
    found = [attempts.attempt(EndReason.OUT_OF_MEMORY) for _ in range(5)]
    rows = [(each.get("per_device_train_batch_size", 8), each.get("gradient_accumulation_steps", 1)) for each in found]
    assert rows == [(8, 1), (4, 2), (2, 4), (1, 8), (1, 8)]
    assert [each.get("gradient_checkpointing", False) for each in found] == [False] * 4 + [True]
    end = attempts.next()
    assert isinstance(end, EndRun)
    assert (end.state, "gradient_checkpointing is on" in end.reason) == (RunStatus.FAILED, True)


def test_every_change_says_from_what_to_what_and_because_of_which_attempt() -> None:
    attempts = Attempts(plan())
    attempts.attempt(EndReason.OUT_OF_MEMORY)
    action = attempts.next()
    assert isinstance(action, RunStage)
    because = "RuntimeError: no memory"
    assert action.adjusted == (
        Adjusted(field="per_device_train_batch_size", old="8", new="4", attempt=1, because=because),
        Adjusted(field="gradient_accumulation_steps", old="1", new="2", attempt=1, because=because),
    )


def test_a_supervisor_that_is_killed_between_two_attempts_changes_nothing_of_the_plan() -> None:
    whole, adopted = Attempts(plan()), Attempts(plan())
    for _ in range(4):
        whole.attempt(EndReason.OUT_OF_MEMORY)
        adopted.attempt(EndReason.OUT_OF_MEMORY)
        adopted.start("adopt")
        assert adopted.next() == whole.next()


def test_the_smaller_micro_batch_is_used_at_later_resumes_and_after_other_failures() -> None:
    attempts = Attempts(plan())
    attempts.attempt(EndReason.OUT_OF_MEMORY)
    half = attempts.attempt(EndReason.ERROR)
    assert attempts.attempt(EndReason.STOPPED) == half
    attempts.start("resume")
    assert attempts.attempt(EndReason.SUCCEEDED) == half == {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2,
    }  # fmt: skip


def test_retries_for_memory_do_not_use_up_the_attempts_of_other_failures() -> None:
    attempts = Attempts(plan())
    attempts.attempt(EndReason.OUT_OF_MEMORY)
    attempts.attempt(EndReason.OUT_OF_MEMORY)
    attempts.attempt(EndReason.ERROR)
    attempts.attempt(EndReason.ERROR)
    assert isinstance(attempts.next(), EndRun)


def test_without_automatic_retries_memory_ends_the_run_and_a_resume_with_retries_begins_with_the_half() -> None:
    attempts = Attempts(plan(retry={"max_attempts": 1}))
    attempts.attempt(EndReason.OUT_OF_MEMORY)
    assert isinstance(attempts.next(), EndRun)
    attempts.recipe = plan(retry={"max_attempts": 2})
    attempts.start("resume")
    assert attempts.attempt(EndReason.SUCCEEDED)["per_device_train_batch_size"] == 4


@pytest.mark.parametrize("halvings", [0, 1])
def test_halvings_are_those_that_the_recipe_declares(halvings: int) -> None:
    attempts = Attempts(plan(retry={"out_of_memory_halvings": halvings}))
    for _ in range(halvings + 1):
        attempts.attempt(EndReason.OUT_OF_MEMORY)
    last = attempts.attempt(EndReason.OUT_OF_MEMORY)
    assert last.pop("gradient_checkpointing") is True
    assert last.get("per_device_train_batch_size", 8) == 8 // 2**halvings
    assert isinstance(attempts.next(), EndRun)


def test_memory_that_an_evaluation_exhausts_halves_the_rows_of_the_evaluation_only() -> None:
    attempts = Attempts(plan(per_device_eval_batch_size=3))
    attempts.attempt(EndReason.OUT_OF_MEMORY, phase="evaluating")
    assert attempts.attempt(EndReason.OUT_OF_MEMORY, phase="evaluating") == {"per_device_eval_batch_size": 1}
    assert isinstance(attempts.next(), EndRun)


@pytest.mark.parametrize("phase", ["importing", "loading"])
def test_memory_that_loading_exhausts_is_not_retried_with_smaller_micro_batches(phase: str) -> None:
    attempts = Attempts(plan())
    attempts.attempt(EndReason.OUT_OF_MEMORY, phase=phase)
    end = attempts.next()
    assert isinstance(end, EndRun)
    assert f"while {phase}, before the first row" in end.reason


@pytest.mark.parametrize("memory", [MemoryEnd.PROVEN, MemoryEnd.PROBABLE])
def test_a_kill_for_memory_counts_and_another_kill_does_not(memory: MemoryEnd) -> None:
    attempts = Attempts(plan())
    attempts.attempt(EndReason.KILLED, memory=memory)
    assert attempts.attempt(EndReason.KILLED)["per_device_train_batch_size"] == 4
    assert attempts.attempt(EndReason.SUCCEEDED)["per_device_train_batch_size"] == 4


def test_a_field_that_a_resume_changes_has_the_operator_s_value() -> None:
    attempts = Attempts(plan(retry={"out_of_memory_halvings": 0}))
    attempts.attempt(EndReason.OUT_OF_MEMORY)
    assert attempts.attempt(EndReason.STOPPED) == {"gradient_checkpointing": True}
    attempts.recipe = plan(gradient_checkpointing=True)
    attempts.start("resume")
    assert attempts.attempt(EndReason.STOPPED) == {}


def test_a_smaller_micro_batch_keeps_every_step_s_rows_exactly() -> None:
    for rows in range(2, 50):
        for accumulation in (1, 2, 3, 8):
            found = smaller_batch(rows, accumulation)
            assert found is not None
            assert found[0] <= rows / 2
            assert found[0] * found[1] == rows * accumulation
            before, after = (
                PretrainStage.model_validate(
                    {**PRETRAIN, "max_steps": None, "num_train_epochs": 2.0, "per_device_train_batch_size": size,
                     "gradient_accumulation_steps": steps}
                )
                for size, steps in ((rows, accumulation), found)
            )  # fmt: skip
            assert planned_steps(before, 101) == planned_steps(after, 101)
    assert [smaller_batch(*case) for case in ((8, 1), (9, 1), (7, 2), (5, 2), (1, 4))] == [
        (4, 2), (3, 3), (2, 7), (2, 5), None,
    ]  # fmt: skip
