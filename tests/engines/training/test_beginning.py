"""A training that starts from another one: from its finished weights, or from its checkpoint, continued bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.custody import ancestors
from engines.artifacts.manifest import manifest_sha256, read_manifest, write_manifest
from engines.commit import commit_output
from engines.events.attempts import Phase
from engines.events.steps import Step
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import FINETUNE, PRETRAIN, weights_sha256
from tests.stage_context import TriedContext

pytestmark = pytest.mark.torch
Case = tuple[dict[str, Any], dict[str, Path | str]]


@pytest.fixture(params=["pretrain", "finetune"])
def case(request: pytest.FixtureRequest, tokens: Path, model: Path, messages: Path) -> Case:
    if request.param == "pretrain":
        return PRETRAIN, {"data": tokens}
    return FINETUNE, {"model": model, "data": messages}


def finished(folder: Path, case: Case) -> TriedContext:
    stage, inputs = case
    ctx = context(folder, stage, inputs)
    result = run_stage(ctx)
    assert result is not None
    metrics: dict[str, float | None] = dict(result.metrics)
    commit_output(ctx, result, metrics, refused="")
    return ctx


def out_of(ctx: TriedContext) -> Path:
    return RunDir(ctx.run_root).out(ctx.stage_name)


def test_a_checkpoint_of_another_run_is_continued_as_if_it_were_this_one(tmp_path: Path, case: Case) -> None:
    stage, inputs = case
    whole = finished(tmp_path / "whole", case)
    again = context(tmp_path / "next", stage, {**inputs, "start_from": whole.checkpoints / "step-3"})
    run_stage(again)
    assert trajectory(again, 1) == trajectory(whole, 1, after=3)
    assert weights_sha256(again.out) == weights_sha256(out_of(whole))
    assert any("continuing step-3 after step 3" in phase.name for phase in of_kind(again, Phase))
    first = again.checkpoints / "step-6"
    known = {link["id"] for link in ancestors(read_manifest(first))}
    assert manifest_sha256(whole.checkpoints / "step-3") in known, "custody leads to the checkpoint"


def test_a_continued_training_resumes_from_its_own_checkpoints(tmp_path: Path, tokens: Path) -> None:
    whole = finished(tmp_path / "whole", (PRETRAIN, {"data": tokens}))
    inputs: dict[str, Path | str] = {"data": tokens, "start_from": whole.checkpoints / "step-3"}
    stage = {**PRETRAIN, "max_steps": 11}
    once = context(tmp_path / "next", stage, inputs)
    run_stage(once)
    again = context(tmp_path / "next", stage, inputs, attempt=2, resume=resume_point(once, 9))
    run_stage(again)
    assert [row[0] for row in trajectory(once, 1)] == list(range(4, 12)), "three more steps than the first training had"
    assert trajectory(again, 2) == trajectory(once, 1, after=9)


def test_finished_weights_start_a_new_training_at_step_0_in_another_order(tmp_path: Path, case: Case) -> None:
    stage, inputs = case
    before = finished(tmp_path / "before", case)
    other = {**stage, "seed": 7, "per_device_train_batch_size": 1, "max_steps": 2, "warmup_steps": 0.0}
    fresh = context(tmp_path / "fresh", other, inputs)
    warm = context(tmp_path / "warm", other, {**inputs, "start_from": out_of(before)})
    run_stage(fresh)
    run_stage(warm)
    steps = of_kind(warm, Step)
    assert [step.step for step in steps] == [1, 2]
    assert steps[0].tokens == of_kind(fresh, Step)[0].tokens, "the same first window"
    assert (steps[0].loss or 0) < (of_kind(fresh, Step)[0].loss or 0), "trained weights are better than random ones"


@pytest.mark.parametrize("change", [{"hidden_size": 32}, {"num_hidden_layers": 3}, {"rope_theta": 500.0}])
def test_weights_that_do_not_fit_are_refused_by_name(change: dict[str, Any], tmp_path: Path, tokens: Path) -> None:
    before = finished(tmp_path / "before", (PRETRAIN, {"data": tokens}))
    warm = context(tmp_path / "warm", {**PRETRAIN, **change}, {"data": tokens, "start_from": out_of(before)})
    with pytest.raises(OperatorError, match=r"start_from — the weights in .* do not fit: .*(shape|missing|rope)"):
        run_stage(warm)


@pytest.mark.parametrize("change", [{"r": 2}, {"target_modules": ["q_proj"]}, {"lora_alpha": 3.0}])
def test_an_adapter_that_does_not_fit_is_refused_by_name(
    change: dict[str, Any], tmp_path: Path, model: Path, messages: Path
) -> None:
    inputs: dict[str, Path | str] = {"model": model, "data": messages}
    before = finished(tmp_path / "before", (FINETUNE, inputs))
    warm = context(tmp_path / "warm", {**FINETUNE, **change}, {**inputs, "start_from": out_of(before)})
    with pytest.raises(OperatorError, match=r"start_from — the weights in .* do not fit"):
        run_stage(warm)


def test_a_checkpoint_is_not_continued_on_other_data(tmp_path: Path, tokens: Path, tmp_path_factory: Any) -> None:
    from tests.engines.training.tiny import write_tokens

    whole = finished(tmp_path / "whole", (PRETRAIN, {"data": tokens}))
    others = write_tokens(tmp_path_factory.mktemp("others"), {"train": 16 * 30, "val": 100})
    again = context(tmp_path / "next", PRETRAIN, {"data": others, "start_from": whole.checkpoints / "step-3"})
    with pytest.raises(OperatorError, match="was trained with another data than"):
        run_stage(again)


def test_a_folder_without_weights_is_refused(tmp_path: Path, tokens: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    write_manifest(empty)
    with pytest.raises(OperatorError, match="has no safetensors file"):
        run_stage(context(tmp_path, PRETRAIN, {"data": tokens, "start_from": empty}))
