"""The evaluations of an attempt on its val split, and what they decide: the best checkpoint, and early stopping."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from engines.context import StageContext
from engines.events.results import Evaluated
from engines.forward.compiling import uncompiled
from engines.training.fitting import Fitting
from engines.training.loss import token_weighted_loss
from engines.training.precision import autocast
from engines.training.task import Scored, Task
from engines.training.watch import EarlyStopping
from recipes import quantities
from recipes.stages.training import TrainingFields


class Evaluations:
    """What a training measures on its val split.

    Attributes:
        last: the newest evaluation of this attempt.
        early_stopping: ends the training when evaluations no longer improve.
    """

    def __init__(self, ctx: StageContext[TrainingFields], task: Task) -> None:
        self._ctx, self._stage, self._task = ctx, ctx.stage, task
        self._fitting = Fitting(ctx.warn)
        self.last: Evaluated | None = None
        self.early_stopping = EarlyStopping(
            self._stage.early_stopping_patience, self._stage.early_stopping_threshold, rises=self._stage.rises
        )

    def of(self, step: int) -> Evaluated | None:
        """The evaluation of this step, if it was measured in this attempt."""
        return self.last if self.last is not None and self.last.step == step else None

    def measure(self, trainer: Any, step: int) -> Evaluated | None:
        """Evaluate the model as it is at this step; None without a val split. Draws no random numbers."""
        score = self.score(trainer)
        if score is None:
            return None
        task = self._task
        with uncompiled(), autocast(trainer.args.device, bf16=task.bf16, fp16=task.fp16):
            scored = score()
        self.last = Evaluated(
            stage=self._ctx.stage_name,
            attempt=self._ctx.attempt,
            step=step,
            loss=scored.loss,
            perplexity=perplexity(scored.loss) if task.method is None else None,
            tokens=scored.tokens,
            protocol=scored.protocol + (", bf16" if task.bf16 else ", fp16" if task.fp16 else ""),
            metrics=scored.metrics,
        )
        return self.last

    def score(self, trainer: Any) -> Callable[[], Scored] | None:
        """Measures on the val split; None without one."""
        method, val, model, way = self._task.method, self._task.val, self._task.model, self._task.arrangement
        if method is not None:
            return None if method.evaluate is None else partial(method.evaluate, trainer, self._fitting)
        if val is None:
            return None
        return lambda: Scored(
            *token_weighted_loss(model, val, arrangement=way, fitting=self._fitting, world=self._ctx.world),
            val.protocol,
            {},
        )

    def judged(self, found: Evaluated) -> float | None:
        """The value of `metric_for_best_model` in an evaluation; None where it was not measured."""
        own = {"eval_loss": found.loss, "eval_perplexity": found.perplexity}
        name = self._stage.metric_for_best_model
        return own[name] if name in own else found.metrics.get(name.removeprefix("eval_"))

    def is_worse_than(self, best: float | None, step: int) -> bool:
        """Whether what was measured at this step is known, and not better than `best`, of which lower is better."""
        here = self.of(step)
        value = None if here is None else self.judged(here)
        if value is None or best is None:
            return True
        return (-value if self._stage.rises else value) > best

    def recorded(self, step: int) -> dict[str, Any]:
        """What a checkpoint of this step keeps of its evaluation."""
        found = self.of(step)
        if found is None:
            return {}
        return {
            "evaluated": {f"eval_{name}": value for name, value in found.metrics.items()},
            "judged": self._judged_for_the_best(found),
        }

    def _judged_for_the_best(self, found: Evaluated) -> dict[str, Any] | None:
        """What decides which checkpoint is the best, if it is not the lowest eval_loss."""
        name, rises = self._stage.metric_for_best_model, self._stage.rises
        if (name, rises) == ("eval_loss", False):
            return None
        return {"metric": name, "greater_is_better": rises, "value": self.judged(found)}

    def _early_words(self) -> str:
        """Why early stopping ends the training: an evaluation may be the best one, and not by the threshold."""
        metric, early = self._stage.metric_for_best_model, self.early_stopping
        best, least = quantities.loss(early.best), self._stage.early_stopping_threshold
        count = f"{early.failures} evaluation(s) in a row"
        if least:
            return (
                f"in {count}, {metric} has not improved by more than {quantities.exact(least)}"
                f" (early_stopping_threshold); the best one is {best}, of step {early.best_step}"
            )
        return f"in {count}, {metric} has not improved on {best}, of step {early.best_step}"

    def end_the_training(self, found: Evaluated, step: int, last_step: int) -> bool:
        """Note a new evaluation of this step; whether early stopping ends the training here, which is said then."""
        value = self.judged(found)
        if value is None or not self.early_stopping.note(step, value) or step >= last_step:
            return False
        self._ctx.warn(f"early stopping at step {step}: {self._early_words()}; the stage ends here")
        return True


def perplexity(loss: float) -> float:
    """exp(loss); infinity when it exceeds the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
