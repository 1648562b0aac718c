"""A resumed training equals an uninterrupted one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from engines.events.results import Evaluated
from engines.events.steps import CheckpointRemoved, StepsPlanned
from engines.events.writers import Warned
from engines.words import Verb
from recipes.problems import OperatorError
from tests.engines.training.attempts import (
    ask,
    committed_steps,
    context,
    of_kind,
    resume_point,
    run_stage,
    trajectory,
)
from tests.engines.training.tiny import CHATML, FINETUNE, PRETRAIN, weights_sha256

pytestmark = pytest.mark.torch


@pytest.fixture(params=["pretrain", "finetune"])
def case(
    request: pytest.FixtureRequest, tokens: Path, model: Path, messages: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A stage with dropout and accumulation whose epoch ends in a partial window, and its inputs."""
    if request.param == "pretrain":
        return {**PRETRAIN, "eval_steps": 2}, {"data": tokens}
    return {**FINETUNE, "eval_steps": 2}, {"model": model, "data": messages}


def test_resumed_is_bit_identical_from_the_middle_of_an_epoch_and_from_its_end(
    tmp_path: Path, case: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    stage, inputs = case
    stage = {**stage, "save_steps": 1}
    whole = context(tmp_path / "whole", stage, inputs)
    result = run_stage(whole)
    assert result is not None
    for attempt, step in enumerate((3, 4, 6), start=2):  # 4 and 6 end the epochs of the two stages
        again = context(tmp_path / "whole", stage, inputs, attempt=attempt, resume=resume_point(whole, step))
        resumed = run_stage(again)
        assert resumed is not None
        assert trajectory(again, attempt) == trajectory(whole, 1, after=step)
        assert weights_sha256(again.out) == weights_sha256(whole.out)
        losses = [(event.step, event.loss) for event in of_kind(whole, Evaluated, 1) if (event.step or 0) > step]
        assert [(event.step, event.loss) for event in of_kind(again, Evaluated, attempt)] == losses
        assert resumed.metrics["loss"] == result.metrics["loss"]
        assert resumed.metrics["tokens"] == result.metrics["tokens"]
        assert not of_kind(again, Warned)


@pytest.mark.parametrize(
    "options",
    [
        {"bf16": True, "gradient_checkpointing": True, "dataloader_num_workers": 1},
        {"optim": "adamw_8bit", "hidden_size": 256, "intermediate_size": 256},
    ],
    ids=["bf16-checkpointing-workers", "adamw_8bit"],
)
def test_resumed_is_bit_identical_with_other_arithmetic(options: dict[str, Any], tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, **options}
    whole = context(tmp_path, stage, {"data": tokens})
    run_stage(whole)
    again = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(whole, 3))
    run_stage(again)
    assert trajectory(again, 2) == trajectory(whole, 1, after=3)
    assert weights_sha256(again.out) == weights_sha256(whole.out)


def test_evaluating_and_sampling_do_not_change_the_training(tmp_path: Path, tokens: Path) -> None:
    plain = context(tmp_path / "plain", PRETRAIN, {"data": tokens})
    busy = context(tmp_path / "busy", {**PRETRAIN, "eval_steps": 1, "sample_steps": 1}, {"data": tokens})
    run_stage(plain)
    run_stage(busy)
    assert trajectory(plain, 1) == trajectory(busy, 1)
    assert weights_sha256(plain.out) == weights_sha256(busy.out)


def test_stop_after_checkpoint_then_resume_ends_in_the_same_weights(
    tmp_path: Path, case: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    stage, inputs = case
    whole = context(tmp_path / "whole", stage, inputs)
    run_stage(whole)
    stopped = context(tmp_path / "stopped", stage, inputs)
    ask(stopped, Verb.STOP_AFTER_CHECKPOINT)
    assert run_stage(stopped) is None
    assert committed_steps(stopped, 1) == [1]
    again = context(tmp_path / "stopped", stage, inputs, attempt=2, resume=resume_point(stopped, 1))
    assert run_stage(again) is not None
    assert trajectory(again, 1) + trajectory(again, 2) == trajectory(whole, 1)
    assert weights_sha256(again.out) == weights_sha256(whole.out)


def test_an_epoch_count_plans_the_steps_that_are_taken(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "max_steps": None, "num_train_epochs": 1.5}
    ctx = context(tmp_path, stage, {"data": tokens})
    run_stage(ctx)
    assert [event.total_steps for event in of_kind(ctx, StepsPlanned)] == [9]
    assert [row[0] for row in trajectory(ctx, 1)] == list(range(1, 10))


def test_resume_from_the_last_step_only_writes_the_output(tmp_path: Path, tokens: Path) -> None:
    stage = {**PRETRAIN, "eval_steps": 8}
    whole = context(tmp_path, stage, {"data": tokens})
    result = run_stage(whole)
    again = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(whole, 8))
    resumed = run_stage(again)
    assert result is not None
    assert resumed is not None
    assert trajectory(again, 2) == []
    assert weights_sha256(again.out) == weights_sha256(whole.out)
    kept = ("loss", "steps", "tokens", "eval_loss")
    assert [resumed.metrics[name] for name in kept] == [result.metrics[name] for name in kept]


