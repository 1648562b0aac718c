"""The dpo stage: training on pairs of answers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from recipes.setting import setting
from recipes.stages.data_fields import DATASET, READ_METRICS
from recipes.stages.fields import starting_weights
from recipes.stages.finetune import FINETUNE, FinetuneFields, FinetuneModelStage, FinetuneStage
from recipes.stages.kind import StageKind
from recipes.stages.label_fields import LABEL_METRICS
from recipes.stages.launch.fields import DDP, SINGLE
from recipes.stages.training import EVALUATES, training_metrics

LOSS_TYPES = (
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "sft", "sigmoid_norm",
)  # fmt: skip
"""The losses of TRL's DPOConfig."""
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")
"""The losses that read `label_smoothing`."""
DIVERGENT = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "sft")
"""The losses that are defined for every f-divergence."""
UNWEIGHTED = {"aot", "aot_unpaired"}
"""The losses that sort the pairs of a batch, so that no pair has a weight of its own."""
REFERENCE = "; it is the reference too"
"""What the weights that a training starts from are besides."""
MEASURED = (
    "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected",
    "logits/chosen", "logits/rejected", "mean_token_accuracy", "entropy",
)  # fmt: skip
"""What TRL's DPOTrainer measures at each step and evaluation."""


class PreferenceFields(FinetuneFields):
    """The fields of training on pairs of answers, whatever its output."""

    strategies: ClassVar[tuple[str, ...]] = (SINGLE, DDP)

    data: str = setting(
        section="Inputs",
        at_resume="input",
        accepts=("messages", DATASET),
        help="The preferences, rows with prompt, chosen and rejected: a messages stage, a file, a folder of files, or"
        " the id of a dataset in the hub cache.",
    )
    learning_rate: float = setting(
        1e-5, section="Optim", at_resume="change", gt=0, le=1, help="Peak learning rate; far below that of finetune."
    )
    beta: float = setting(
        0.1,
        section="Preference",
        at_resume="arithmetic",
        gt=0,
        help="How strongly the reference holds the model back; the τ of ipo. Higher values allow less change.",
    )
    loss_type: list[str] = setting(
        default_factory=lambda: ["sigmoid"],
        section="Preference",
        at_resume="arithmetic",
        min_length=1,
        suggests=LOSS_TYPES,
        help="Loss of a pair, as TRL names it; several are added with loss_weights. sigmoid is the original DPO.",
    )
    loss_weights: list[float] = setting(
        default_factory=list,
        section="Preference",
        at_resume="arithmetic",
        advanced=True,
        help="Weight of each loss of loss_type; without any, each counts once.",
    )
    label_smoothing: float = setting(
        0.0,
        section="Preference",
        at_resume="arithmetic",
        ge=0,
        lt=0.5,
        help="Probability that a preference is wrong, for robust, exo_pair (usually 1e-3), aot and aot_unpaired.",
    )
    ld_alpha: float | None = setting(
        None,
        section="Preference",
        at_resume="arithmetic",
        ge=0,
        le=1,
        advanced=True,
        help="Weight of the tokens of an answer beyond the length of the shorter one (LD-DPO); by default 1.",
    )
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence"] = setting(
        "reverse_kl",
        section="Preference",
        at_resume="arithmetic",
        advanced=True,
        help="Divergence between model and reference (f-DPO).",
    )
    use_weighting: bool = setting(
        False,
        section="Preference",
        at_resume="arithmetic",
        advanced=True,
        help="Weight each pair by how likely the model writes both answers (WPO).",
    )
    disable_dropout: bool = setting(
        True,
        section="Preference",
        at_resume="arithmetic",
        advanced=True,
        help="Train without any dropout, lora_dropout included.",
    )
    precompute_ref_log_probs: bool = setting(
        False,
        section="Preference",
        at_resume="arithmetic",
        advanced=True,
        help="Compute the reference's log probabilities of all pairs once, before the first step.",
    )
    train_on: Literal["answers", "last-answer"] = setting(
        "answers",
        section="Labels",
        at_resume="order",
        help="What the loss counts of chosen and rejected: every answer with its end token, or only the last one.",
    )
    padding_free: bool = setting(
        True,
        section="Batch",
        at_resume="change",
        advanced=True,
        help="Compute the answers of a batch without padding: in one sequence whose rows do not see each other, or one"
        " by one where the model's attention cannot keep them apart. The loss is the same.",
    )
    truncation: Literal["error", "drop", "answer"] = setting(
        "drop",
        section="Labels",
        at_resume="order",
        help="What becomes of a pair with an answer that ends beyond max_length: error refuses it, drop leaves it out,"
        " answer cuts off the ends. All are counted.",
    )

    @field_validator("loss_type", mode="before")
    @classmethod
    def _one_loss(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _losses(self) -> PreferenceFields:
        unknown = [name for name in self.loss_type if name not in LOSS_TYPES]
        if unknown:
            raise ValueError(
                f"loss_type — not a loss; got {unknown[0][:40]!r}; allowed: one or more of {', '.join(LOSS_TYPES)}"
            )
        if self.loss_weights and len(self.loss_weights) != len(self.loss_type):
            raise ValueError(
                f"loss_weights — one weight for each loss; got {len(self.loss_weights)} for {len(self.loss_type)};"
                " allowed: as many as loss_type has, or none"
            )
        if self.f_divergence_type != "reverse_kl":
            self._refuse("f_divergence_type", set(self.loss_type) - set(DIVERGENT), DIVERGENT)
        if self.use_weighting:
            self._refuse("use_weighting", set(self.loss_type) & UNWEIGHTED, set(LOSS_TYPES) - UNWEIGHTED)
        return self

    def _refuse(self, field: str, wrong: set[str], allowed: Any) -> None:
        if wrong:
            raise ValueError(
                f"{field} — not defined for this loss; got loss_type {', '.join(sorted(wrong))}; allowed:"
                f" {', '.join(sorted(allowed))}"
            )

    @property
    def measured(self) -> tuple[str, ...]:
        """What an evaluation of this training measures."""
        return ("eval_loss", *(f"eval_{name}" for name in MEASURED))

    @model_validator(mode="after")
    def _pairs_with_trl(self) -> PreferenceFields:
        if self.backend != "hf":
            raise ValueError(f"backend — pairs are trained with TRL's own DPOTrainer; got {self.backend}; allowed: hf")
        return self

    @model_validator(mode="after")
    def _pairs_in_their_own_order(self) -> PreferenceFields:
        if self.packing:
            raise ValueError("packing — pairs of answers are not packed; got true; allowed: false")
        if self.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor — pairs have no labels of tokens; got {self.label_smoothing_factor}; allowed:"
                " 0, or label_smoothing with a loss_type that reads it"
            )
        if self.train_sampling_strategy != "random":
            raise ValueError(
                f"train_sampling_strategy — pairs are not grouped; got {self.train_sampling_strategy}; allowed: random"
            )
        return self

    @model_validator(mode="after")
    def _smoothing(self) -> PreferenceFields:
        if self.label_smoothing and not set(self.loss_type) & set(SMOOTHED):
            raise ValueError(
                f"label_smoothing — {', '.join(self.loss_type)} does not read it; got {self.label_smoothing};"
                f" allowed: 0, or loss_type {', '.join(SMOOTHED)}"
            )
        if "exo_pair" in self.loss_type and not self.label_smoothing:
            raise ValueError("label_smoothing — exo_pair needs it; got 0; allowed: a number above 0, usually 1e-3")
        return self


