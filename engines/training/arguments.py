"""A stage's fields as `transformers.TrainingArguments`."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from recipes.problems import OperatorError
from recipes.stages.kind import backend_of
from recipes.stages.training import MUON, TrainingFields

UNBOUNDED_STEPS = 1 << 40


def training_arguments(
    stage: TrainingFields,
    work: Path,
    *,
    bf16: bool,
    fp16: bool = False,
    kind: type[TrainingArguments] = TrainingArguments,
    more: Mapping[str, Any] = {},
) -> TrainingArguments:
    """The arguments of a stage's Trainer.

    `kind` is the class that the Trainer of the stage's method takes, and `more` are the method's own arguments.

    Its number of steps is without bound: the session ends the training, because a request may add steps while it runs.

    The engine saves, evaluates and logs itself, so the Trainer's own are off, and so is its filter that shows a mean
    where a loss is not a number. Arguments that the installed version of transformers lacks are left out.
    """
    cuda = torch.cuda.is_available()
    known = {field.name for field in dataclasses.fields(kind)}
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    wanted: dict[str, Any] = {
        "output_dir": str(work / "trainer"),
        "max_steps": UNBOUNDED_STEPS,
        "num_train_epochs": stage.num_train_epochs,
        "per_device_train_batch_size": stage.per_device_train_batch_size,
        "per_device_eval_batch_size": stage.per_device_eval_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation_steps,
        "learning_rate": stage.learning_rate,
        "optim": optimizer_argument(stage),
        "weight_decay": stage.weight_decay,
        "adam_beta1": stage.adam_beta1,
        "adam_beta2": stage.adam_beta2,
        "adam_epsilon": stage.adam_epsilon,
        "max_grad_norm": stage.max_grad_norm,
        "label_smoothing_factor": stage.label_smoothing_factor,
        "bf16": bf16,
        "fp16": fp16,
        checkpointing: stage.gradient_checkpointing and backend_of(stage) == "hf",  # Unsloth has its own
        f"{checkpointing}_kwargs": {"use_reentrant": False},
        "seed": stage.seed,
        "data_seed": stage.seed,
        "dataloader_num_workers": stage.dataloader_num_workers,
        "dataloader_pin_memory": cuda,
        "accelerator_config": {"non_blocking": cuda},
        "use_liger_kernel": stage.use_liger_kernel,
        # Its loss is not used: logits are computed where labels are.
        "liger_kernel_config": {"cross_entropy": False, "fused_linear_cross_entropy": False},
        "use_cpu": not cuda,
        "save_strategy": "no",
        "eval_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "save_total_limit": None,
        "include_num_input_tokens_seen": "no",
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }
    with _processes_are_ours():
        arguments = kind(**{name: value for name, value in wanted.items() if name in known})
    _require_kept(arguments, stage, bf16=bf16)
    # On a machine with several GPUs one process would split each batch over them (DataParallel). That is mostly slower
    # than one GPU, and its loss is not the mean over the window's tokens.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


@contextmanager
def _processes_are_ours() -> Iterator[None]:
    """Without the advice of the arguments to launch with torchrun: it did, and `engines.ranks.placement` places the
    model, so to them each process is one that trains alone."""

    def wanted(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("torch.distributed process group is initialized, but parallel_mode")

    logger = logging.getLogger(TrainingArguments.__module__)
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)


def optimizer_argument(stage: TrainingFields) -> str:
    """The optimizer as the arguments name it; for Muon, which they do not know, the one of the other weights."""
    return "adamw_torch_fused" if stage.optim == MUON else stage.optim


def _require_kept(arguments: TrainingArguments, stage: TrainingFields, *, bf16: bool) -> None:
    """Refuse to train with other settings than the stage's: Unsloth replaces what it does not support.

    Raises:
        OperatorError: the optimizer or the number format is another one.
    """
    optim = str(getattr(arguments.optim, "value", arguments.optim))
    if optim != optimizer_argument(stage):
        raise OperatorError(
            f"optim — backend = {backend_of(stage)} replaces {stage.optim} by {optim} on this machine",
            f'set optim = "{optim}", or backend = "hf"',
        )
    if bool(arguments.bf16) != bf16:
        wanted = "bfloat16" if bf16 else "float32"
        raise OperatorError(
            f"bf16 — backend = {backend_of(stage)} does not compute in {wanted} on this machine",
            f'set bf16 = {"false" if bf16 else "true"}, or backend = "hf"',
        )