def test_a_retry_continues_with_the_scaled_learning_rate(tmp_path: Path, tokens: Path) -> None:
    whole = context(tmp_path, PRETRAIN, {"data": tokens})
    run_stage(whole)
    again = context(
        tmp_path, PRETRAIN, {"data": tokens}, attempt=2, resume=resume_point(whole, 3), learning_rate_scale=0.5
    )
    run_stage(again)
    full = [float.fromhex(row[3]) for row in trajectory(whole, 1, after=3)]
    assert [float.fromhex(row[3]) for row in trajectory(again, 2)] == [rate / 2 for rate in full]


def test_rotation_covers_the_lineage_and_leaves_replaced_checkpoints(tmp_path: Path, tokens: Path) -> None:
    whole = context(tmp_path, PRETRAIN, {"data": tokens})
    run_stage(whole)
    stage = {**PRETRAIN, "save_total_limit": 1}
    again = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(whole, 3))
    run_stage(again)
    removed = [(event.attempt, event.step) for event in of_kind(again, CheckpointRemoved)]
    assert removed == [(1, 3), (2, 6)]
    assert sorted(path.name for path in whole.checkpoints.iterdir()) == ["step-6", "step-8"]
    assert sorted(path.name for path in again.checkpoints.iterdir()) == ["step-8"]


def test_leftovers_of_a_dead_attempt_are_cleaned_and_a_changed_checkpoint_is_refused(
    tmp_path: Path, tokens: Path
) -> None:
    whole = context(tmp_path, PRETRAIN, {"data": tokens})
    run_stage(whole)
    point = resume_point(whole, 6)
    (whole.checkpoints / ".tmp-step-9-dead").mkdir()
    (whole.checkpoints / ".trash-step-1-dead").mkdir()
    again = context(tmp_path, PRETRAIN, {"data": tokens}, attempt=2, resume=point)
    run_stage(again)
    assert sorted(path.name for path in whole.checkpoints.iterdir()) == ["step-3", "step-6", "step-8"]
    manifest = point.path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes() + b" ")
    with pytest.raises(OperatorError, match="has changed since the checkpoint was chosen"):
        run_stage(context(tmp_path, PRETRAIN, {"data": tokens}, attempt=3, resume=point))


def test_other_versions_or_threads_are_warned_about(tmp_path: Path, tokens: Path) -> None:
    import json

    from engines.artifacts.manifest import manifest_sha256
    from engines.context import ResumePoint

    whole = context(tmp_path, PRETRAIN, {"data": tokens})
    run_stage(whole)
    path = whole.checkpoints / "step-6"
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["threads"] = 64
    manifest["world_size"] = 2
    manifest["versions"]["torch"] = "1.0"
    (path / "manifest.json").write_text(json.dumps(manifest))
    point = ResumePoint(1, 6, path, manifest_sha256(path))
    again = context(tmp_path, PRETRAIN, {"data": tokens}, attempt=2, resume=point)
    run_stage(again)
    [warning] = of_kind(again, Warned)
    assert "may differ from an uninterrupted run" in warning.message
    assert "threads was 64, now 1" in warning.message
    assert "world_size was 2, now 1" in warning.message
    assert "torch was 1.0" in warning.message


