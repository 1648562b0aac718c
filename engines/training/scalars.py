"""TensorBoard event files of a training, from the same events as the journal.

One folder of the stage has the files of all its attempts. A resume purges what the files have after its checkpoint, so
that TensorBoard shows each step once. A file that cannot be written ends no training: it is said once.
"""

from __future__ import annotations

from typing import Any

from engines.context import StageContext
from engines.events import Evaluated, Step
from engines.run_dir import RunDir
from recipes.problems import printable
from recipes.stages.training import TrainingFields


class Scalars:
    """Writes the numbers of steps and evaluations for `report_to`; does nothing where the stage names no reporter.

    Args:
        ctx: the attempt.
        resumed_step: the step after which it continues.
    """

    def __init__(self, ctx: StageContext[TrainingFields], resumed_step: int) -> None:
        self._ctx = ctx
        self._writer: Any = None
        if "tensorboard" in ctx.stage.report_to:
            self._try(lambda: self._open(resumed_step))

    def take(self, event: Step | Evaluated) -> None:
        """Write the numbers of an event; one that the journal has as null is left out."""
        if self._writer is not None:
            self._try(lambda: self._write(event))

    def flush(self) -> None:
        """Bring everything to the file."""
        if self._writer is not None:
            self._try(self._writer.flush)

    def close(self) -> None:
        """Write the rest and close the file."""
        if self._writer is not None:
            self._try(self._writer.close)
            self._writer = None

    def _open(self, resumed_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = RunDir(self._ctx.run_root).tensorboard(self._ctx.stage_name)
        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1)

    def _write(self, event: Step | Evaluated) -> None:
        for tag, value in scalars_of(event).items():
            self._writer.add_scalar(tag, value, event.step)

    def _try(self, work: Any) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - a library that only reports must not end a training
            self._writer = None
            self._ctx.warn(
                f"report_to — tensorboard failed, and nothing more is written to it: {type(error).__name__}:"
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
