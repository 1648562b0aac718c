"""The pretrain stage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import model_validator

from recipes.setting import setting
from recipes.stages.decoder.model_types import MODEL_TYPES, TERNARY, DecoderType, ModelType
from recipes.stages.decoder.rope import RopeParameters
from recipes.stages.decoder.sizes import Sizes
from recipes.stages.fields import starting_weights
from recipes.stages.kind import StageKind
from recipes.stages.launch.fields import FSDP2
from recipes.stages.training import EVALUATES, TrainingFields, training_metrics, training_needs

SAMPLE_METRICS = (
    "sample_distinct_1", "sample_distinct_2", "sample_repetition", "sample_tokens", "sample_tokens_p95", "sample_ended",
)  # fmt: skip
"""The metrics of what the finished model writes to the prompts of a stage with samples."""


class PretrainStage(TrainingFields):
    """A decoder (GQA, SwiGLU, RoPE, RMSNorm) trained from scratch on token shards."""

    kind: Literal["pretrain"] = "pretrain"
    data: str = setting(
        section="Inputs",
        at_resume="input",
        accepts=("tokens",),
        help="The tokens stage, which also provides the tokenizer.",
    )
    start_from: str | None = starting_weights("model", "Model")
    max_length: int = setting(
        512,
        section="Data",
        at_resume="order",
        ge=8,
        unit="tokens",
        help="Length of every sequence: the tokens of all documents, one after another, are divided into windows.",
    )
    document_masking: bool = setting(
        False,
        section="Data",
        at_resume="arithmetic",
        help="Keep the documents of a window apart: a token attends to its own document only, and the first token of"
        " each is no label. Evaluations during training do the same.",
    )
    peak_tflops: float | None = setting(
        None,
        section="Reports",
        at_resume="change",
        gt=0,
        unit="TFLOP/s",
        advanced=True,
        help="Peak of the device in the number format of the training, for mfu; by default, that of GPUs that Cockpit"
        " knows (H200, H100, A100, GB10) in bfloat16.",
    )
    model_type: ModelType = setting(
        "llama",
        section="Model",
        at_resume="shapes",
        help="Type of the model, as transformers names it: qwen3 norms each head's queries and keys, olmo2 all heads'"
        " together and after the layers; mistral and qwen3 may have a sliding_window.",
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
        section="Model",
        at_resume="shapes",
        ge=1,
        help="Number of query heads; must divide hidden_size, unless model_type allows a head_dim of its own.",
    )
    num_key_value_heads: int = setting(
        section="Model",
        at_resume="shapes",
        ge=1,
        help="Number of key and value heads; must divide num_attention_heads.",
    )
    head_dim: int | None = setting(
        None,
        section="Model",
        at_resume="shapes",
        ge=2,
        advanced=True,
        help="Width of a head; by default, hidden_size / num_attention_heads.",
    )
    max_position_embeddings: int | None = setting(
        None,
        section="Positions",
        at_resume="arithmetic",
        ge=8,
        unit="tokens",
        advanced=True,
        help="Context that the model states; by default, max_length.",
    )
    rope_theta: float = setting(
        10_000.0, section="Positions", at_resume="arithmetic", gt=0, help="Base of the rotary position embedding."
    )
    rope_parameters: RopeParameters = setting(
        default_factory=RopeParameters,
        section="Positions",
        at_resume="arithmetic",
        help="How positions are stretched for a longer context.",
    )
    sliding_window: int | None = setting(
        None,
        section="Positions",
        at_resume="arithmetic",
        ge=1,
        unit="tokens",
        advanced=True,
        help="Tokens that a token attends to in every layer, itself included; all without a value. For mistral"
        " and qwen3; llama.cpp does not apply their window, so its answers are the model's up to this length.",
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
    linear: Literal["float", "ternary"] = setting(
        "float",
        section="Model",
        at_resume="arithmetic",
        help="Values of the matrices in the layers: ternary trains with -s, 0 and s only (BitNet b1.58), which TQ1_0,"
        " TQ2_0 and i2_s store exactly.",
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

    @property
    def decoder(self) -> DecoderType:
        """What the model type has."""
        return MODEL_TYPES[self.model_type]

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    def sizes(self, vocab_size: int) -> Sizes:
        """The sizes of the model for a vocabulary."""
        return Sizes(
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_width,
            vocab_size=vocab_size,
            tie_word_embeddings=self.tie_word_embeddings,
            model_type=self.model_type,
        )

    def config(self) -> dict[str, Any]:
        """The settings of the model without its vocabulary, as transformers names them."""
        windows = {"sliding_window": self.sliding_window, **(self.decoder.window or {})}
        return {
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            **({"head_dim": self.head_width} if self.decoder.free_head_width else {}),
            "max_position_embeddings": self.max_position_embeddings or self.max_length,
            "rope_parameters": self.rope_parameters.settings(self.rope_theta),
            **(self.decoder.no_window if self.sliding_window is None else windows),
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "attention_dropout": self.attention_dropout,
            "initializer_range": self.initializer_range,
        }

    @model_validator(mode="after")
    def _shapes_fit(self) -> PretrainStage:
        problems = [*self._head_problems(), *self._position_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def launch_problems(self) -> Iterator[str]:
        """What does not work with parts of weights and of optimizer states."""
        yield from super().launch_problems()
        if self.launch.strategy == FSDP2 and self.linear == TERNARY:
            yield (
                "linear — ternary layers need whole matrices for their scale, and fsdp2 divides them; got ternary;"
                " allowed: float, or launch.strategy = ddp"
            )

    def _head_problems(self) -> Iterator[str]:
        width, heads, kind = self.hidden_size, self.num_attention_heads, self.decoder
        if width % heads and not (kind.any_heads and kind.free_head_width and self.head_dim):
            free = " and ".join(name for name, row in MODEL_TYPES.items() if row.any_heads and row.free_head_width)
            yield (
                f"hidden_size — must be a multiple of num_attention_heads; got {width} and {heads}; allowed: a multiple"
                f" of {heads}; {_divisors(width)}; or use head_dim with model_type {free}"
            )
            return
        elif self.head_dim is not None and not kind.free_head_width and self.head_dim * heads != width:
            yield (
                f"head_dim — {self.model_type} has heads of hidden_size / num_attention_heads; got {self.head_dim};"
                f" allowed: {width // heads}"
            )
        if self.head_width % 2:
            yield (
                f"num_attention_heads — rotary embedding needs an even head width; got {self.head_width};"
                " allowed: an even head_dim or hidden_size / num_attention_heads"
            )
        if heads % self.num_key_value_heads:
            yield (
                f"num_key_value_heads — must divide num_attention_heads; got {self.num_key_value_heads} and "
                f"{heads}; allowed: a divisor of {heads}"
            )
        if self.tie_word_embeddings and not kind.tied:
            yield (
                f"tie_word_embeddings — GGUF files of {self.model_type} have no tied output head; got true; allowed:"
                " false"
            )

    def _position_problems(self) -> Iterator[str]:
        rope, kind, context = self.rope_parameters, self.decoder, self.max_position_embeddings
        if rope.rope_type not in kind.rope_types:
            yield (
                f"rope_parameters.rope_type — GGUF files of {self.model_type} cannot have it; got {rope.rope_type};"
                f" allowed: {', '.join(kind.rope_types)}"
            )
        yield from rope.problems()
        if context is not None and context < self.max_length:
            yield f"max_position_embeddings — must be at least max_length, {self.max_length}; got {context}"
        if self.sliding_window is not None and kind.window is None:
            able = ", ".join(name for name, row in MODEL_TYPES.items() if row.window is not None)
            yield (
                f"sliding_window — {self.model_type} has no windows; got {self.sliding_window}; allowed: leave it out,"
                f" or model_type {able}"
            )


def _divisors(width: int) -> str:
    """The numbers of heads of 32 to 256 values that a width allows, as a hint."""
    found = [str(heads) for heads in range(1, width + 1) if width % heads == 0 and 32 <= width // heads <= 256]
    return f"num_attention_heads {', '.join(found)} divide {width}" if found else "change num_attention_heads"


PRETRAIN = StageKind(
    kind="pretrain",
    types={"model": PretrainStage},
    module="engines.pretrain.stage",
    needs=training_needs,
    metrics=lambda stage: (
        *training_metrics(stage),
        "documents",
        *(("mfu",) if stage.peak_tflops is not None or stage.bf16 else ()),
        *(SAMPLE_METRICS if stage.sample_steps is not None else ()),
    ),
    metrics_if=(*EVALUATES, ("sample_steps", 1, "sample_steps to a number of steps")),
    trains=True,
    samples=True,
)
