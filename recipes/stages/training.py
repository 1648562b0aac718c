"""The fields of every stage that trains a model."""

from __future__ import annotations

from typing import Literal

from recipes.setting import setting
from recipes.stages.fields import DeviceFields, ModelGuards, ModelRetry


class TrainingFields(DeviceFields):
    """The fields that pretraining and fine-tuning share."""

    max_length: int = setting(
        512,
        section="Data",
        at_resume="order",
        ge=8,
        unit="tokens",
        help="Longest sequence; longer rows are left out, cut or refused, and counted.",
    )
    per_device_train_batch_size: int = setting(
        8, section="Batch", at_resume="order", ge=1, help="Sequences per forward pass on each device."
    )
    gradient_accumulation_steps: int = setting(
        1, section="Batch", at_resume="order", ge=1, help="Forward passes per optimizer step."
    )
    max_steps: int | None = setting(
        None,
        section="Schedule",
        at_resume="change",
        ge=1,
        help="Total number of optimizer steps; overrides num_train_epochs.",
    )
    num_train_epochs: float = setting(
        1.0, section="Schedule", at_resume="change", gt=0, help="Passes over the training data."
    )
    learning_rate: float = setting(2e-4, section="Optim", at_resume="change", gt=0, le=1, help="Peak learning rate.")
    lr_scheduler_type: Literal["cosine", "cosine_with_min_lr", "linear", "constant"] = setting(
        "cosine", section="Schedule", at_resume="change", help="Shape of the learning rate schedule after warm-up."
    )
    min_lr_rate: float = setting(
        0.1,
        section="Schedule",
        at_resume="change",
        ge=0,
        le=1,
        help="Final learning rate as a share of the peak, for cosine_with_min_lr.",
    )
    warmup_steps: float = setting(
        0.0,
        section="Schedule",
        at_resume="change",
        ge=0,
        help="Number of warm-up steps; a value below 1 is a share of all steps.",
    )
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit"] = setting(
        "adamw_torch_fused", section="Optim", at_resume="optimizer", help="Optimizer, as transformers names it."
    )
    weight_decay: float = setting(0.0, section="Optim", at_resume="change", ge=0, le=1, help="Decoupled weight decay.")
    adam_beta1: float = setting(
        0.9, section="Optim", at_resume="change", ge=0, lt=1, advanced=True, help="Decay of the first moment."
    )
    adam_beta2: float = setting(
        0.999, section="Optim", at_resume="change", ge=0, lt=1, advanced=True, help="Decay of the second moment."
    )
    adam_epsilon: float = setting(
        1e-8, section="Optim", at_resume="change", gt=0, lt=1, advanced=True, help="Epsilon in the denominator of Adam."
    )
    max_grad_norm: float = setting(
        1.0,
        section="Optim",
        at_resume="change",
        gt=0,
        help="Maximum L2 norm of the gradients; larger gradients are clipped.",
    )
    bf16: bool | None = setting(
        None,
        section="Precision",
        at_resume="arithmetic",
        help="Compute in bfloat16 under autocast. Trained weights stay float32; frozen ones are bfloat16. By default,"
        " true for an adapter where the machine computes in bfloat16 natively, else false.",
    )
    gradient_checkpointing: bool = setting(
        False,
        section="Precision",
        at_resume="change",
        help="Recompute activations in the backward pass; uses less memory and is about 20% slower.",
    )
    seed: int = setting(
        42, section="Data", at_resume="order", ge=0, help="Seed of initialization, data order and dropout."
    )
    dataloader_num_workers: int = setting(
        0, section="Data", at_resume="change", ge=0, le=64, advanced=True, help="Number of processes that load data."
    )
    save_steps: int = setting(
        100,
        section="Checkpoints",
        at_resume="change",
        ge=1,
        unit="steps",
        help="Steps between two checkpoints; another one is written at the end.",
    )
    save_total_limit: int = setting(
        3,
        section="Checkpoints",
        at_resume="change",
        ge=1,
        help="Number of newest checkpoints to keep, besides the best one and the newest healthy one.",
    )
    eval_steps: int | None = setting(
        None,
        section="Evaluation",
        at_resume="change",
        ge=1,
        unit="steps",
        help="Steps between two evaluations on the val split.",
    )
    eval_max_tokens: int = setting(
        20_000,
        section="Evaluation",
        at_resume="comparison",
        ge=1,
        unit="tokens",
        help="Stop an evaluation during training after this many scored tokens of the val split.",
    )
    per_device_eval_batch_size: int = setting(
        8, section="Evaluation", at_resume="change", ge=1, help="Sequences per forward pass of an evaluation."
    )
    guards: ModelGuards = setting(
        default_factory=ModelGuards, section="Guards", at_resume="change", help="Checks that stop the attempt."
    )
    retry: ModelRetry = setting(
        default_factory=ModelRetry, section="Retry", at_resume="change", help="Automatic retries."
    )


EVALUATES = (("eval_steps", 1, "eval_steps to the number of steps between two evaluations"),)
"""The field that adds the metrics of the val split."""


def training_metrics(stage: TrainingFields) -> tuple[str, ...]:
    """The metrics of a stage that trains; those of the val split only where it evaluates."""
    measured = (
        "loss",
        "steps",
        "tokens",
        "loss_tokens",
        "tokens_per_second",
        "examples",
        "parameters",
        "trainable_parameters",
    )
    return (*measured, "eval_loss", "eval_perplexity") if stage.eval_steps is not None else measured
