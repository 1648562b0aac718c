"""What a guard does to a run: the attempts that the schedule declares, the cause in the journal, the same rows again.

The stages run in this process, and the real schedule chooses the next attempt, its checkpoint and its rate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.schedule.checkpoint_choice import choose_checkpoint
from cockpit.schedule.facts import read_facts
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.schedule.scheduling import EndRun, next_action
from engines.context import GuardTrippedError, ResumePoint, StopRequested
from engines.events.attempts import AttemptEnded, AttemptStarted, ResumedFrom
from engines.events.kinds import AnyEvent
from engines.events.runs import RunStarted
from engines.events.steps import GuardTripped, Step
from engines.run_dir.paths import RunDir
from engines.words import EndReason, StartReason
from recipes.schema import Recipe
from tests.engines.preference.pairs import DPO, write_pairs
from tests.engines.training.attempts import context
from tests.engines.training.tiny import FINETUNE, PRETRAIN

pytestmark = pytest.mark.torch

STAGES: dict[str, dict[str, Any]] = {
    "pretrain": PRETRAIN,
    "adapter": FINETUNE,
    "model": {**{k: v for k, v in FINETUNE.items() if not k.startswith("lora") and k != "r"}, "output": "model"},
    "pairs": DPO,
}
MOST_ATTEMPTS = 3
more = pytest.mark.thorough


class Ended:
    """A run that has ended: its journal, and what the schedule says at last."""

    def __init__(self, events: list[AnyEvent], last: EndRun) -> None:
        self.last = last
        self.starts = [e for e in events if isinstance(e, AttemptStarted)]
        self.reasons = [e.reason for e in events if isinstance(e, AttemptEnded)]
        self.trips = [(e.attempt, e.guard, e.step) for e in events if isinstance(e, GuardTripped)]
        self.steps = [e for e in events if isinstance(e, Step)]

    @property
    def attempts(self) -> list[tuple[int, float]]:
        """The step from which each attempt continued, and the factor on its learning rate."""
        return [(0 if e.resumed_from is None else e.resumed_from.step, e.learning_rate_scale) for e in self.starts]

    def tokens_at(self, step: int) -> list[int]:
        """Tokens of the training up to this step, as each attempt that applied it counted them."""
        refused = {(attempt, at) for attempt, _, at in self.trips}
        return [e.tokens for e in self.steps if e.step == step and (e.attempt, step) not in refused]


def _run(folder: Path, fields: dict[str, Any], inputs: dict[str, Path], faults: dict[str, Any]) -> Ended:
    from engines.finetune.stage import run as finetune
    from engines.preference.stage import run as prefer
    from engines.pretrain.stage import run as pretrain

    kinds: dict[str, Any] = {"pretrain": pretrain, "finetune": finetune, "dpo": prefer}
    stage = {**fields, "retry": {"max_attempts": MOST_ATTEMPTS, **fields.get("retry", {})}}
    name = str(stage["name"])
    plan = RunRecipe(Recipe.model_validate({"schema": 1, "name": "r", "stage": [stage]}), [name], {name: {}}, [])
    first = context(folder, stage, inputs)
    first.emit(RunStarted(run="r", recipe="r", reason=StartReason.LAUNCH, stages=[name], kinds=[stage["kind"]]))
    for attempt in range(1, MOST_ATTEMPTS + 2):
        run = RunDir(first.run_root)
        facts = read_facts(run)
        reasons = [e.reason for e in first.events() if isinstance(e, AttemptEnded)]
        done = [name] if reasons[-1:] == [EndReason.SUCCEEDED] else []
        action = next_action(plan, facts, done.__contains__).action
        if isinstance(action, EndRun):
            return Ended(first.events(), action)
        assert action.adjusted == (), "no guard changes the batch"
        found = choose_checkpoint(run, name, facts.stage(name), healthy_only=action.healthy_only).chosen
        point = ResumePoint(found.attempt, found.step, found.path, found.sha256) if found and action.resume else None
        ctx = context(
            folder, stage, inputs, attempt=attempt, resume=point, test_faults=faults,
            learning_rate_scale=action.learning_rate_scale,
        )  # fmt: skip
        ctx.guard_trips = action.guard_trips
        resumed = None if point is None else ResumedFrom(attempt=point.attempt, step=point.step, sha256=point.sha256)
        ctx.emit(
            AttemptStarted(
                stage=name,
                kind=stage["kind"],
                attempt=attempt,
                resumed_from=resumed,
                learning_rate_scale=action.learning_rate_scale,
            )
        )
        reason, detail = EndReason.SUCCEEDED, ""
        try:
            kinds[stage["kind"]](ctx)
        except GuardTrippedError as error:
            reason, detail = EndReason.GUARD, str(error)
        except StopRequested as error:
            reason, detail = EndReason.STOPPED, str(error)
        ctx.emit(AttemptEnded(stage=name, attempt=attempt, reason=reason, detail=detail))
    raise AssertionError(f"more than {MOST_ATTEMPTS} attempts")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, tokens: Path, model: Path, messages: Path) -> dict[str, Any]:
    """The inputs of each kind."""
    pairs = write_pairs(tmp_path_factory.mktemp("pairs"))
    tuned = {"model": model, "data": messages}
    return {"pretrain": {"data": tokens}, "adapter": tuned, "model": tuned, "pairs": {"model": model, "data": pairs}}


KINDS = ["pretrain", *(pytest.param(kind, marks=more) for kind in ("adapter", "model"))]


@pytest.mark.parametrize("kind", [*KINDS, "pairs"])
def test_a_guard_at_the_very_first_step_begins_again_at_step_0_with_half_the_rate(
    tmp_path: Path, data: dict[str, Any], kind: str
) -> None:
    faults = {"nan_loss": {"step": 1, "micro_batch": 2}}
    stage = {**STAGES[kind], "max_steps": 2}
    run = _run(tmp_path / "tried", stage, data[kind], faults)
    assert run.trips == [(1, "nonfinite_loss", 1)], "loss and gradient are both not finite: one guard, the first cause"
    assert run.attempts == [(0, 1.0), (0, 0.5)]
    assert run.reasons == [EndReason.GUARD, EndReason.SUCCEEDED]
    whole = _run(tmp_path / "whole", stage, data[kind], {})
    assert [run.tokens_at(step) for step in (1, 2)] == [whole.tokens_at(step) for step in (1, 2)]


@more
@pytest.mark.parametrize("kind", STAGES)
def test_guards_in_two_attempts_lower_the_rate_twice_and_the_third_continues_from_the_newest_checkpoint(
    tmp_path: Path, data: dict[str, Any], kind: str
) -> None:
    faults = {
        "nan_loss": {"step": 4, "micro_batch": 1},
        "large_gradient": {"step": 6, "attempt": 2, "factor": 1e12},
    }
    stage = {**STAGES[kind], "save_steps": 2, "max_steps": 7}
    run = _run(tmp_path, stage, data[kind], faults)
    assert run.trips == [(1, "nonfinite_loss", 4), (2, "grad_norm", 6)]
    assert run.attempts == [(0, 1.0), (2, 0.5), (4, 0.25)]
    assert run.reasons == [EndReason.GUARD, EndReason.GUARD, EndReason.SUCCEEDED]
    for step in (3, 5):
        before, after = run.tokens_at(step)
        assert before == after


@more
@pytest.mark.parametrize("kind", STAGES)
def test_a_guard_that_trips_in_every_attempt_ends_the_run_after_those_that_the_recipe_allows(
    tmp_path: Path, data: dict[str, Any], kind: str
) -> None:
    """The attempt's time is over at the same step: the cause is the guard that refused the step."""
    stage = {**STAGES[kind], "max_steps": 2, "guards": {"grad_norm": 1e-12, "wall_clock_s": 1e-9}}
    run = _run(tmp_path, stage, data[kind], {})
    assert run.trips == [(attempt, "grad_norm", 1) for attempt in (1, 2, 3)]
    assert run.attempts == [(0, 1.0), (0, 0.5), (0, 0.25)]
    assert run.last.state == "failed"
    assert "grad_norm at step 1" in run.last.reason
    assert "learning_rate=" in run.last.reason


