"""The table `[ship]` of a recipe, or of a file of limits: what must be so of a GGUF file before it ships.

The defaults are strict: a win over a baseline that chance does not explain, hardly any forgetting, proofs, custody.
Size, speed and memory have no default, because only the operator knows what they must be.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import model_validator

from recipes.setting import setting
from recipes.stages.fields import STAGE_NAME, Strict

THIS, ANY = "this", "any"


def _limit(default: Any, section: str, help_text: str, **more: Any) -> Any:
    return setting(default, section=section, at_resume="change", help=help_text, **more)


class ShipLimits(Strict):
    """What `cockpit ship` demands of a file; nothing in a run reads it."""

    file: str | None = _limit(
        None, "File", "File type to ship, such as Q4_K_M; needed where an export has several files.", min_length=1
    )
    missing_ancestors: int = _limit(
        0,
        "Custody",
        "Most inputs that the file was made from and that are not found any more; checkpoints that were removed do not"
        " count.",
        ge=0,
    )
    eval_loss_rise: float = _limit(
        0.1,
        "Custody",
        "Most that the last validation loss of a training is above its smallest one, as a share; more is overfitting. A"
        " training that keeps its best checkpoint is not affected.",
        ge=0,
    )
    task: str | None = _limit(
        None,
        "Task",
        "Evaluate stage whose test rows are the task; by default the only one that asked the file rows of its own.",
        pattern=STAGE_NAME,
    )
    rows: int = _limit(30, "Task", "Least rows of the task.", ge=1)
    unjudged_rows: int = _limit(0, "Task", "Most rows without a verdict, because a check itself failed.", ge=0)
    baseline: bool = _limit(True, "Task", "Whether the file must be better than a baseline on the same rows.")
    difference_low: float = _limit(
        0.0,
        "Task",
        "What the lower end of the interval of the difference to the baseline must be above: 0 asks for a win that"
        " chance does not explain, -0.02 for a loss of less than 2 points.",
        ge=-1,
        lt=1,
    )
    success_low: float | None = _limit(
        None, "Task", "Least lower end of the interval of the share of passed rows.", ge=0, le=1
    )
    forgetting: bool = _limit(
        True, "General", "Whether the file must have been asked general questions, with its base model as baseline."
    )
    general: str | None = _limit(
        None,
        "General",
        "Evaluate stage with the general questions; by default the only one that asked the file those that Cockpit"
        " ships. A stage that is named may ask others.",
        pattern=STAGE_NAME,
    )
    general_rows: int = _limit(60, "General", "Least general questions.", ge=1)
    general_baseline: bool = _limit(
        True, "General", "Whether their baseline must be a model that the file was made from."
    )
    forgetting_high: float = _limit(
        0.15,
        "General",
        "Most of the upper end of the interval of the drop of success against the base model; above it, a drop that"
        " chance explains is not enough evidence. The 84 questions that Cockpit ships give 0.044 where nothing changed,"
        " and about 0.1 where a training lost and won ten.",
        ge=0,
        le=1,
    )
    size_bytes: int | None = _limit(None, "Cost", "Most bytes of the file and its further parts.", gt=0, unit="bytes")
    peak_rss_bytes: int | None = _limit(
        None, "Cost", "Most resident memory of the process that answered the task.", gt=0, unit="bytes"
    )
    latency_p95_s: float | None = _limit(
        None, "Cost", "Most time that 95 % of the task's answers took.", gt=0, unit="seconds"
    )
    first_token_p50_s: float | None = _limit(
        None, "Cost", "Most time to the first token, of half of the task's answers.", gt=0, unit="seconds"
    )
    answer_tokens_per_second: float | None = _limit(
        None, "Cost", "Least speed of the task's answers.", gt=0, unit="tokens per second"
    )
    machine: str = _limit(
        THIS,
        "Cost",
        'The machine on which time and memory count: "this" one, "any", or the name that results files give it.',
        min_length=1,
    )
    mean_kl: float | None = _limit(
        None,
        "Quality",
        "Most mean KL divergence from the trained model, of the export's comparison.",
        gt=0,
        unit="nats",
    )
    ended: float | None = _limit(
        None, "Quality", "Least share of the task's answers that the model ended before the limit.", ge=0, le=1
    )
    repetition: float | None = _limit(
        None, "Quality", "Most share of four-word sequences that an answer of the task has had before.", ge=0, le=1
    )

    @model_validator(mode="after")
    def _something_is_asked_of_the_task(self) -> Self:
        if not self.baseline and self.success_low is None:
            raise ValueError(
                "success_low — required without a baseline, because nothing else is asked of the task; got none; set"
                " success_low, or baseline = true"
            )
        return self
