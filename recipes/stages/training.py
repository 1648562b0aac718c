"""The fields of every stage that trains a model."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recipes.setting import setting
from recipes.stages.fields import ComputeFields, ModelGuards, ModelRetry
from recipes.stages.kind import TRAIN

QUANTIZED_OPTIMIZERS = ("adamw_8bit", "paged_adamw_8bit")
"""Optimizers of bitsandbytes."""


class TrainingFields(ComputeFields):
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
    lr_scheduler_type: Literal[
        "cosine", "cosine_with_min_lr", "linear", "constant", "constant_with_warmup", "inverse_sqrt"
    ] = setting(
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
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit", "paged_adamw_8bit"] = setting(
        "adamw_torch_fused",
        section="Optim",
        at_resume="optimizer",
        help="Optimizer, as transformers names it; those of 8 bits need bitsandbytes.",
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
        " true for a training of an existing model where the machine computes in bfloat16 natively, else false.",
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
    save_strategy: Literal["no", "steps", "epoch"] = setting(
        "steps",
        section="Checkpoints",
        at_resume="change",
        help="When checkpoints are written: each save_steps, at the end of each epoch, or at the end only.",
    )
    save_steps: int = setting(
        100,
        section="Checkpoints",
        at_resume="change",
        ge=1,
        unit="steps",
        help="Steps between two checkpoints with save_strategy steps; another one is written at the end.",
    )
    save_total_limit: int = setting(
        3,
        section="Checkpoints",
        at_resume="change",
        ge=1,
        help="Number of newest checkpoints to keep, besides the best one and the newest healthy one.",
    )
    load_best_model_at_end: bool = setting(
        False,
        section="Checkpoints",
        at_resume="change",
        help="The output has the weights of the checkpoint with the lowest eval_loss, not those of the last step.",
    )
    eval_strategy: Literal["no", "steps", "epoch"] = setting(
        "steps",
        section="Evaluation",
        at_resume="change",
        help="When the val split is evaluated: each eval_steps if that is set, at the end of each epoch, or never.",
    )
    eval_steps: int | None = setting(
        None,
        section="Evaluation",
        at_resume="change",
        ge=1,
        unit="steps",
        help="Steps between two evaluations on the val split with eval_strategy steps; another one is at the end.",
    )
    early_stopping_patience: int | None = setting(
        None,
        section="Evaluation",
        at_resume="change",
        ge=1,
        help="End the training after this many evaluations in a row whose eval_loss does not improve on the best one.",
    )
    early_stopping_threshold: float = setting(
        0.0,
        section="Evaluation",
        at_resume="change",
        ge=0,
        unit="nats",
        help="Fall of eval_loss that an evaluation must exceed to count as an improvement for early stopping.",
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
    report_to: list[Literal["tensorboard"]] = setting(
        default_factory=list,
        section="Reports",
        at_resume="change",
        max_length=1,
        help="Also write the numbers of each step and evaluation for these programs; tensorboard reads them from"
        " RUN/stages/STAGE/tensorboard.",
    )
    guards: ModelGuards = setting(
        default_factory=ModelGuards, section="Guards", at_resume="change", help="Checks that stop the attempt."
    )
    retry: ModelRetry = setting(
        default_factory=ModelRetry, section="Retry", at_resume="change", help="Automatic retries."
    )

    @property
    def evaluates(self) -> bool:
        """Whether the val split is evaluated during the training."""
        return self.eval_strategy == "epoch" or (self.eval_strategy == "steps" and self.eval_steps is not None)

    @model_validator(mode="after")
    def _evaluations_that_others_need(self) -> TrainingFields:
        needs = {
            "load_best_model_at_end": self.load_best_model_at_end,
            "early_stopping_patience": self.early_stopping_patience is not None,
            "guards.no_improvement_on": self.guards.no_improvement is not None
            and self.guards.no_improvement_on == "eval_loss",
        }
        found = [name for name, is_set in needs.items() if is_set]
        if found and not self.evaluates:
            raise ValueError(
                f"{found[0]} — needs evaluations; got eval_strategy {self.eval_strategy} without eval_steps; allowed:"
                ' eval_steps with a number of steps, or eval_strategy = "epoch"'
            )
        return self

    @model_validator(mode="after")
    def _checkpoints_where_it_evaluates(self) -> TrainingFields:
        if not self.load_best_model_at_end or not self.evaluates:
            return self
        fits = self.save_strategy == self.eval_strategy
        if self.save_strategy == "steps" and self.eval_steps is not None:
            fits = fits and self.save_steps % self.eval_steps == 0
        if not fits:
            every = self.save_steps if self.save_strategy == "steps" else self.save_strategy
            raise ValueError(
                f"load_best_model_at_end — each checkpoint needs an evaluation; got checkpoints at {every}, evaluations"
                f" at {self.eval_steps if self.eval_strategy == 'steps' else self.eval_strategy}; allowed: the same"
                " strategy for both, and save_steps as a multiple of eval_steps"
            )
        return self


EVALUATES = (("eval_steps", 1, "eval_steps to the number of steps between two evaluations"),)
"""The field that adds the metrics of the val split."""


def training_needs(stage: TrainingFields) -> tuple[str, ...]:
    """The distributions that a stage that trains imports."""
    more = {"bitsandbytes": stage.optim in QUANTIZED_OPTIMIZERS, "liger-kernel": stage.use_liger_kernel}
    return (*TRAIN, *stage.report_to, *(name for name, is_needed in more.items() if is_needed))


def training_metrics(stage: TrainingFields) -> tuple[str, ...]:
    """The metrics of a stage that trains; those of the val split only where it evaluates."""
    measured = (
        "loss",
        "steps",
        "tokens",
        "loss_tokens",
        "tokens_per_second",
        "samples_per_second",
        "examples",
        "parameters",
        "trainable_parameters",
        "output_step",
    )
    return (*measured, "eval_loss", "eval_perplexity") if stage.evaluates else measured
