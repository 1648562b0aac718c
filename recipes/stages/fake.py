"""The fake stage."""

from __future__ import annotations

from typing import ClassVar, Literal

from recipes.setting import setting
from recipes.stages.fields import ANY_OUTPUT, Guards, TrainingRetry
from recipes.stages.kind import LIGHT, StageKind
from recipes.stages.launch.fields import DDP, SINGLE, LaunchFields


class FakeStage(LaunchFields):
    """A simulated engine without a model, which writes the same events: for demonstrations, tests and screenshots."""

    strategies: ClassVar[tuple[str, ...]] = (SINGLE, DDP)

    kind: Literal["fake"] = "fake"
    data: str | None = setting(
        None,
        section="Inputs",
        at_resume="input",
        accepts=ANY_OUTPUT,
        help="A stage to wait for.",
    )
    start_from: str | None = setting(
        None,
        section="Inputs",
        at_resume="input",
        advanced=True,
        accepts=("fake",),
        help="Another run's simulated training: a checkpoint (RUN:STAGE@STEP) is continued.",
    )
    max_steps: int = setting(100, section="Schedule", at_resume="change", ge=1, help="Number of steps to simulate.")
    step_s: float = setting(
        0.1, section="Schedule", at_resume="change", ge=0, unit="seconds", help="Duration of one step."
    )
    learning_rate: float = setting(
        3e-4, section="Optim", at_resume="change", gt=0, le=1, help="Peak of the simulated schedule."
    )
    seed: int = setting(42, section="Data", at_resume="order", ge=0, help="Seed of the simulated noise.")
    save_steps: int = setting(
        20, section="Checkpoints", at_resume="change", ge=1, unit="steps", help="Steps between two checkpoints."
    )
    save_total_limit: int = setting(
        3, section="Checkpoints", at_resume="change", ge=1, help="Number of newest checkpoints to keep."
    )
    checkpoint_bytes: int = setting(
        4096, section="Checkpoints", at_resume="change", ge=1, unit="bytes", help="Size of a simulated checkpoint."
    )
    eval_steps: int | None = setting(
        None,
        section="Evaluation",
        at_resume="change",
        ge=1,
        unit="steps",
        help="Steps between two simulated evaluations.",
    )
    nan_at_step: int | None = setting(
        None,
        section="Faults",
        at_resume="start",
        ge=1,
        help="The loss of the first attempt is NaN at this step, and the guard trips.",
    )
    fail_at_step: int | None = setting(
        None, section="Faults", at_resume="start", ge=1, help="The first attempt fails with an error at this step."
    )
    wait_at_step: int | None = setting(
        None,
        section="Faults",
        at_resume="change",
        ge=1,
        help="The first attempt waits for data before this step, for wait_s.",
    )
    wait_s: float = setting(
        60.0, section="Faults", at_resume="change", ge=0, unit="seconds", help="Duration of that wait."
    )
    hang_at_step: int | None = setting(
        None,
        section="Faults",
        at_resume="change",
        ge=1,
        help="The first attempt makes no progress from this step on, and does not end.",
    )
    guards: Guards = setting(
        default_factory=Guards, section="Guards", at_resume="change", help="Checks that stop the attempt."
    )
    retry: TrainingRetry = setting(
        default_factory=TrainingRetry, section="Retry", at_resume="change", help="Automatic retries."
    )


FAKE = StageKind(
    kind="fake",
    types={"fake": FakeStage},
    module="engines.fake.stage",
    needs=lambda _stage: LIGHT,
    metrics=lambda _stage: ("loss", "steps", "tokens"),
    trains=True,
)
