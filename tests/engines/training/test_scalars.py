"""TensorBoard's own reader gets every number of the journal, once for each step, and never ends a training."""

from __future__ import annotations

import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.events.event import Event
from engines.events.results import Evaluated
from engines.events.steps import Step
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from engines.training.reports.scalars import scalars_of
from recipes.stages.training import training_needs
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage
from tests.engines.training.tiny import PRETRAIN

pytestmark = pytest.mark.torch
STAGE = {**PRETRAIN, "eval_steps": 2, "report_to": ["tensorboard"]}


def _single(value: float) -> float:
    """The nearest number that an event file has room for: IEEE 754 binary32."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _read(ctx: Any) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(RunDir(ctx.run_root).tensorboard(ctx.stage_name)), size_guidance={"scalars": 0})
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def _expected(events: list[Any]) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events:
        for tag, value in scalars_of(event).items():
            found.setdefault(tag, []).append((event.step, _single(value)))
    return found


def _journal(ctx: Any, attempt: int) -> list[Any]:
    return [event for kind in (Step, Evaluated) for event in of_kind(ctx, kind, attempt)]


def test_every_scalar_is_that_of_the_journal_and_a_resume_leaves_each_step_once(tmp_path: Path, tokens: Path) -> None:
    first = context(tmp_path, STAGE, {"data": tokens})
    run_stage(first)
    assert _read(first) == _expected(_journal(first, 1))
    assert {"train/loss", "train/learning_rate", "train/grad_norm", "eval/loss", "eval/perplexity"} <= _read(
        first
    ).keys()
    second = context(tmp_path, {**STAGE, "learning_rate": 1e-3}, {"data": tokens}, attempt=2,
                     resume=resume_point(first, 3))  # fmt: skip
    run_stage(second)
    kept = [event for event in _journal(first, 1) if event.step <= 3]
    expected = _expected(
        sorted([*kept, *_journal(second, 2)], key=lambda event: (isinstance(event, Evaluated), event.step))
    )
    assert _read(second) == expected
    assert [step for step, _ in expected["train/loss"]] == list(range(1, 9))


def test_a_reporter_that_fails_is_said_once_and_the_training_reaches_its_end(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, STAGE, {"data": tokens})
    folder = RunDir(ctx.run_root).tensorboard(ctx.stage_name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("a file where the folder should be")
    assert run_stage(ctx) is not None
    said = [event.message for event in of_kind(ctx, Warned) if "tensorboard failed" in event.message]
    assert len(said) == 1
    assert [event.step for event in of_kind(ctx, Step)] == list(range(1, 9))


def test_without_report_to_no_file_is_written(tmp_path: Path, tokens: Path) -> None:
    ctx = context(tmp_path, {**STAGE, "report_to": [], "max_steps": 1}, {"data": tokens})
    run_stage(ctx)
    assert not RunDir(ctx.run_root).tensorboard(ctx.stage_name).exists()


def test_a_number_that_was_not_measured_is_left_out() -> None:
    event: Event = Evaluated(
        stage="a", attempt=1, step=1, loss=None, perplexity=2.0, tokens=1, protocol="p", metrics={"m": 3.0}
    )
    assert isinstance(event, Evaluated)
    assert scalars_of(event) == {"eval/perplexity": 2.0, "eval/m": 3.0}


def test_wandb_that_is_not_installed_is_a_need_of_the_stage_and_ends_no_training(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    stage = {**STAGE, "report_to": ["wandb"], "max_steps": 1, "eval_steps": None}
    ctx = context(tmp_path, {key: value for key, value in stage.items() if value is not None}, {"data": tokens})
    assert "wandb" in training_needs(ctx.stage)
    assert run_stage(ctx) is not None
    assert [event.message for event in of_kind(ctx, Warned) if "report_to — wandb failed" in event.message]


@pytest.mark.parametrize("own", [True, False])
def test_mlflow_keeps_a_run_of_each_attempt_on_this_machine_or_where_the_environment_says(
    own: bool, tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="opt-in: MLflow is not a part of the development environment")
    ctx = context(tmp_path, {**STAGE, "report_to": ["mlflow"], "max_steps": 2}, {"data": tokens})
    at = f"sqlite:///{RunDir(ctx.run_root).mlflow(ctx.stage_name) / 'mlflow.db'}"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if not own:
        at = f"sqlite:///{tmp_path / 'elsewhere.db'}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", at)
    assert run_stage(ctx) is not None
    assert not [event.message for event in of_kind(ctx, Warned) if "mlflow" in event.message]
    client = mlflow.MlflowClient(at)
    [run] = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    assert run.info.status == "FINISHED"
    assert run.data.params["learning_rate"] == "0.003"
    for tag, values in _expected(_journal(ctx, 1)).items():
        found = sorted((point.step, _single(point.value)) for point in client.get_metric_history(run.info.run_id, tag))
        assert found == values


def test_wandb_keeps_a_run_of_each_attempt_on_this_machine(
    tmp_path: Path, tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb", reason="opt-in: W&B itself is not a part of the development environment")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    ctx = context(tmp_path, {**STAGE, "report_to": ["wandb"], "max_steps": 2}, {"data": tokens})
    assert run_stage(ctx) is not None
    assert not [event.message for event in of_kind(ctx, Warned) if "wandb" in event.message]
    [file] = RunDir(ctx.run_root).wandb(ctx.stage_name).rglob("*.wandb")
    content = file.read_bytes()
    for tag in scalars_of(of_kind(ctx, Step)[0]):
        assert tag.encode() in content
