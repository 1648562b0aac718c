"""Requests at step boundaries: each is answered and has the stated effect."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from engines.events.attempts import Phase
from engines.events.event import Event
from engines.events.results import Evaluated, SampledText
from engines.events.runs import ControlApplied
from engines.events.steps import CheckpointCommitted, Step, StepsPlanned
from engines.training.schedule import Schedule
from engines.words import Verb
from recipes import quantities
from tests.engines.training.attempts import ask, committed_steps, context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, PRETRAIN, weights_sha256

pytestmark = pytest.mark.torch

STEADY = {**PRETRAIN, "lr_scheduler_type": "linear", "warmup_steps": 0.0}


def _effects(ctx: object) -> list[tuple[str, str]]:
    return [(event.request, event.effect) for event in of_kind(ctx, ControlApplied)]  # type: ignore[arg-type]


def test_stop_ends_immediately_without_a_checkpoint(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    ask(ctx, Verb.STOP, at_step=2)
    assert run_stage(ctx) is None
    assert [row[0] for row in trajectory(ctx, 1)] == [1, 2]
    assert committed_steps(ctx, 1) == []
    [(request, effect)] = _effects(ctx)
    assert request == "stop"
    assert effect == "stopping now; a resume restarts from step 0: there is no checkpoint"


def test_a_stop_names_the_checkpoint_from_which_a_resume_continues(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    ask(ctx, Verb.STOP, at_step=4)
    assert run_stage(ctx) is None
    assert _effects(ctx) == [("stop", "stopping now; a resume continues from the checkpoint of step 3")]


def test_a_termination_signal_stops_after_a_checkpoint(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    emit = ctx.emit

    def signal_at_two(event: Event) -> int:
        if isinstance(event, Step) and event.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return emit(event)

    ctx.emit = signal_at_two  # type: ignore[method-assign]
    before = signal.signal(signal.SIGTERM, ctx.on_signal)
    try:
        assert run_stage(ctx) is None
    finally:
        signal.signal(signal.SIGTERM, before)
    assert committed_steps(ctx, 1) == [2]
    [answer] = of_kind(ctx, ControlApplied)
    assert (answer.by, answer.effect, answer.step) == ("SIGTERM", "stopping after checkpoint step-2", 2)


def test_checkpoint_evaluate_and_sample_now(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    for verb in (Verb.EVALUATE, Verb.SAMPLE, Verb.CHECKPOINT):
        ask(ctx, verb, at_step=2)
    assert run_stage(ctx) is not None
    assert committed_steps(ctx, 1) == [2, 3, 6, 8]
    [evaluated] = of_kind(ctx, Evaluated)
    assert (evaluated.step, evaluated.tokens) == (2, 93)
    [sample] = of_kind(ctx, SampledText)
    assert (sample.step, sample.prompt) == (2, "def ")
    [first, *_] = of_kind(ctx, CheckpointCommitted)
    assert (first.loss, first.best) == (evaluated.loss, True)
    assert len(_effects(ctx)) == 3


def test_a_new_learning_rate_is_used_from_the_next_step_and_survives_a_resume(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, STEADY, {"data": tokens})
    ask(ctx, Verb.LEARNING_RATE, 1e-3, at_step=2)
    run_stage(ctx)
    shape = Schedule("linear", warmup=0, total=8, min_rate=0.0)
    rates = [event.learning_rate for event in of_kind(ctx, Step)]
    assert rates[:2] == [3e-3, 3e-3 * shape(1)]
    assert rates[2:] == pytest.approx([1e-3 * shape(done) for done in range(2, 8)])
    again = context(tmp_path, STEADY, {"data": tokens}, attempt=2, resume=resume_point(ctx, 3))
    run_stage(again)
    assert trajectory(again, 2) == trajectory(ctx, 1, after=3)
    assert weights_sha256(again.out) == weights_sha256(ctx.out)


def test_fewer_steps_end_the_stage_and_the_schedule_and_survive_a_resume(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, STEADY, {"data": tokens})
    ask(ctx, Verb.MAX_STEPS, 5, at_step=2)
    result = run_stage(ctx)
    assert result is not None
    assert result.metrics["steps"] == 5
    assert committed_steps(ctx, 1) == [3, 5]
    assert [event.total_steps for event in of_kind(ctx, StepsPlanned)] == [8, 5]
    shape = Schedule("linear", warmup=0, total=5, min_rate=0.0)
    assert [event.learning_rate for event in of_kind(ctx, Step)][2:] == [3e-3 * shape(done) for done in (2, 3, 4)]
    again = context(tmp_path, STEADY, {"data": tokens}, attempt=2, resume=resume_point(ctx, 3))
    assert run_stage(again) is not None
    assert trajectory(again, 2) == trajectory(ctx, 1, after=3)
    assert weights_sha256(again.out) == weights_sha256(ctx.out)


@pytest.mark.parametrize("at_step", [2, 8])
def test_more_steps_extend_the_stage_beyond_its_epochs_and_survive_a_resume(
    tmp_path: Path, model: Path, messages: Path, at_step: int
) -> None:
    inputs = {"model": model, "data": messages}
    stage = {**FINETUNE, "lr_scheduler_type": "linear", "warmup_steps": 0.0}
    ctx = context(tmp_path, stage, inputs)
    ask(ctx, Verb.MAX_STEPS, 12, at_step=at_step)
    result = run_stage(ctx)
    assert result is not None
    assert result.metrics["steps"] == 12
    assert [row[0] for row in trajectory(ctx, 1)] == list(range(1, 13))
    assert committed_steps(ctx, 1) == [3, 6, *([8] if at_step == 8 else []), 9, 12]
    assert _effects(ctx) == [("max-steps 12", "the stage ends at step 12, not 8")]
    shape = Schedule("linear", warmup=0, total=12, min_rate=0.0)
    later = [event for event in of_kind(ctx, Step) if event.step > at_step]
    assert [event.learning_rate for event in later] == [3e-3 * shape(event.step - 1) for event in later]
    again = context(tmp_path, stage, inputs, attempt=2, resume=resume_point(ctx, 9))
    assert run_stage(again) is not None
    assert trajectory(again, 2) == trajectory(ctx, 1, after=9)
    assert weights_sha256(again.out) == weights_sha256(ctx.out)


@pytest.mark.parametrize("fields", [PRETRAIN, FINETUNE])
def test_evaluate_sample_and_pause_leave_every_step_bit_equal(
    tmp_path: Path, tokens: Path, model: Path, messages: Path, fields: dict[str, object]
) -> None:
    inputs: dict[str, Path | str] = {"data": tokens}
    if fields is FINETUNE:
        inputs = {"model": model, "data": messages}
    plain = context(tmp_path / "plain", fields, inputs)
    run_stage(plain)
    ctx = context(tmp_path / "asked", fields, inputs)
    for step in (2, 5):
        ask(ctx, Verb.EVALUATE, at_step=step)
        ask(ctx, Verb.SAMPLE, at_step=step, text="def f(")
        ask(ctx, Verb.PAUSE, at_step=step)
        ask(ctx, Verb.CONTINUE, at_step=step)
    run_stage(ctx)
    assert [request for request, _ in _effects(ctx)] == ["evaluate", "sample def f(", "pause", "continue"] * 2
    assert not any(effect.startswith("ignored") for _, effect in _effects(ctx))
    assert [(sample.prompt, sample.step) for sample in of_kind(ctx, SampledText)] == [("def f(", 2), ("def f(", 5)]
    assert len(of_kind(ctx, Evaluated)) == 2
    assert trajectory(ctx, 1) == trajectory(plain, 1)
    assert weights_sha256(ctx.out) == weights_sha256(plain.out)


def test_the_answer_to_a_learning_rate_names_exactly_the_rate_of_the_next_step(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, {**PRETRAIN, "lr_scheduler_type": "cosine"}, {"data": tokens})
    ask(ctx, Verb.LEARNING_RATE, 1.7e-3, at_step=4)
    run_stage(ctx)
    [answer] = of_kind(ctx, ControlApplied)
    named = answer.effect.rpartition("the next step uses ")[2]
    rates = {event.step: event.learning_rate for event in of_kind(ctx, Step)}
    assert (answer.step, answer.number) == (4, 1)
    assert quantities.exact(rates[5] or 0.0) == named


def test_a_limit_below_the_present_step_ends_the_stage_at_this_step(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, {**STEADY, "eval_steps": 4}, {"data": tokens})
    ask(ctx, Verb.MAX_STEPS, 1, at_step=4)
    result = run_stage(ctx)
    assert result is not None
    assert result.metrics["steps"] == 4
    assert committed_steps(ctx, 1) == [3, 4]
    assert [event.step for event in of_kind(ctx, Evaluated)] == [4]
    assert _effects(ctx) == [("max-steps 1", "the stage ends at step 4, not 8")]


def test_pause_and_continue_at_the_same_time_do_not_hang(tmp_path: Path, tokens: Path) -> None:
    plain = context(tmp_path / "plain", PRETRAIN, {"data": tokens})
    run_stage(plain)
    ctx = context(tmp_path / "paused", PRETRAIN, {"data": tokens})
    ask(ctx, Verb.PAUSE, at_step=2)
    ask(ctx, Verb.CONTINUE, at_step=2)
    run_stage(ctx)
    assert [effect for _, effect in _effects(ctx)] == ["paused", "continued"]
    assert trajectory(ctx, 1) == trajectory(plain, 1)


def test_a_paused_training_answers_other_requests_and_a_stop_ends_it(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens})
    emit = ctx.emit

    def ask_while_paused(event: Event) -> int:
        from engines.control import put_request
        from engines.run_dir.paths import RunDir

        control = RunDir(ctx.run_root).control
        if isinstance(event, Step) and event.step == 2:
            put_request(control, Verb.PAUSE)
        if isinstance(event, Phase) and event.name == "paused":
            put_request(control, Verb.CHECKPOINT)
            put_request(control, Verb.STOP)
        return emit(event)

    ctx.emit = ask_while_paused  # type: ignore[method-assign]
    assert run_stage(ctx) is None
    assert committed_steps(ctx, 1) == [2]
    assert [request for request, _ in _effects(ctx)] == ["pause", "checkpoint", "stop"]


def test_requests_that_cannot_be_met_are_answered_and_change_nothing(
    tmp_path: Path, model: Path, messages: Path
) -> None:
    inputs = {"model": model, "data": messages}
    plain = context(tmp_path / "plain", FINETUNE, inputs)
    run_stage(plain)
    ctx = context(tmp_path / "asked", FINETUNE, inputs)
    ask(ctx, Verb.LEARNING_RATE, 7.0, at_step=2)
    ask(ctx, Verb.SAMPLE, at_step=2)
    ask(ctx, Verb.CONTINUE, at_step=2)
    run_stage(ctx)
    assert all(effect.startswith("ignored") for _, effect in _effects(ctx))
    assert len(_effects(ctx)) == 3
    assert trajectory(ctx, 1) == trajectory(plain, 1)


def test_a_stop_after_checkpoint_is_refused_when_the_checkpoint_fails(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, PRETRAIN, {"data": tokens}, test_faults={"disk_full": {"step": 2}})
    ask(ctx, Verb.STOP_AFTER_CHECKPOINT, at_step=2)
    assert run_stage(ctx) is not None
    [(_, effect)] = _effects(ctx)
    assert effect.startswith("ignored: the checkpoint could not be written")
