"""Events of a training: its optimizer steps, the guards before them, and the checkpoints after them."""

from __future__ import annotations

from engines.events.event import Event


class StepsPlanned(Event, frozen=True, kw_only=True, tag="steps_planned"):
    """The number of optimizer steps that the attempt will have; written when the engine knows it."""

    stage: str
    attempt: int
    total_steps: int


class Step(Event, frozen=True, kw_only=True, tag="step"):
    """One optimizer step (or, when a guard tripped, the step that the guard refused).

    Attributes:
        loss: mean nats per loss token over the accumulation window and all ranks.
        learning_rate: the learning rate of this step.
        grad_norm: L2 norm before clipping.
        tokens: real (unpadded) tokens of all ranks, cumulative over the stage's lineage.
        loss_tokens: tokens that the loss counts, cumulative.
        step_s: duration of the step.
        data_wait_s: the part of `step_s` spent waiting for data.
        metrics: what the training's method measured besides, by the names of the method's own library: for preferences
            `rewards/margins`, `logps/chosen`, `kl` and others. Each name is a series of the stage.
    """

    stage: str
    attempt: int
    step: int
    epoch: float
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens: int
    loss_tokens: int
    step_s: float
    data_wait_s: float | None = None
    metrics: dict[str, float | None] = {}


class GuardTripped(Event, frozen=True, kw_only=True, tag="guard_tripped"):
    """The engine refused to apply a step. `value` is the measured value, `limit` the allowed one (null: any finite
    number)."""

    stage: str
    attempt: int
    guard: str
    step: int
    value: float | None
    limit: float | None


class CheckpointStaged(Event, frozen=True, kw_only=True, tag="checkpoint_staged"):
    """The engine has a copy of a checkpoint in memory and writes it while the training continues; it is no checkpoint
    before its `checkpoint_committed`. The training waited `stall_s` for the copy, `waited_s` of it for the checkpoint
    before. `bytes` are those of the copy."""

    stage: str
    attempt: int
    step: int
    bytes: int
    stall_s: float
    waited_s: float = 0.0


class CheckpointCommitted(Event, frozen=True, kw_only=True, tag="checkpoint_committed"):
    """The engine renamed a checkpoint into place. `path` is relative to the run directory; `sha256` is that of its
    manifest. With `evaluated`, it is the attempt's checkpoint of this step that was committed before its evaluation:
    the same files, with the loss in a new manifest. `rng_sha256` is the SHA-256 of all random states at the step:
    Python's, numpy's, and torch's of each device. `write_s`: seconds from its first file to its final name; `stall_s`:
    those of them, and of the copy before, for which the training waited."""

    stage: str
    attempt: int
    step: int
    path: str
    sha256: str
    healthy: bool
    best: bool = False
    bytes: int = 0
    loss: float | None = None
    evaluated: bool = False
    rng_sha256: str = ""
    stall_s: float | None = None
    write_s: float | None = None


class CheckpointRemoved(Event, frozen=True, kw_only=True, tag="checkpoint_removed"):
    stage: str
    attempt: int
    step: int
    path: str
    sha256: str
    healthy: bool = True
    best: bool = False
