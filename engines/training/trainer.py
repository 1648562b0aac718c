"""`transformers.Trainer` with the engine's measurements, guards and checkpoints: one mixin for all its subclasses.

Trainer's callbacks do not get the loss and the gradient norm before the optimizer steps, and its log shows at best the
next step's learning rate. So the mixin measures at the source: losses as `training_step` returns them, the norm in
`_get_grad_norm`, which runs after the backward pass and before the optimizer and may refuse the step.

The loss of a step is the sum of its micro-batch losses, because Trainer divides each by the number of loss tokens of
the full accumulation window. One process trains, so nothing is reduced over ranks.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from engines.context import StageContext
from engines.data_wait import DataWait
from engines.forward.arrangement import PADDED, Arrangement
from engines.forward.joining import has_rows, join
from engines.forward.label_loss import (
    LOSS_TOKENS,
    OWN_KEYS,
    REAL_TOKENS,
    LabelLoss,
    has_standard_loss,
    rows_of,
)
from engines.forward.rows_attention import rows_in_sequence
from engines.training.faults import Faults
from engines.training.optimizers.muon import muon_of
from engines.training.schedule import Schedule, schedule_for, schedule_of
from recipes.stages.training import MUON, TrainingFields

for _name in ("_get_grad_norm", "get_batch_samples", "_save_optimizer_and_scheduler", "_save_rng_state"):
    assert hasattr(Trainer, _name), f"transformers.Trainer has no {_name}: this version of transformers is unsupported"


_SETTINGS = ("weight_decay", "betas", "eps")
"""Settings of the optimizer that fields decide."""


@dataclass
class Window:
    """The measurements of one optimizer step so far: an accumulation window of micro-batches."""

    began_s: float = 0.0
    data_wait_s: float = 0.0
    tokens: int = 0
    loss_tokens: int = 0
    rows: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    sums: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    weights: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def measure(self, name: str, values: torch.Tensor, weight: torch.Tensor | None = None) -> None:
        """Add what the method measured in a micro-batch; the step's event has its mean over the window.

        Args:
            name: the series, as the method's own library names it (`rewards/margins`).
            values: the measured values, of any shape; they stay on the device.
            weight: how many things `values`, a sum, was measured of; None: each of `values` counts once.
        """
        values = values.detach()
        count = torch.tensor(float(values.numel()), device=values.device) if weight is None else weight.detach()
        self.sums.setdefault(name, []).append(values.double().sum())
        self.weights.setdefault(name, []).append(count.double().sum())

    def means(self) -> dict[str, torch.Tensor]:
        """What the method measured, as means over the window, on the device."""
        return {n: torch.stack(sums).sum() / torch.stack(self.weights[n]).sum() for n, sums in self.sums.items()}


@dataclass(frozen=True)
class Measured:
    """The measurements of a step before the optimizer applies it. `learning_rate` is the one it would use, `metrics`
    what the training's method measured."""

    loss: float
    grad_norm: float
    learning_rate: float
    window: Window
    metrics: dict[str, float] = field(default_factory=dict)


class StepListener(Protocol):
    """The receiver of the trainer's calls between and within its steps."""

    ctx: StageContext[TrainingFields]
    faults: Faults
    data_wait: DataWait
    planned_steps: int

    def train_begins(self) -> None:
        """Trainer has computed its number of steps."""

    def after_scheduler_load(self, recipe: Schedule) -> None:
        """The optimizer and schedule of the checkpoint are loaded; `recipe` is the schedule of the stage's fields."""

    def before_optimizer_step(self, measured: Measured) -> None:
        """A step is measured and may still be refused."""

    def after_optimizer_step(self) -> None:
        """The step is applied and counted."""

    def save(self) -> bool:
        """Write a checkpoint; False when the write failed."""
        ...


