"""The numbers of a training for other programs, from the same events as the journal: `report_to`.

TensorBoard: one folder of the stage has the files of all its attempts. A resume purges what the files have after its
checkpoint, so that TensorBoard shows each step once. W&B: a run for each attempt, all of a stage in one group, because
its steps only rise. MLflow: the same, in an experiment of the stage. Nothing leaves the machine unless the launch's
environment says so (WANDB_MODE, MLFLOW_TRACKING_URI). A program that fails ends no training: it is said once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from engines.context import StageContext
from engines.events.results import Evaluated
from engines.events.steps import Step
from engines.run_dir.paths import RunDir
from engines.world import ALONE, World
from recipes.problems import printable
from recipes.stages.training import TrainingFields


class Reporter(Protocol):
    """Takes the numbers of steps."""

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Take the numbers of a step, by their tags."""

    def flush(self) -> None:
        """Bring everything to the files."""

    def close(self) -> None:
        """Write the rest and end."""


class _TensorBoard:
    def __init__(self, ctx: StageContext[TrainingFields], resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = RunDir(ctx.run_root).tensorboard(ctx.stage_name)
        self._writer: Any = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def write(self, values: Mapping[str, float], step: int) -> None:
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    def __init__(self, ctx: StageContext[TrainingFields], _resumed_step: int) -> None:
        import wandb

        folder = RunDir(ctx.run_root).wandb(ctx.stage_name)
        folder.mkdir(parents=True, exist_ok=True)
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "cockpit"),
            group=f"{ctx.run_id}-{ctx.stage_name}",
            name=f"{ctx.run_id}-{ctx.stage_name}-{ctx.attempt}",
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            config=ctx.stage.model_dump(mode="json"),
            settings=wandb.Settings(
                console="off", silent=True, save_code=False, disable_git=True, x_disable_stats=True
            ),
        )

    def write(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """W&B's own process writes its file."""

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, ctx: StageContext[TrainingFields], _resumed_step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        folder = RunDir(ctx.run_root).mlflow(ctx.stage_name)
        folder.mkdir(parents=True, exist_ok=True)
        # A database of this folder, as MLflow's own default is; its store of plain files is being retired.
        own = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
        self._client: Any = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or own)
        self._metric = Metric
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or f"{ctx.run_id}-{ctx.stage_name}"
        found = self._client.get_experiment_by_name(name)
        kept = None if "MLFLOW_TRACKING_URI" in os.environ else folder.resolve().as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifact_location=kept)
        run = self._client.create_run(experiment, run_name=f"{ctx.run_id}-{ctx.stage_name}-{ctx.attempt}")
        self._run: str = run.info.run_id
        fields = ctx.stage.model_dump(mode="json").items()
        self._client.log_batch(self._run, params=[Param(name, str(value)[:_LONGEST_PARAM]) for name, value in fields])

    def write(self, values: Mapping[str, float], step: int) -> None:
        now_ms = int(time.time() * 1000)  # noqa: TID251 - MLflow shows when a step was
        self._client.log_batch(self._run, metrics=[self._metric(tag, v, now_ms, step) for tag, v in values.items()])

    def flush(self) -> None:
        """Each batch is written at once."""

    def close(self) -> None:
        self._client.set_terminated(self._run)


_LONGEST_PARAM = 500
"""Characters of a value that MLflow takes in each of its stores."""

REPORTERS: Mapping[str, Callable[[StageContext[TrainingFields], int], Reporter]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "mlflow": _Mlflow,
}
"""The program of each word of `report_to`."""


class Scalars:
    """Writes the numbers of steps and evaluations for `report_to`; does nothing where the stage names no reporter.

    Args:
        ctx: the attempt.
        resumed_step: the step after which it continues.
        world: the processes; the first one writes.
    """

    def __init__(self, ctx: StageContext[TrainingFields], resumed_step: int, world: World = ALONE) -> None:
        self._ctx = ctx
        self._reporters: dict[str, Reporter] = {}
        for name in ctx.stage.report_to if world.is_first else ():
            self._try(name, lambda name=name: self._open(name, resumed_step))

    def take(self, event: Step | Evaluated) -> None:
        """Write the numbers of an event; one that the journal has as null is left out."""
        for name, reporter in list(self._reporters.items()):
            self._try(name, lambda reporter=reporter: reporter.write(scalars_of(event), event.step or 0))

    def flush(self) -> None:
        """Bring everything to the files."""
        for name, reporter in list(self._reporters.items()):
            self._try(name, reporter.flush)

    def close(self) -> None:
        """Write the rest and close the files."""
        for name, reporter in list(self._reporters.items()):
            self._try(name, reporter.close)
        self._reporters.clear()

    def _open(self, name: str, resumed_step: int) -> None:
        self._reporters[name] = REPORTERS[name](self._ctx, resumed_step)

    def _try(self, name: str, work: Any) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a library that only reports must not end a training
            self._reporters.pop(name, None)
            self._ctx.warn(
                f"report_to — {name} failed, and nothing more is written to it: {type(error).__name__}:"
                f" {printable(str(error), 300)}; the journal has every number"
            )


def scalars_of(event: Step | Evaluated) -> dict[str, float]:
    """The numbers of an event by their tags, as transformers names them: `train/loss`, `eval/loss`, …"""
    if isinstance(event, Step):
        values = {
            "train/loss": event.loss,
            "train/learning_rate": event.learning_rate,
            "train/grad_norm": event.grad_norm,
            "train/epoch": event.epoch,
            "train/num_tokens": event.tokens,
            "train/step_s": event.step_s,
        }
        group = "train"
    else:
        values = {"eval/loss": event.loss, "eval/perplexity": event.perplexity}
        group = "eval"
    values |= {f"{group}/{name}": value for name, value in event.metrics.items()}
    return {tag: float(value) for tag, value in values.items() if value is not None}
