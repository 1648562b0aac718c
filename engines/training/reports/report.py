"""What the journal and the targets of `report_to` get of a training: its steps, its tripped guards, its result."""

from __future__ import annotations

from typing import Any

from engines.artifacts.checkpoints import Checkpoint
from engines.context import StageContext
from engines.events.results import Evaluated
from engines.events.steps import GuardTripped, Step, StepsPlanned
from engines.guards import Trip
from engines.training.devices import peak_memory
from engines.training.evaluations import perplexity
from engines.training.progress import Counters
from engines.training.reports.scalars import Scalars
from engines.training.steps.measured import Measured
from engines.training.task import Task
from engines.words import EndReason
from recipes.stages.training import TrainingFields


class Report:
    """Reports one attempt.

    Args:
        ctx: the stage's context.
        task: what is trained.
        counters: the progress, of which each event has its share.
        resumed_step: the step after which the attempt begins.
    """

    def __init__(self, ctx: StageContext[TrainingFields], task: Task, counters: Counters, resumed_step: int) -> None:
        self._ctx, self._task, self._counters = ctx, task, counters
        self._scalars = Scalars(ctx, resumed_step, ctx.world)

    def step(self, measured: Measured, step: int, epoch: float, step_s: float, device: Any) -> None:
        """Report a step, applied or refused; `step_s` is its duration, `device` the one that it ran on."""
        self.emit(
            Step(
                stage=self._ctx.stage_name,
                attempt=self._ctx.attempt,
                step=step,
                epoch=epoch,
                loss=measured.loss,
                learning_rate=measured.learning_rate,
                grad_norm=None if measured.skipped else measured.grad_norm,
                tokens=self._counters.tokens,
                loss_tokens=self._counters.loss_tokens,
                step_s=step_s,
                data_wait_s=measured.window.data_wait_s,
                metrics={
                    **measured.metrics,
                    **({} if measured.loss_scale is None else {"loss_scale": measured.loss_scale}),
                    **peak_memory(device),
                    **self._utilization(measured.window.tokens / step_s if step_s > 0 else None),
                },
            )
        )

    def emit(self, event: Step | Evaluated) -> None:
        """Write an event into the journal, and its numbers to the targets of `report_to`."""
        self._ctx.emit(event)
        self._scalars.take(event)

    def plan(self, steps: int) -> None:
        """Report the step at which the stage ends."""
        self._ctx.emit(StepsPlanned(stage=self._ctx.stage_name, attempt=self._ctx.attempt, total_steps=steps))

    def trip(self, trip: Trip, step: int) -> None:
        """Report a guard that has tripped at this step: of several processes, once."""
        if not self._ctx.world.is_first and trip.guard != EndReason.OUT_OF_MEMORY:
            return  # all processes judge the same numbers; memory is each one's own
        self._ctx.emit(
            GuardTripped(
                stage=self._ctx.stage_name,
                attempt=self._ctx.attempt,
                guard=trip.guard,
                step=step,
                value=trip.value,
                limit=trip.limit,
            )
        )

    def flush(self) -> None:
        """Write what the targets of `report_to` still hold: before a checkpoint, from which a resume may begin."""
        self._scalars.flush()

    def close(self) -> None:
        """Close the targets of `report_to`."""
        self._scalars.close()

    def result(
        self, step: int, last_eval: Evaluated | None, output: Checkpoint | None, device: Any
    ) -> dict[str, float]:
        """Metrics of the finished stage.

        Args:
            step: the last one.
            last_eval: the newest evaluation.
            output: the checkpoint whose weights are the stage's result; None where they are those of the last step.
            device: the one that the training ran on.
        """
        counters, model = self._counters, self._task.model
        metrics: dict[str, float | None] = {
            "loss": counters.mean_recent_loss,
            "steps": step,
            "tokens": counters.tokens,
            "loss_tokens": counters.loss_tokens,
            "tokens_per_second": counters.tokens_per_second,
            "samples_per_second": counters.samples_per_second,
            "examples": self._task.examples,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        }
        metrics |= counters.mean_recent_metrics | self._utilization(counters.tokens_per_second)
        if last_eval is not None:
            metrics["eval_loss"] = last_eval.loss
            metrics["eval_perplexity"] = last_eval.perplexity
            metrics |= {f"eval_{name}": value for name, value in last_eval.metrics.items()}
        metrics |= {name.partition("/")[2]: value for name, value in peak_memory(device).items()}
        metrics["output_step"] = step
        if output is not None and output.eval_loss is not None:
            metrics |= output.position.get("evaluated") or {}
            metrics["output_step"] = output.step
            metrics["eval_loss"] = output.eval_loss
            metrics["eval_perplexity"] = perplexity(output.eval_loss) if self._task.method is None else None
        return {name: float(value) for name, value in metrics.items() if value is not None}

    def _utilization(self, tokens_per_second: float | None) -> dict[str, float]:
        of_one = None if tokens_per_second is None else tokens_per_second / self._ctx.world.size  # the peak is one's
        found = None if self._task.utilization is None else self._task.utilization.of(of_one)
        return {} if found is None else {"mfu": found}
