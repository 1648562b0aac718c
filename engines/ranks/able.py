"""What several processes cannot train together; checked before a training, because its numbers would be others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engines.ranks.placement import FSDP2, strategy_asked
from engines.world import World
from recipes.problems import OperatorError
from recipes.stages.training import DIVIDED_OPTIMIZERS

_DDP = 'set launch.strategy = "ddp"'


def require_shareable(stage: Any, task: Any, world: World) -> None:
    """Refuse a training that several processes would not do as one does.

    Raises:
        OperatorError: with everything that is in the way.
    """
    asked = stage.launch.world_size
    if asked != world.size:
        raise OperatorError(
            f"launch.processes — {asked} processes were requested, and this engine is one of {world.size}",
            "run the stage with cockpit run, which starts as many as the recipe says",
        )
    if world.size == 1:
        return
    found = [*_always(stage, task, world), *(_divided(stage, task) if strategy_asked(stage, world) == FSDP2 else ())]
    if found:
        raise OperatorError(
            "; ".join(problem for problem, _ in found), "; ".join(dict.fromkeys(way for _, way in found))
        )


def _always(stage: Any, task: Any, world: World) -> Iterator[tuple[str, str]]:
    batches = -(-task.examples // stage.per_device_train_batch_size)
    if batches < world.size:
        yield (
            f"launch.processes — an epoch has {batches} micro-batches of {stage.per_device_train_batch_size}, and"
            f" {world.size} processes each need one",
            f"set launch.processes to at most {batches}, or a smaller per_device_train_batch_size",
        )
    if getattr(stage, "backend", "hf") != "hf":
        yield f"launch.processes — backend = {stage.backend} computes in one process", 'set backend = "hf"'


def _divided(stage: Any, task: Any) -> Iterator[tuple[str, str]]:
    model = task.model
    if stage.optim not in DIVIDED_OPTIMIZERS:
        allowed = ", ".join(DIVIDED_OPTIMIZERS)
        yield f"optim — {stage.optim} cannot update parts of weights (fsdp2); allowed: {allowed}", "choose one of these"
    if task.fp16:
        yield "fp16 — parts of weights have no common loss scale (fsdp2)", f"{_DDP}, or bf16 = true"
    if hasattr(model, "peft_config"):
        yield "launch.strategy — fsdp2 does not divide a model with an adapter, whose weights have several types", _DDP
    if task.method is not None:
        yield f"launch.strategy — a {stage.kind} stage has no fsdp2: its loss calls the model in several ways", _DDP
    if stage.torch_compile:
        yield "torch_compile — compiled layers are not divided by fsdp2", "set torch_compile = false"
    if getattr(stage, "linear", "plain") == "ternary":
        yield "linear — ternary layers need whole matrices for their scale (fsdp2)", _DDP
    if task.arrangement.way == "row by row":
        yield "launch.strategy — this model computes row by row, and fsdp2 needs equally many passes everywhere", _DDP


def require_shareable_loss(trainer: Any, task: Any, world: World) -> None:
    """Refuse a model whose loss is not a sum over labels: it could not be divided by the labels of all processes.

    Raises:
        OperatorError: it has another loss.
    """
    if world.size > 1 and task.method is None and trainer.label_loss is None:
        raise OperatorError(
            f"launch.processes — {type(task.model).__name__} computes a loss of its own, which several processes cannot"
            " divide by their labels",
            "set launch.processes = 1",
        )
