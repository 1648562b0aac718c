"""The pretrain stage."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recipes.setting import setting
from recipes.stages.kind import StageKind
from recipes.stages.training import EVALUATES, TrainingFields, training_metrics, training_needs

SAMPLE_METRICS = (
    "sample_distinct_1", "sample_distinct_2", "sample_repetition", "sample_tokens", "sample_tokens_p95", "sample_ended",
)  # fmt: skip
"""The metrics of what the finished model writes to the prompts of a stage with samples."""


class PretrainStage(TrainingFields):
    """A Llama-type decoder (GQA, SwiGLU, RoPE, RMSNorm) trained from scratch on token shards."""

    kind: Literal["pretrain"] = "pretrain"
    data: str = setting(
        section="Inputs",
        at_resume="input",
        accepts=("tokens",),
        help="The tokens stage, which also provides the tokenizer.",
    )
    start_from: str | None = setting(
        None,
        section="Inputs",
        at_resume="input",
        advanced=True,
        accepts=("model",),
        help="Model whose weights the training starts from: a stage, a folder, or RUN:STAGE."
        " A checkpoint (RUN:STAGE@STEP) is continued instead, with its optimizer and its steps.",
    )
    hidden_size: int = setting(
        section="Model",
        at_resume="shapes",
        ge=8,
        help="Width of the residual stream; a multiple of 256 quantizes best.",
    )
    intermediate_size: int = setting(
        section="Model", at_resume="shapes", ge=8, help="Width of the SwiGLU feed-forward layer."
    )
    num_hidden_layers: int = setting(
        section="Model", at_resume="shapes", ge=1, le=1000, help="Number of decoder layers."
    )
    num_attention_heads: int = setting(
        section="Model", at_resume="shapes", ge=1, help="Number of query heads; must divide hidden_size."
    )
    num_key_value_heads: int = setting(
        section="Model",
        at_resume="shapes",
        ge=1,
        help="Number of key and value heads; must divide num_attention_heads.",
    )
    rope_theta: float = setting(
        10_000.0, section="Model", at_resume="arithmetic", gt=0, help="Base of the rotary position embedding."
    )
    rms_norm_eps: float = setting(
        1e-5,
        section="Model",
        at_resume="arithmetic",
        gt=0,
        lt=1,
        advanced=True,
        help="Epsilon that RMSNorm adds to the variance.",
    )
    tie_word_embeddings: bool = setting(
        True, section="Model", at_resume="shapes", help="Use one matrix for embedding and output head."
    )
    attention_dropout: float = setting(
        0.0, section="Model", at_resume="change", ge=0, lt=1, help="Dropout on attention weights during training."
    )
    initializer_range: float = setting(
        0.02,
        section="Model",
        at_resume="start",
        gt=0,
        lt=1,
        advanced=True,
        help="Standard deviation of the initial weights.",
    )
    sample_steps: int | None = setting(
        None,
        section="Samples",
        at_resume="change",
        ge=1,
        unit="steps",
        help="Steps between two generations from sample_prompts.",
    )
    sample_prompts: list[str] = setting(
        default_factory=lambda: ["def "],
        section="Samples",
        at_resume="change",
        help="Prompts for the samples generated during training.",
    )
    sample_max_new_tokens: int = setting(
        40, section="Samples", at_resume="change", ge=1, unit="tokens", help="Maximum length of a sample."
    )

    @model_validator(mode="after")
    def _shapes_fit(self) -> PretrainStage:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size — must be a multiple of num_attention_heads; got {self.hidden_size} and "
                f"{self.num_attention_heads}; allowed: a multiple of {self.num_attention_heads}"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"num_attention_heads — rotary embedding needs an even head width; got "
                f"{self.hidden_size // self.num_attention_heads}; allowed: an even hidden_size / num_attention_heads"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads — must divide num_attention_heads; got {self.num_key_value_heads} and "
                f"{self.num_attention_heads}; allowed: a divisor of {self.num_attention_heads}"
            )
        return self


PRETRAIN = StageKind(
    kind="pretrain",
    types={"model": PretrainStage},
    module="engines.pretrain.stage",
    needs=training_needs,
    metrics=lambda stage: (
        *training_metrics(stage),
        "documents",
        *(SAMPLE_METRICS if stage.sample_steps is not None else ()),
    ),
    metrics_if=(*EVALUATES, ("sample_steps", 1, "sample_steps to a number of steps")),
    trains=True,
    samples=True,
)