@more
@pytest.mark.parametrize("kind", STAGES)
def test_a_spike_is_retried_from_before_it_began(
    tmp_path: Path, data: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.training.steps.mixin import EngineMixin

    before = EngineMixin.compute_loss

    def risen(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = before(self, *args, **kwargs)
        return loss + (20.0 if self.session.ctx.attempt == 1 and self.state.global_step >= 70 else 0.0)

    monkeypatch.setattr(EngineMixin, "compute_loss", risen)
    stage = {**STAGES[kind], "max_steps": 75, "num_train_epochs": 75.0, "save_steps": 30, "learning_rate": 1e-5}
    run = _run(tmp_path, stage, data[kind], {})
    assert run.trips == [(1, "loss_spike", 73)], "the third step of it"
    assert run.attempts == [(0, 1.0), (60, 0.5)]
    assert run.reasons == [EndReason.GUARD, EndReason.SUCCEEDED]
    before_it, after = run.tokens_at(72)
    assert before_it == after


@more
@pytest.mark.parametrize("kind", STAGES)
def test_no_improvement_ends_the_run_without_a_retry(tmp_path: Path, data: dict[str, Any], kind: str) -> None:
    stage = {**STAGES[kind], "learning_rate": 1e-30, "max_steps": 400, "num_train_epochs": 400.0, "save_steps": 1000}
    stage |= {"guards": {"no_improvement": 12, "no_improvement_on": "eval_loss"}, "eval_steps": 2}
    run = _run(tmp_path, stage, data[kind], {})
    ((_, guard, step),) = run.trips
    assert (guard, step) == ("no_improvement", 14)
    assert (run.attempts, run.reasons, run.last.state) == ([(0, 1.0)], [EndReason.GUARD], "failed")


@more
@pytest.mark.parametrize("kind", STAGES)
def test_time_that_is_over_stops_the_run_without_a_retry(tmp_path: Path, data: dict[str, Any], kind: str) -> None:
    run = _run(tmp_path, {**STAGES[kind], "guards": {"wall_clock_s": 1e-9}}, data[kind], {})
    assert run.trips == [(1, "wall_clock", 1)]
    assert (run.attempts, run.reasons, run.last.state) == ([(0, 1.0)], [EndReason.STOPPED], "stopped")
    assert "checkpoint step-1 is saved" in run.last.reason
