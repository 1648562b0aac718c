"""What every stage of a recipe has: a name, where it runs, retries and gates."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from recipes.setting import setting

STAGE_NAME = r"^[a-z0-9-]{1,40}$"
MODEL_OUTPUTS = ("model",)
"""What a field that needs whole weights accepts."""


class Strict(BaseModel):
    """Unknown keys, wrong types and non-finite numbers are problems, never guesses."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Retry(Strict):
    """What the supervisor does when a stage's engine fails (`[stage.retry]`)."""

    max_attempts: int = setting(
        1, section="Retry", ge=1, le=3, help="Engine processes the stage may use in all; 1 means no automatic retry."
    )


class TrainingRetry(Retry):
    """The same for a stage that trains."""

    learning_rate_factor: float = setting(
        0.5,
        section="Retry",
        gt=0,
        le=1,
        help="After a tripped guard the next attempt multiplies the learning rate by this.",
    )


class Guards(Strict):
    """When an engine stops itself, before the optimizer step is applied (`[stage.guards]`)."""

    grad_norm: float = setting(
        1000.0, section="Guards", gt=0, help="Stop when the gradient norm before clipping exceeds this."
    )


class Gate(Strict):
    """A condition that the finished stage's metrics must meet (`[[stage.gate]]`)."""

    metric: str = setting(section="Gates", min_length=1, help="Name of a metric that the stage reports.")
    op: Literal["<", "<=", ">", ">="] = setting(section="Gates", help="How the metric is compared with the value.")
    value: float = setting(section="Gates", help="The limit; a metric that is not measured never passes.")
    stretch: float | None = setting(None, section="Gates", help="A stricter value that is reported but not required.")


class StageFields(Strict):
    """What every stage has."""

    name: str = setting(section="Stage", pattern=STAGE_NAME, help="Unique name; later stages use it as an input.")
    python: str | None = setting(
        None,
        section="Launch",
        advanced=True,
        help="Interpreter that runs this stage's engine; the cockpit's own by default.",
    )
    threads: int | None = setting(
        None, section="Launch", ge=1, advanced=True, help="CPU threads of the engine; all physical cores by default."
    )
    gate: list[Gate] = setting(default_factory=list, section="Gates", help="Conditions the stage must meet.")
    retry: Retry = setting(default_factory=Retry, section="Retry", help="Automatic retries.")
    kind: str
    """What the stage does; each type has its own word as the only one allowed."""