def test_fields_changed_since_the_checkpoint_take_effect_and_the_others_do_not_move(
    tmp_path: Path, case: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    """The checkpoint contains the optimizer's settings and the schedule; the stage's fields win over them."""
    stage, inputs = case
    whole = context(tmp_path / "whole", stage, inputs)
    run_stage(whole)
    new = {"learning_rate": 7e-4, "lr_scheduler_type": "constant", "weight_decay": 0.05, "adam_beta1": 0.7}
    again = context(tmp_path / "whole", {**stage, **new}, inputs, attempt=2, resume=resume_point(whole, 3))
    run_stage(again)
    assert {float.fromhex(row[3]) for row in trajectory(again, 2)} == {7e-4}
    groups = torch.load(again.checkpoints / "step-6" / "optimizer.pt", weights_only=False)["param_groups"]
    assert {group["betas"] for group in groups} == {(0.7, PRETRAIN.get("adam_beta2", 0.999))}
    assert 0.05 in {group["weight_decay"] for group in groups}


def test_more_steps_at_a_resume_extend_the_training(tmp_path: Path, tokens: Path) -> None:
    whole = context(tmp_path, PRETRAIN, {"data": tokens})
    run_stage(whole)
    stage = {**PRETRAIN, "max_steps": 11}
    again = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(whole, 8))
    run_stage(again)
    assert [row[0] for row in trajectory(again, 2)] == [9, 10, 11]


def test_a_changed_number_of_steps_wins_over_an_earlier_request_to_end_sooner(tmp_path: Path, tokens: Path) -> None:
    short = context(tmp_path, PRETRAIN, {"data": tokens})
    ask(short, Verb.MAX_STEPS, 3)
    run_stage(short)
    assert committed_steps(short, 1) == [3]
    same = context(tmp_path, PRETRAIN, {"data": tokens}, attempt=2, resume=resume_point(short, 3))
    run_stage(same)
    assert trajectory(same, 2) == []
    stage = {**PRETRAIN, "max_steps": 5}
    more = context(tmp_path, stage, {"data": tokens}, attempt=3, resume=resume_point(short, 3))
    run_stage(more)
    assert [row[0] for row in trajectory(more, 3)] == [4, 5]


def test_a_changed_peak_wins_over_an_earlier_request_and_an_unchanged_one_does_not(
    tmp_path: Path, tokens: Path
) -> None:
    stage = {**PRETRAIN, "lr_scheduler_type": "constant", "warmup_steps": 0.0}
    live = context(tmp_path, stage, {"data": tokens})
    ask(live, Verb.LEARNING_RATE, 5e-4)
    run_stage(live)
    same = context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(live, 3))
    run_stage(same)
    assert {float.fromhex(row[3]) for row in trajectory(same, 2)} == {5e-4}
    changed = {**stage, "learning_rate": 9e-4}
    again = context(tmp_path, changed, {"data": tokens}, attempt=3, resume=resume_point(live, 3))
    run_stage(again)
    assert {float.fromhex(row[3]) for row in trajectory(again, 3)} == {9e-4}


def test_a_checkpoint_beyond_the_last_step_is_refused(tmp_path: Path, tokens: Path) -> None:
    whole = context(tmp_path, PRETRAIN, {"data": tokens})
    run_stage(whole)
    stage = {**PRETRAIN, "max_steps": 5}
    with pytest.raises(OperatorError, match="checkpoint of step 6 lies beyond the last step"):
        run_stage(context(tmp_path, stage, {"data": tokens}, attempt=2, resume=resume_point(whole, 6)))


def test_a_template_that_writes_the_date_writes_that_of_the_first_start_also_after_a_resume(
    tmp_path: Path, model: Path, messages: Path
) -> None:
    template = tmp_path / "dated.jinja"
    template.write_text("{{ '<|im_start|>system\\n' + strftime_now('%A %d %B %Y') + '<|im_end|>\\n' }}" + CHATML)
    stage = {**FINETUNE, "chat_template": str(template), "max_length": 128, "max_steps": 2, "save_steps": 1}
    inputs = {"model": model, "data": messages}
    whole = context(tmp_path, stage, inputs)
    whole.first_start = "2020-02-29T23:59:00"
    assert run_stage(whole) is not None
    again = context(tmp_path, stage, inputs, attempt=2, resume=resume_point(whole, 1))
    again.first_start = "2024-05-01T00:00:00"
    assert run_stage(again) is not None
    assert trajectory(again, 2) == trajectory(whole, 1, after=1)
    assert weights_sha256(again.out) == weights_sha256(whole.out)
    said = [event.message for event in of_kind(again, Warned) if "writes a date" in event.message]
    assert len(said) == 2
    assert all("2020-02-29, when the stage first started" in text for text in said)
