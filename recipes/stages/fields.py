"""The fields that every stage has: name, interpreter, threads, retries and gates."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, field_validator, model_validator

from recipes.setting import setting

DEVICE = r"[0-9]{1,4}|(GPU|MIG)-[0-9A-Za-z/-]{1,100}"
"""One device as CUDA_VISIBLE_DEVICES accepts it."""
STAGE_NAME = r"^[a-z0-9-]{1,40}$"
ANY_OUTPUT = ("*",)
"""For a field that accepts the output of every stage kind."""
MODEL_OUTPUTS = ("model",)
"""The outputs that a field for a full model accepts."""


class Strict(BaseModel):
    """A model that rejects unknown keys, wrong types and non-finite numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def starting_weights(output: str, subject: str, also: str = "") -> Any:
    """Declare `start_from` of a stage that trains.

    Args:
        output: the output that it accepts.
        subject: what is named, as the beginning of the help text.
        also: what else these weights are.
    """
    return setting(
        None,
        section="Inputs",
        at_resume="input",
        advanced=True,
        accepts=(output,),
        help=f"{subject} whose weights the training starts from{also}: a stage, a folder, or RUN:STAGE."
        " A checkpoint (RUN:STAGE@STEP) is continued instead, with its optimizer and its steps.",
    )


class Retry(Strict):
    """What the supervisor does when a stage's engine fails (`[stage.retry]`)."""

    max_attempts: int = setting(
        1,
        section="Retry",
        at_resume="change",
        ge=1,
        le=3,
        help="Maximum number of attempts, including the first; 1 means no automatic retry.",
    )


class TrainingRetry(Retry):
    """Retries of a stage that trains."""

    learning_rate_factor: float = setting(
        0.5,
        section="Retry",
        at_resume="change",
        gt=0,
        le=1,
        help="Factor for the learning rate of the next attempt after a guard tripped.",
    )


class ModelRetry(TrainingRetry):
    """Retries of a stage that trains a model."""

    out_of_memory_halvings: int = setting(
        3,
        section="Retry",
        at_resume="change",
        ge=0,
        le=3,
        help="How often a retry after exhausted memory may halve per_device_train_batch_size and double"
        " gradient_accumulation_steps; then it turns gradient_checkpointing on. These retries do not count toward"
        " max_attempts, and max_attempts = 1 turns them off.",
    )
    warmup_steps: float = setting(
        0.02,
        section="Retry",
        at_resume="change",
        ge=0,
        help="Steps over which the second retry after a guard raises the learning rate from zero again; a value below 1"
        " is a share of all steps.",
    )


class Guards(Strict):
    """Checks before each optimizer step that stop the attempt (`[stage.guards]`)."""

    grad_norm: float = setting(
        1000.0,
        section="Guards",
        at_resume="change",
        gt=0,
        help="Stop the attempt when the gradient norm before clipping exceeds this value.",
    )


class ModelGuards(Guards):
    """Checks of a stage that trains a model."""

    loss_spike: float = setting(
        10.0,
        section="Guards",
        at_resume="change",
        ge=0,
        help="Stop the attempt when the median loss of the last 5 steps exceeds the median of the 64 steps before by"
        " this many robust standard deviations (1.4826 * MAD, at least 0.05 nats); 0 turns the guard off.",
    )
    no_improvement: float | None = setting(
        None,
        section="Guards",
        at_resume="change",
        gt=0,
        help="Save a checkpoint and end the stage as failed after this many steps without an improvement of"
        " no_improvement_on by 0.001; a value below 1 is a share of all steps.",
    )
    no_improvement_on: Literal["loss", "eval_loss"] = setting(
        "loss",
        section="Guards",
        at_resume="change",
        help="Loss that must improve: that of training, as the mean over a tenth of the window, or that of the val"
        " split.",
    )
    wall_clock_s: float | None = setting(
        None,
        section="Guards",
        at_resume="change",
        gt=0,
        unit="seconds",
        help="Save a checkpoint and stop the run after this time of an attempt; a resume continues with the same"
        " time again.",
    )


