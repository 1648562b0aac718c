"""`transformers.Trainer` with the engine's measurements, guards and checkpoints: one mixin for all its subclasses.

Trainer's callbacks do not get the loss and the gradient norm before the optimizer steps, and its log shows at best the
next step's learning rate. So the mixin measures at the source: losses as `training_step` returns them, the norm in
`_get_grad_norm`, which runs after the backward pass and before the optimizer and may refuse the step.

The loss of a step is the sum of its micro-batch losses, because Trainer divides each by the number of loss tokens of
the full accumulation window. With several processes the window is that of all of them: numbers of tokens, losses and
what a method measures are summed over them, and every process judges the same numbers.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from engines.artifacts.sharded import is_in_shards
from engines.context import StageContext
from engines.data_wait import DataWait
from engines.forward.label_loss import FILLER, LOSS_TOKENS, REAL_TOKENS
from engines.ranks.placement import Placement, keep_whole_states, place, require_strategy, whole
from engines.ranks.share import SharedBatches, SharedDataset, collate_shared
from engines.ranks.states import load_divided, own_random_states
from engines.training.faults import Faults
from engines.training.optimizers.loss_scale import LossScale
from engines.training.optimizers.muon import muon_of
from engines.training.saves.from_shards import load_training, load_weights
from engines.training.schedule import Schedule, schedule_for, schedule_of
from engines.training.steps.measured import Measured, Window, rows_in
from engines.world import World
from recipes.stages.training import MUON, TrainingFields

for _name in (
    "_get_grad_norm",
    "get_batch_samples",
    "_load_from_checkpoint",
    "_load_rng_state",
):
    assert hasattr(Trainer, _name), f"transformers.Trainer has no {_name}: this version of transformers is unsupported"


_SETTINGS = ("weight_decay", "betas", "eps")
"""Settings of the optimizer that fields decide."""


class StepListener(Protocol):
    """The receiver of the trainer's calls between and within its steps."""

    ctx: StageContext[TrainingFields]
    faults: Faults
    data_wait: DataWait
    planned_steps: int

    def placed(self, strategy: str) -> None:
        """The model is placed over several processes, as its modules show."""

    def train_begins(self) -> None:
        """Trainer has computed its number of steps."""

    def after_scheduler_load(self, recipe: Schedule) -> None:
        """The optimizer and schedule of the checkpoint are loaded; `recipe` is the schedule of the stage's fields."""

    def before_optimizer_step(self, measured: Measured) -> None:
        """A step is measured and may still be refused."""

    def before_update(self) -> None:
        """The optimizer steps next."""

    def after_optimizer_step(self) -> None:
        """The step is applied and counted."""

    def save(self) -> bool:
        """Write a checkpoint; False when the write failed."""
        ...