class EngineMixin:
    """A mixin for Trainer or one of its subclasses; set `session` before `train`."""

    session: StepListener
    window: Window
    args: TrainingArguments
    state: Any
    _trains = False
    """Whether all modules have been in training mode; from then on they change together."""
    model: Any
    optimizer: Any
    lr_scheduler: Any
    get_decay_parameter_names: Callable[[Any], list[str]]

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """Fetch a window, and count its real tokens and its loss tokens.

        Returns:
            The micro-batches, each a table of int64 [batch, length]; and the number of loss tokens, or None.
        """
        began_s = time.monotonic()
        with self.session.data_wait:
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        self.window = Window(began_s, time.monotonic() - began_s)
        for batch in batches:
            mask, known = batch.get("attention_mask"), batch.get(REAL_TOKENS)
            padded = batch["input_ids"].numel() if mask is None or known is not None else int(mask.sum())
            self.window.tokens += padded if known is None else known
            self.window.rows += _rows_in(batch)
        # The collate function has counted them: to read `items`, the processor would wait for the device.
        counts = [batch.get(LOSS_TOKENS) for batch in batches]
        known_tokens = None if None in counts else sum(count for count in counts if count is not None)
        self.window.loss_tokens = 0 if items is None else int(items) if known_tokens is None else known_tokens
        return batches, items

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own loss; a test fault can change it."""
        if self.session.ctx.test_faults:
            rows = _rows_in(args[1])
            checkpointing = self.session.ctx.stage.gradient_checkpointing
            self.session.faults.allocate(self.state.global_step + 1, rows, checkpointing=checkpointing)
        loss = super().compute_loss(*args, **kwargs)  # type: ignore[misc]
        if self.session.ctx.test_faults and torch.is_tensor(loss):
            factor = self.session.faults.loss_factor(self.state.global_step + 1, len(self.window.losses) + 1)
            return loss if factor is None else loss * factor
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns its share of the window's loss, a scalar that stays on the
        device."""
        model = args[0]
        self._trains = self._trains or all(module.training for module in model.modules())
        with _in_training_mode(model, every_module=self._trains):
            loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.window.losses.append(loss)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)  # type: ignore[misc]
        window = self.window
        device = window.losses[0].device
        parts = [loss.double() for loss in window.losses]
        figures = [torch.stack(parts).sum(), torch.as_tensor(norm, device=device).double()]
        means = window.means()
        first, second, *rest = torch.stack([*figures, *means.values()]).tolist()  # one wait for the device
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.session.before_optimizer_step(Measured(first, second, rate, window, dict(zip(means, rest, strict=True))))
        return norm

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the stage; Trainer's own unless it is Muon."""
        if self.optimizer is None and self.session.ctx.stage.optim == MUON:
            trained = model or self.model
            self.optimizer = muon_of(trained, set(self.get_decay_parameter_names(trained)), self.args)
            return self.optimizer
        return super().create_optimizer(model)  # type: ignore[misc]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:  # noqa: ARG002 - Trainer's name
        """A LambdaLR over the engine's own schedule object, for the steps that the session plans."""
        if self.lr_scheduler is None:
            stage, planned = self.session.ctx.stage, self.session.planned_steps
            schedule = schedule_for(stage, planned, self.session.ctx.learning_rate_scale)
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, schedule)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        # The checkpoint's values replace those of the stage's fields, which a resume may have changed.
        recipe = copy.copy(schedule_of(self.lr_scheduler))
        settings = [{name: group[name] for name in _SETTINGS if name in group} for group in self.optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)
        self.session.after_scheduler_load(recipe)

    def _save_checkpoint(self, _model: torch.nn.Module, _trial: Any = None) -> None:
        self.session.save()

    def floating_point_ops(self, _inputs: Any) -> int:
        """Zero: Cockpit does not use Trainer's count, and computing it walks the model at every micro-batch."""
        return 0


@contextmanager
def _in_training_mode(model: torch.nn.Module, *, every_module: bool) -> Iterator[None]:
    """Within it, `model.train()` does nothing if the model is in training mode already.

    Trainer calls it at each micro-batch, and it sets an attribute of every module: in a small model with adapters that
    takes a twentieth of the step. `every_module`: all modules have the mode of the model.
    """
    if not every_module or not model.training:
        yield
        return

    def train(mode: bool = True) -> torch.nn.Module:
        """A reference model turns the mode off and on within a step."""
        return model if mode and model.training else type(model).train(model, mode)

    model.train = train  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.train


def _rows_in(batch: dict[str, Any]) -> int:
    """The rows of a micro-batch, which may be one sequence of several."""
    if "lengths" in batch:
        return len(batch["lengths"])
    return int(next(value for value in batch.values() if torch.is_tensor(value)).shape[0])


class RowsMixin:
    """The loss of rows without padding, with logits where a label is; set `arrangement` and `label_loss` before
    `train`.

    A batch that is one sequence of several rows has their `lengths`. The loss of each micro-batch is divided by the
    labels of the accumulation window, so it does not depend on the arrangement.
    """

    args: TrainingArguments
    arrangement: Arrangement = PADDED
    label_loss: LabelLoss | None = None
    most_tokens: int | None = None
    """Tokens of the longest sequence of joined micro-batches; None joins none."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], torch.Tensor | int | None]:
        """Fetch a window; micro-batches with short rows share a pass through the model."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if self.most_tokens is None or self.label_loss is None or items is None:
            return batches, items
        return join(batches, self.most_tokens), items

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Forward and backward of one micro-batch, or of each of its rows where the model cannot take them at once."""
        step = super().training_step  # type: ignore[misc]
        if "lengths" not in inputs:
            whole: torch.Tensor = step(model, inputs, num_items_in_batch)
            return whole
        if not has_rows(inputs):  # its rows are in another micro-batch
            return torch.zeros((), device=self.args.device)
        if self.arrangement.way == "row by row":
            return torch.stack([step(model, row, num_items_in_batch) for row in rows_of(inputs)]).sum()
        with rows_in_sequence(inputs["lengths"]):  # until the backward pass has ended: it may compute forward again
            packed: torch.Tensor = step(model, inputs, num_items_in_batch)
        return packed

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Sum over the labels, divided by those of the window; the model's own loss where it has another one."""
        items = kwargs.get("num_items_in_batch")
        if self.label_loss is None or items is None or kwargs.get("return_outputs"):
            given = {name: value for name, value in inputs.items() if name not in OWN_KEYS}
            return super().compute_loss(model, given, *args, **kwargs)  # type: ignore[misc]
        smoothing = float(self.args.label_smoothing_factor)
        with torch.autocast(self.args.device.type, dtype=torch.bfloat16, enabled=bool(self.args.bf16)):
            return self.label_loss.total(model, inputs, smoothing) / items


class EpochOrder(Sampler[int]):
    """Indices in an order that depends on the epoch only; a resume takes the same one. The data loader sets the
    epoch."""

    def __init__(self, order: Callable[[int], list[int]], examples: int) -> None:
        self._order, self._examples, self._epoch = order, examples, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch that is iterated next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._examples

    def __iter__(self) -> Iterator[int]:
        return iter(self._order(self._epoch))


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
    trainer.session = session