class Gate(Strict):
    """A condition that the finished stage's metrics must meet (`[[stage.gate]]`)."""

    metric: str = setting(
        section="Gates", at_resume="change", min_length=1, help="Name of a metric that the stage reports."
    )
    op: Literal["<", "<=", ">", ">="] = setting(
        section="Gates", at_resume="change", help="Comparison of the metric with the value."
    )
    value: float = setting(
        section="Gates", at_resume="change", help="The limit; a metric that was not measured fails the gate."
    )
    stretch: float | None = setting(
        None, section="Gates", at_resume="change", help="A stricter limit, reported but not required."
    )


class StageFields(Strict):
    """The fields that every stage has."""

    name: str = setting(
        section="Stage", at_resume="identity", pattern=STAGE_NAME, help="Unique name; other stages use it as an input."
    )
    python: str | None = setting(
        None,
        section="Launch",
        at_resume="change",
        advanced=True,
        help="Python interpreter that runs the stage's engine; by default, Cockpit's own.",
    )
    threads: int | None = setting(
        None,
        section="Launch",
        at_resume="change",
        ge=1,
        advanced=True,
        help="CPU threads of the engine; by default, one per physical core that the run may use (affinity, quota).",
    )
    gate: list[Gate] = setting(
        default_factory=list, section="Gates", at_resume="change", help="Conditions that the stage's metrics must meet."
    )
    retry: Retry = setting(default_factory=Retry, section="Retry", at_resume="change", help="Automatic retries.")
    kind: str
    """What the stage does; each type of stage allows exactly one value."""


class FilesFields(StageFields):
    """The fields of a stage whose output is for use elsewhere."""

    output_dir: str | None = setting(
        None,
        section="Files",
        folder=True,
        new_folder=True,
        help="Also place the output's files into this folder; large ones share their bytes with the run's.",
    )
    overwrite_output_dir: bool = setting(
        False,
        section="Files",
        advanced=True,
        help="Replace files of the same names in output_dir; otherwise it must be new or empty.",
    )


class DeviceFields(StageFields):
    """The fields of a stage that computes on an accelerator, if there is one."""

    devices: list[str] = setting(
        default_factory=list,
        section="Launch",
        at_resume="change",
        advanced=True,
        help="GPUs that the engine may use, as numbers of nvidia-smi or UUIDs; it computes on the first. By default,"
        " those of CUDA_VISIBLE_DEVICES where the run was launched, else all.",
    )

    @field_validator("devices", mode="before")
    @classmethod
    def _numbers_as_words(cls, value: Any) -> Any:
        if isinstance(value, list):
            return [str(one) if isinstance(one, int) and not isinstance(one, bool) else one for one in value]
        return value

    @model_validator(mode="after")
    def _devices_that_exist_at_all(self) -> DeviceFields:
        wrong = [device for device in self.devices if re.fullmatch(DEVICE, device) is None]
        if wrong:
            raise ValueError(
                f"devices — not a GPU; got {', '.join(wrong)}; allowed: a list of numbers as nvidia-smi shows them, or"
                " of UUIDs (GPU-…, MIG-…)"
            )
        return self


class ComputeFields(DeviceFields):
    """How a training computes: kernels and rounding, not what is computed."""

    float32_matmul_precision: Literal["auto", "highest", "high", "medium"] = setting(
        "auto",
        section="Precision",
        at_resume="arithmetic",
        advanced=True,
        help="How products of float32 matrices are computed, as torch names it: highest is float32, high allows TF32 on"
        " a GPU. auto is high on a GPU that has TF32, else highest.",
    )
    deterministic: bool = setting(
        False,
        section="Precision",
        at_resume="change",
        advanced=True,
        help="Use only kernels that give the same bits each time, where torch has them; slower on a GPU. On the CPU a"
        " training is exact without it.",
    )
    torch_compile: bool = setting(
        False,
        section="Precision",
        at_resume="change",
        advanced=True,
        help="Compile the model's layers with torch.compile at the first step; needs a C++ compiler. Worth it in"
        " long trainings.",
    )
    use_liger_kernel: bool = setting(
        False,
        section="Precision",
        at_resume="change",
        advanced=True,
        help="Use Liger's kernels for norms, rotary embedding and activations; needs an NVIDIA GPU and the package"
        " liger-kernel.",
    )
