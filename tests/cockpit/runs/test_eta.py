"""The time left is the run's, includes what lies between steps, and says how sure it is."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from cockpit.runs.eta import PlannedStage, read_plan, stage_time_left, time_left
from cockpit.runs.state import fold
from engines.events.attempts import AttemptStarted
from engines.events.results import Evaluated
from engines.events.runs import ControlApplied, RunStarted, StageStarted
from engines.events.steps import CheckpointCommitted, Step
from engines.run_dir.paths import RunDir
from engines.words import StartReason
from tests.tui import journals
from tests.tui.journals import Journal

E = "e1.train"


def begun(*stages: str) -> Journal:
    journal = Journal()
    journal.open("sup", "supervisor")
    kinds = ["finetune"] * len(stages)
    journal.say("sup", RunStarted(run="r", recipe="r", reason=StartReason.LAUNCH, stages=list(stages), kinds=kinds))
    journal.say("sup", StageStarted(stage="train", kind="finetune", attempt=1, steps=1000))
    journal.open(E, "engine", "train", 1)
    journal.say(E, AttemptStarted(stage="train", kind="finetune", attempt=1, total_steps=1000))
    return journal


def step(journal: Journal, number: int, step_s: float, after_s: float) -> None:
    event = Step(
        stage="train", attempt=1, step=number, epoch=0.0, loss=1.0, learning_rate=1e-4, grad_norm=1.0,
        tokens=number, loss_tokens=number, step_s=step_s,
    )  # fmt: skip
    journal.say(E, event, after_s)


def evaluated(journal: Journal, number: int, seconds: float) -> None:
    event = Evaluated(stage="train", attempt=1, step=number, loss=1.0, perplexity=2.7, tokens=1, protocol="token")
    journal.say(E, event, seconds)


@pytest.mark.parametrize("last", [101, 105, 109, 119, 250])
def test_evaluations_saves_and_what_lies_between_steps_are_included(last: int) -> None:
    journal = begun("train")
    for number in range(1, last + 1):
        step(journal, number, 1.0, 1.25)  # a quarter of a second between steps
        if number % 10 == 0:
            evaluated(journal, number, 15.0)
            saved = CheckpointCommitted(
                stage="train", attempt=1, step=number, path="p", sha256="0" * 64, healthy=True, best=False, bytes=1
            )
            journal.say(E, saved, 5.0)
    left = time_left(fold(journal.events))
    assert left is not None
    assert left.seconds == pytest.approx((1000 - last) * (1.25 + 2.0), rel=0.02)


def test_the_spread_is_that_of_the_recent_pace() -> None:
    steady, uneven = begun("train"), begun("train")
    chance = random.Random(1)
    for number in range(1, 101):
        step(steady, number, 1.0, 1.0)
        seconds = chance.uniform(0.5, 1.5)
        step(uneven, number, seconds, seconds)
    first, second = time_left(fold(steady.events)), time_left(fold(uneven.events))
    assert first is not None
    assert second is not None
    assert first.words == "ETA 15m"
    assert second.spread_s == pytest.approx(900 * 0.25, rel=0.35)
    assert second.words.startswith("ETA 1")
    assert " ±" in second.words


def test_a_pause_and_a_changed_clock_are_not_pace() -> None:
    journal = begun("train")
    for number in range(1, 101):
        if number == 50:
            journal.say(E, ControlApplied(request="pause", by="x", effect="paused", step=49, stage="train"), 0.5)
            journal.say(E, ControlApplied(request="continue", by="x", effect="continued", stage="train"), 1800.0)
        if number == 70:
            journal.t += 86_400
        if number == 80:
            journal.t -= 86_400
        step(journal, number, 1.0, 1.5)
    left = time_left(fold(journal.events))
    assert left is not None
    assert left.seconds == pytest.approx(900 * 1.5, rel=0.02)


def test_the_run_s_time_is_said_only_where_every_later_stage_is_known() -> None:
    journal = begun("train", "second")
    for number in range(1, 101):
        step(journal, number, 1.0, 1.0)
    state = fold(journal.events)
    left = time_left(state)
    assert left is not None
    assert left.words == "stage ETA 15m"
    alike: tuple[object, ...] = ("finetune", 10, 10, 4096)
    whole = time_left(state, {"train": PlannedStage(1000, alike), "second": PlannedStage(600, alike)})
    assert whole is not None
    assert whole.seconds == pytest.approx(1500)
    assert whole.words == "ETA 25m"
    other = time_left(state, {"train": PlannedStage(1000, alike), "second": PlannedStage(600, ("finetune", 99, 10, 1))})
    assert other is not None
    assert not other.of_run, "a stage of another size has another pace"


def test_the_plan_is_read_from_the_run_and_a_strange_one_is_no_plan(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    stage = {"name": "a", "kind": "finetune", "steps": 7, "parameters": 1, "trainable_parameters": 1}
    run.plan_json.write_text(json.dumps({"stages": [{**stage, "tokens_per_step": 8}]}))
    assert read_plan(run) == {"a": PlannedStage(7, ("finetune", 1, 1, 8))}
    for strange in ("", "[]", '{"stages": 3}', '{"stages": [1]}', '{"stages": [{}]}'):
        run.plan_json.write_text(strange)
        assert read_plan(run) == {}
    run.plan_json.unlink()
    assert read_plan(run) == {}


def test_a_stage_without_steps_has_a_spread_too() -> None:
    stage = fold(journals.merging().events).stage("base-merged")
    assert stage is not None
    left = stage_time_left(stage)
    assert left is not None
    assert left.spread_s is not None
