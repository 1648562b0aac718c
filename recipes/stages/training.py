"""The fields of every stage that trains a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import model_validator

from recipes.problems import shown
from recipes.setting import setting
from recipes.stages.fields import ComputeFields, ModelGuards, ModelRetry
from recipes.stages.kind import TRAIN, backend_of
from recipes.stages.launch.fields import DDP, FSDP2, SINGLE, LaunchFields

QUANTIZED_OPTIMIZERS = (
    "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "lion_32bit", "lion_8bit", "paged_lion_32bit",
    "paged_lion_8bit",
)  # fmt: skip
"""Optimizers of bitsandbytes."""
MUON = "muon"
"""The optimizer of matrices, which a training of all weights can have."""
UNREAD = {"adafactor": ("adam_beta1", "adam_beta2", "adam_epsilon"), "lion": ("adam_epsilon",)}
"""Settings of Adam that other optimizers, by a part of their names, do not have."""
DIVIDED_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused")
"""Optimizers whose step of a part of a weight is that part of their step: each value has a state of its own."""
EVALUATED = ("eval_loss", "eval_perplexity")
"""What each evaluation measures."""


class TrainingFields(ComputeFields, LaunchFields):
    """The fields that pretraining and fine-tuning share."""

    strategies: ClassVar[tuple[str, ...]] = (SINGLE, DDP, FSDP2)

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
        "cosine",
        "cosine_with_min_lr",
        "cosine_with_restarts",
        "linear",
        "polynomial",
        "warmup_stable_decay",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
    ] = setting(
        "cosine", section="Schedule", at_resume="change", help="Shape of the learning rate schedule after warm-up."
    )
    min_lr_rate: float = setting(
        0.1,
        section="Schedule",
        at_resume="change",
        ge=0,
        le=1,
        help="Final learning rate as a share of the peak, for cosine_with_min_lr and warmup_stable_decay.",
    )
    num_cycles: int = setting(
        1,
        section="Schedule",
        at_resume="change",
        ge=1,
        advanced=True,
        help="Number of falls from the peak to zero, for cosine_with_restarts.",
    )
    power: float = setting(
        1.0,
        section="Schedule",
        at_resume="change",
        gt=0,
        advanced=True,
        help="Exponent of the remaining share of the steps, for polynomial.",
    )
    lr_end: float = setting(
        1e-7, section="Schedule", at_resume="change", ge=0, advanced=True, help="Final learning rate, for polynomial."
    )
    num_decay_steps: float = setting(
        0.1,
        section="Schedule",
        at_resume="change",
        gt=0,
        advanced=True,
        help="Number of steps at the end over which warmup_stable_decay falls; a value below 1 is a share of all"
        " steps.",
    )
    decay_type: Literal["cosine", "linear", "1-sqrt"] = setting(
        "cosine",
        section="Schedule",
        at_resume="change",
        advanced=True,
        help="Shape of the fall of warmup_stable_decay.",
    )
    warmup_steps: float = setting(
        0.0,
        section="Schedule",
        at_resume="change",
        ge=0,
        help="Number of warm-up steps; a value below 1 is a share of all steps.",
    )
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "adafactor",
        "lion_32bit",
        "lion_8bit",
        "paged_lion_32bit",
        "paged_lion_8bit",
        "muon",
    ] = setting(
        "adamw_torch_fused",
        section="Optim",
        at_resume="optimizer",
        help="Optimizer, as transformers names it; those of 8 bits, lion and paged ones need bitsandbytes. muon is"
        " torch's Muon for the matrices of the layers and AdamW for the rest, where all weights are trained.",
    )
    label_smoothing_factor: float = setting(
        0.0,
        section="Optim",
        at_resume="change",
        ge=0,
        lt=1,
        advanced=True,
        help="Share of each label that is spread over the whole vocabulary in the loss of training; evaluations have"
        " none.",
    )
    neftune_noise_alpha: float | None = setting(
        None,
        section="Optim",
        at_resume="change",
        gt=0,
        advanced=True,
        help="Strength of random noise on the embeddings during training (NEFTune), often 5 to 15; none without a"
        " value.",
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
    fp16: bool | None = setting(
        None,
        section="Precision",
        at_resume="arithmetic",
        help="Compute in float16 under autocast, with a scaled loss: for GPUs without bfloat16. Trained weights stay"
        " float32; frozen ones are float16. By default, true for a training of an existing model on a GPU of compute"
        " capability 7.0 to 7.5, else false.",
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
    async_save: bool = setting(
        True,
        section="Checkpoints",
        at_resume="change",
        help="The training waits only for a copy of a checkpoint in memory; it is written while the next steps are"
        " computed. The copy is as large as the trained weights and the optimizer's state. Where memory has no room for"
        " it, the training waits for the whole save.",
    )
    load_best_model_at_end: bool = setting(
        False,
        section="Checkpoints",
        at_resume="change",
        help="The output has the weights of the checkpoint that is best by metric_for_best_model, not those of the last"
        " step.",
    )
    metric_for_best_model: str = setting(
        "eval_loss",
        section="Checkpoints",
        at_resume="comparison",
        advanced=True,
        suggests=EVALUATED,
        help="Metric of evaluations that decides which checkpoint is the best, and when early stopping ends the"
        " training.",
    )
    greater_is_better: bool | None = setting(
        None,
        section="Checkpoints",
        at_resume="comparison",
        advanced=True,
        help="Whether a greater metric_for_best_model is better; by default, only for a metric that is neither a loss"
        " nor a perplexity.",
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
        help="End the training after this many evaluations in a row whose metric_for_best_model does not improve on the"
        " best one.",
    )
    early_stopping_threshold: float = setting(
        0.0,
        section="Evaluation",
        at_resume="change",
        ge=0,
        help="Change of metric_for_best_model that an evaluation must exceed to count as an improvement for early"
        " stopping.",
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
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = setting(
        default_factory=list,
        section="Reports",
        at_resume="change",
        max_length=3,
        help="Also write the numbers of each step and evaluation for these programs: tensorboard reads them from"
        " RUN/stages/STAGE/tensorboard; wandb keeps them in RUN/stages/STAGE/wandb, and sends them only where the"
        " environment has WANDB_MODE=online; mlflow keeps them in RUN/stages/STAGE/mlflow, and sends them only where"
        " the environment has MLFLOW_TRACKING_URI.",
    )
    guards: ModelGuards = setting(
        default_factory=ModelGuards, section="Guards", at_resume="change", help="Checks that stop the attempt."
    )
    retry: ModelRetry = setting(
        default_factory=ModelRetry, section="Retry", at_resume="change", help="Automatic retries."
    )

    @property
    def rows_per_step(self) -> int:
        """Rows or windows of one optimizer step, over all processes."""
        return self.per_device_train_batch_size * self.gradient_accumulation_steps * self.launch.world_size

    def launch_problems(self) -> Iterator[str]:
        """What does not work with parts of weights and of optimizer states."""
        if self.launch.strategy != FSDP2:
            return
        if self.optim not in DIVIDED_OPTIMIZERS:
            yield (
                f"optim — {self.optim} needs whole matrices, and fsdp2 divides them; got {self.optim}; allowed:"
                f" {', '.join(DIVIDED_OPTIMIZERS)}, or launch.strategy = ddp"
            )
        if self.torch_compile:
            yield "torch_compile — fsdp2 does not divide compiled layers; got true; allowed: false"

    @property
    def evaluates(self) -> bool:
        """Whether the val split is evaluated during the training."""
        return self.eval_strategy == "epoch" or (self.eval_strategy == "steps" and self.eval_steps is not None)

    @property
    def measured(self) -> tuple[str, ...]:
        """What an evaluation of this training measures."""
        return EVALUATED

    @property
    def rises(self) -> bool:
        """Whether a greater `metric_for_best_model` is better."""
        if self.greater_is_better is not None:
            return self.greater_is_better
        return not self.metric_for_best_model.endswith(("loss", "perplexity"))

    @model_validator(mode="after")
    def _a_metric_that_is_measured(self) -> TrainingFields:
        if self.metric_for_best_model not in self.measured:
            raise ValueError(
                f"metric_for_best_model — an evaluation does not measure it; got {shown(self.metric_for_best_model)};"
                f" allowed: {', '.join(self.measured)}"
            )
        return self

    @model_validator(mode="after")
    def _one_format_of_16_bits(self) -> TrainingFields:
        if self.fp16 and self.bf16:
            raise ValueError("fp16 — products have one format; got fp16 and bf16; allowed: one of them")
        if self.fp16 and backend_of(self) != "hf":
            raise ValueError(
                f"fp16 — backend = {backend_of(self)} chooses its own format; got true; allowed: leave it out"
            )
        if self.fp16 and self.launch.strategy == FSDP2:
            raise ValueError(
                "fp16 — parts of weights have no common loss scale; got fsdp2; allowed: ddp, or bf16 = true"
            )
        return self

    @model_validator(mode="after")
    def _settings_that_the_optimizer_reads(self) -> TrainingFields:
        for part, names in UNREAD.items():
            changed = [name for name in names if getattr(self, name) != type(self).model_fields[name].default]
            if part in self.optim and changed:
                raise ValueError(
                    f"{changed[0]} — {self.optim} has no such setting; got {getattr(self, changed[0])}; allowed: leave"
                    " it out, or another optim"
                )
        return self

    @model_validator(mode="after")
    def _an_end_below_the_peak(self) -> TrainingFields:
        if self.lr_scheduler_type == "polynomial" and self.lr_end >= self.learning_rate:
            raise ValueError(
                f"lr_end — must be below learning_rate; got {self.lr_end} and {self.learning_rate}; allowed: a number"
                " ≥ 0 and < learning_rate"
            )
        return self

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
    return (*measured, *EVALUATED) if stage.evaluates else measured