class DpoStage(PreferenceFields, FinetuneStage):
    """Direct preference optimization: LoRA training on pairs of answers, against a frozen reference."""

    kind: Literal["dpo"] = "dpo"  # type: ignore[assignment]
    start_from: str | None = starting_weights("adapter", "Adapter", REFERENCE)

    @property
    def begins_as_base(self) -> bool:
        """Whether a new adapter changes nothing, and changes nothing of the base later: without it, the base is the
        reference."""
        return self.init_lora_weights in ("true", "gaussian") and self.bias == "none"

    @model_validator(mode="after")
    def _dropout_that_is_not_turned_off(self) -> DpoStage:
        if self.disable_dropout and self.lora_dropout:
            raise ValueError(
                f"lora_dropout — disable_dropout would set it to 0; got {self.lora_dropout}; allowed: 0, or"
                " disable_dropout = false"
            )
        return self


class DpoModelStage(PreferenceFields, FinetuneModelStage):
    """Direct preference optimization of all weights of a model, against a frozen copy of it."""

    kind: Literal["dpo"] = "dpo"  # type: ignore[assignment]
    output: Literal["model"]
    learning_rate: float = setting(
        1e-6, section="Optim", at_resume="change", gt=0, le=1, help="Peak learning rate; far below that of finetune."
    )
    start_from: str | None = starting_weights("model", "Model of the same shapes", REFERENCE)


def _metrics(stage: PreferenceFields) -> tuple[str, ...]:
    evaluated = tuple(f"eval_{name}" for name in MEASURED) if stage.evaluates else ()
    trained = tuple(name for name in training_metrics(stage) if name != "eval_perplexity")
    return tuple(dict.fromkeys((*trained, *MEASURED, *evaluated, *LABEL_METRICS, *READ_METRICS)))


DPO = StageKind[PreferenceFields](
    kind="dpo",
    types={"adapter": DpoStage, "model": DpoModelStage},
    default_output="adapter",
    module="engines.preference.stage",
    needs=lambda stage: tuple(dict.fromkeys((*FINETUNE.needs(stage), "trl", "datasets"))),
    metrics=_metrics,
    metrics_if=EVALUATES,
    trains=True,
    samples=True,
    same_shape_as="model",
    loss_unit="mean over pairs",
)