class EngineMixin:
    """A mixin for Trainer or one of its subclasses; set `session` before `train`."""

    session: StepListener
    window: Window
    placement: Placement = Placement()
    strategy = "single"
    """The strategy that the stage asks for."""
    loss_scale: LossScale | None = None
    """of a training in float16"""
    world: World = World()
    accelerator: Any
    args: TrainingArguments
    state: Any
    _trains = False
    """Whether all modules have been in training mode; from then on they change together."""
    model: Any
    optimizer: Any
    lr_scheduler: Any
    get_decay_parameter_names: Callable[[Any], list[str]]

    _counts: Callable[[], list[float]] | None = None
    """The numbers of the window in all processes, while they are exchanged."""

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, torch.Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, torch.Tensor]], torch.Tensor | int | None]:
        """Fetch a window, and count its real tokens and its loss tokens.

        Returns:
            The micro-batches, each a table of int64 [batch, length]; and the number of loss tokens, or None. With
            several processes, `of_all_processes` makes that number theirs.
        """
        began_s = time.monotonic()
        with self.session.data_wait:
            batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        self.window = Window(began_s, time.monotonic() - began_s)
        for batch in batches:
            mask, known = batch.get("attention_mask"), batch.get(REAL_TOKENS)
            padded = batch["input_ids"].numel() if mask is None or known is not None else int(mask.sum())
            self.window.tokens += padded if known is None else known
            self.window.rows += 0 if FILLER in batch else rows_in(batch)
        # The collate function has counted them: to read `items`, the processor would wait for the device.
        counts = [batch.get(LOSS_TOKENS) for batch in batches]
        known_tokens = None if None in counts else sum(count for count in counts if count is not None)
        self.window.loss_tokens = 0 if items is None else int(items) if known_tokens is None else known_tokens
        if self.world.size > 1:  # the first forward pass does not wait for it
            self._counts = self.world.sum_later([self.window.tokens, self.window.rows, self.window.loss_tokens])
        return batches, items

    def of_all_processes(self, items: torch.Tensor | int | None) -> torch.Tensor | int | None:
        """The loss tokens of the window in all processes; from then on the window's numbers are theirs."""
        if self.world.size == 1:
            return items
        window, counts = self.window, self._counts
        if counts is not None:
            self._counts = None
            window.tokens, window.rows, window.loss_tokens = (int(number) for number in counts())
        return items if items is None else torch.full_like(torch.as_tensor(items), window.loss_tokens)

    def get_train_dataloader(self) -> Any:
        """The batches of this process."""
        whole_loader: Any = super().get_train_dataloader()  # type: ignore[misc]
        if self.world.size == 1:
            return whole_loader
        own = DataLoader(
            SharedDataset(whole_loader.dataset),
            batch_sampler=SharedBatches(whole_loader.batch_sampler, self.world),
            collate_fn=partial(collate_shared, whole_loader.collate_fn),
            num_workers=whole_loader.num_workers,
            pin_memory=whole_loader.pin_memory,
            worker_init_fn=whole_loader.worker_init_fn,
            prefetch_factor=whole_loader.prefetch_factor,
        )
        return self.accelerator.prepare(own)

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own loss; a test fault can change it."""
        if self.session.ctx.test_faults:
            rows = rows_in(args[1])
            checkpointing = self.session.ctx.stage.gradient_checkpointing
            self.session.faults.allocate(self.state.global_step + 1, rows, checkpointing=checkpointing)
        loss = self.placement.forward(partial(super().compute_loss, *args, **kwargs))  # type: ignore[misc]
        if FILLER in args[1]:
            return loss * 0
        if self.session.ctx.test_faults and torch.is_tensor(loss):
            factor = self.session.faults.loss_factor(
                self.state.global_step + 1, len(self.window.losses) + 1, self.world.rank
            )
            return loss if factor is None else loss * factor
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward of one micro-batch; returns its share of the window's loss, a scalar that stays on the
        device."""
        model = args[0]
        self._trains = self._trains or all(module.training for module in model.modules())
        last = self.world.size == 1 or bool(self.accelerator.sync_gradients)
        with _in_training_mode(model, every_module=self._trains), self.placement.synced(last=last):
            loss: torch.Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self.window.losses.append(loss)
        return loss

    def _get_grad_norm(self, model: torch.nn.Module, grad_norm: Any = None) -> Any:
        norm = whole(super()._get_grad_norm(model, grad_norm=grad_norm))  # type: ignore[misc]
        scaled = {} if self.loss_scale is None else self.loss_scale.of_step(self.optimizer)
        if self.world.size > 1:
            self._measure_over_processes(float(norm), scaled)
            return norm
        window = self.window
        device = window.losses[0].device
        parts = [loss.double() for loss in window.losses]
        figures = [torch.stack(parts).sum(), torch.as_tensor(norm, device=device).double()]
        means = window.means()
        first, second, *rest = torch.stack([*figures, *means.values()]).tolist()  # one wait for the device
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.session.before_optimizer_step(
            Measured(first, second, rate, window, dict(zip(means, rest, strict=True)), **scaled)
        )
        return norm

    def _measure_over_processes(self, norm: float, scaled: dict[str, Any]) -> None:
        """Report the step's numbers as all processes together have them: in each the same."""
        self.of_all_processes(None)
        window, size = self.window, self.world.size
        loss = torch.stack([loss.double() for loss in window.losses]).sum()
        totals = [torch.stack(parts).sum() for each in (window.sums, window.weights) for parts in each.values()]
        own, *rest = torch.stack([loss, *(total.to(loss.device) for total in totals)]).tolist()
        by_process = [0.0] * (2 * size)
        by_process[self.world.rank], by_process[size + self.world.rank] = own, window.data_wait_s
        asked = float(self.session.ctx.is_asked)
        found = self.world.reduce_sum([asked, *by_process, *rest])
        asked, losses, waits, rest = (
            found[0],
            found[1 : size + 1],
            found[size + 1 : 2 * size + 1],
            found[2 * size + 1 :],
        )
        window.data_wait_s = max(waits)
        sums, weights = rest[: len(window.sums)], rest[len(window.sums) :]
        means = {name: one / other for name, one, other in zip(window.sums, sums, weights, strict=True)}
        rate = float(self.optimizer.param_groups[0]["lr"])
        self.session.before_optimizer_step(
            Measured(sum(losses), norm, rate, window, means, tuple(losses), asked=asked > 0, **scaled)
        )

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer of the stage; Trainer's own unless it is Muon. The model is placed before."""
        if self.optimizer is None and self.world.size > 1:
            self.placement = place(self.model, self.strategy, self.world, self.args.device)
            self.session.placed(require_strategy(self.model, self.placement, self.strategy))
            made = self._made_optimizer(model)
            keep_whole_states(made)
            return made
        return self._made_optimizer(model)

    def _made_optimizer(self, model: Any) -> Any:
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
        if is_in_shards(Path(checkpoint)):
            load_training(self.optimizer, self.lr_scheduler, Path(checkpoint))
        else:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)
        self.session.after_scheduler_load(recipe)

    def _load_from_checkpoint(self, folder: str, model: Any = None) -> None:
        if is_in_shards(Path(folder)):
            load_weights(model or self.model, Path(folder))
        elif not load_divided(model or self.model, Path(folder)):
            super()._load_from_checkpoint(folder, model)  # type: ignore[misc]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """The random states of this process, if the checkpoint has them."""
        if self.world.rank == 0 or checkpoint is None:
            super()._load_rng_state(checkpoint)  # type: ignore[misc]
            return
        folder = own_random_states(Path(checkpoint), self.session.ctx.work, self.world.rank)
        if folder is not None:
            super()._load_rng_state(str(folder))  # type: ignore[misc]

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
