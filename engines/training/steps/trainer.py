"""The Trainer of both engines, built for a session and reporting to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from engines.forward.arrangement import PADDED, Arrangement
from engines.forward.label_loss import LabelLoss, has_standard_loss
from engines.ranks.placement import strategy_asked
from engines.training.optimizers.loss_scale import LossScale
from engines.training.steps.mixin import EngineMixin, StepListener
from engines.training.steps.rows import EpochOrder, RowsMixin


class EngineTrainer(EngineMixin, RowsMixin, Trainer):
    """The Trainer of both engines."""

    order: Callable[[int], list[int]] | None = None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.order is None:
            return super()._get_train_sampler(train_dataset)
        return EpochOrder(self.order, len(train_dataset or self.train_dataset))


class StepCallback(TrainerCallback):
    """Forwards Trainer's callbacks to the session."""

    def __init__(self, session: StepListener) -> None:
        self._session = session

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Trainer has computed its number of steps."""
        self._session.train_begins()

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """The gradients are clipped, and the weights still those of the step before."""
        self._session.before_update()

    def on_optimizer_step(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
        """The optimizer has stepped, or has left the step out."""
        if optimizer is not None:
            LossScale.count_as_step(optimizer)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> Any:
        """The optimizer has stepped and the step is counted."""
        self._session.after_optimizer_step()
        # Trainer's own callback has compared the step with the plan before a request could change it.
        control.should_training_stop = state.global_step >= state.max_steps
        return control


def build_trainer(
    session: StepListener,
    model: torch.nn.Module,
    arguments: TrainingArguments,
    dataset: Any,
    collate: Any,
    arrangement: Arrangement = PADDED,
    most_tokens: int | None = None,
) -> EngineTrainer:
    """A Trainer that reports to the session and prints nothing."""
    trainer = EngineTrainer(model=model, args=arguments, train_dataset=dataset, data_collator=collate)
    trainer.arrangement = arrangement
    trainer.most_tokens = most_tokens
    if has_standard_loss(model):
        trainer.label_loss = LabelLoss(model)
        trainer.model_accepts_loss_kwargs = True  # Trainer counts the window's labels, and `compute_loss` divides
    connect(trainer, session)
    return trainer


def connect(trainer: Any, session: StepListener) -> None:
    """Let a Trainer with the mixin report to the session, and print nothing."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(StepCallback(session))
    trainer.session, trainer.world = session, session.ctx.world
    trainer.strategy = strategy_asked(session.ctx.stage, trainer.world)
    trainer.loss_scale = LossScale(trainer.accelerator) if trainer.args.fp16 else None
