"""What a recipe may say: a name and an ordered list of stages, each with the fields of its kind.

Every field is declared once, with `setting()`. Field names are those of transformers, TRL, PEFT and GGUF. Units:
`_s` seconds, `_bytes` bytes, `_steps` optimizer steps; losses are nats per token.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Tag, model_validator

from recipes.setting import setting

SCHEMA = 1
STAGE_NAME = r"^[a-z0-9-]{1,40}$"

FileType = Literal["F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S"]
TargetModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

MODEL_OUTPUTS = ("model",)
DATA_OUTPUTS = ("messages", "tokens", "text")


class Strict(BaseModel):
    """Unknown keys, wrong types and non-finite numbers are problems, never guesses."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Retry(Strict):
    """What the supervisor does when a stage's engine fails (`[stage.retry]`)."""

    max_attempts: int = setting(
        1, section="Retry", ge=1, le=3, help="Engine processes the stage may use in all; 1 means no automatic retry."
    )
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


class SplitFields(StageFields):
    """How documents are divided, once, into train, val and test by a keyed hash of their path."""

    val_fraction: float = setting(
        0.05, section="Split", ge=0, lt=0.5, help="Share of the files held out for validation."
    )
    test_fraction: float = setting(
        0.05, section="Split", ge=0, lt=0.5, help="Share of the files held out for the final test."
    )
    seed: int = setting(
        42, section="Split", ge=0, help="Key of the split; the same seed gives the same split on any machine."
    )


class PrepareText(SplitFields):
    """Documents from a source tree, split once into train, val and test."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["text"]
    source: str = setting(
        section="Source",
        folder=True,
        min_length=1,
        help='Folder to read, or "python-stdlib" for the standard library of the running Python.',
    )
    include: list[str] = setting(
        default_factory=lambda: ["*.py"], section="Source", help="File-name patterns that are read."
    )
    exclude: list[str] = setting(
        default_factory=list, section="Source", help="Patterns on the path inside the source that are left out."
    )
    max_file_bytes: int = setting(
        1_048_576, section="Source", gt=0, unit="bytes", help="Larger files are left out and counted."
    )
    max_bytes: int | None = setting(
        None,
        section="Source",
        gt=0,
        unit="bytes",
        help="Stop after this much text, taking files in the order of their hash.",
    )


class PrepareTokens(StageFields):
    """Token shards from a text stage and a tokenizer."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["tokens"]
    data: str = setting(section="Inputs", accepts=("text",), help="The text stage whose documents are tokenized.")
    tokenizer: str = setting(
        section="Inputs", accepts=("tokenizer",), help="The tokenizer stage, or a folder with tokenizer.model."
    )


class PrepareMessages(SplitFields):
    """Questions about a Python code base, answered only from its docstrings, signatures and bases."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["messages"]
    data: str = setting(
        section="Inputs",
        accepts=("text",),
        help="A text stage (its split is kept) or a folder of Python sources (split here).",
    )
    questions: list[Literal["docstring", "signature", "bases"]] = setting(
        default_factory=lambda: ["docstring", "signature", "bases"],
        section="Questions",
        min_length=1,
        help="Kinds of facts asked for.",
    )
    max_examples: int | None = setting(
        None, section="Questions", gt=0, help="At most this many examples in all, shared out over the splits."
    )
    max_answer_chars: int = setting(
        400,
        section="Questions",
        gt=0,
        unit="characters",
        help="Examples with a longer answer are left out and counted.",
    )


class TokenizerStage(StageFields):
    """A SentencePiece BPE tokenizer, lossless, with identical ids in SentencePiece, transformers and GGUF."""

    kind: Literal["tokenizer"] = "tokenizer"
    data: str = setting(section="Inputs", accepts=("text",), help="The text stage; only its train split is seen.")
    vocab_size: int = setting(
        4096, section="Vocabulary", ge=300, le=262_144, help="Number of pieces, special ones included."
    )
    character_coverage: float = setting(
        1.0,
        section="Vocabulary",
        gt=0,
        le=1,
        help="Share of characters that get pieces of their own; the rest fall back to bytes.",
    )
    split_digits: bool = setting(True, section="Vocabulary", help="Give every digit its own piece.")
    max_bytes: int | None = setting(
        None, section="Vocabulary", gt=0, unit="bytes", help="Train on at most this much of the train split."
    )
    seed: int = setting(42, section="Vocabulary", ge=0, help="Seed of the choice of text when max_bytes limits it.")


class TrainingFields(StageFields):
    """What pretraining and fine-tuning share."""

    max_length: int = setting(
        512, section="Data", ge=8, unit="tokens", help="Sequence length; longer examples are cut and counted."
    )
    per_device_train_batch_size: int = setting(
        8, section="Batch", ge=1, help="Sequences per forward pass on each device."
    )
    gradient_accumulation_steps: int = setting(1, section="Batch", ge=1, help="Forward passes per optimizer step.")
    max_steps: int | None = setting(
        None, section="Schedule", ge=1, help="Optimizer steps in all; overrides num_train_epochs."
    )
    num_train_epochs: float = setting(1.0, section="Schedule", gt=0, help="Passes over the training data.")
    learning_rate: float = setting(2e-4, section="Optim", gt=0, le=1, help="Peak learning rate.")
    lr_scheduler_type: Literal["cosine", "cosine_with_min_lr", "linear", "constant"] = setting(
        "cosine", section="Schedule", help="Shape of the learning rate after warm-up."
    )
    min_lr_rate: float = setting(
        0.1, section="Schedule", ge=0, le=1, help="Final learning rate as a share of the peak, for cosine_with_min_lr."
    )
    warmup_steps: float = setting(0.0, section="Schedule", ge=0, help="Warm-up steps; below 1, a share of all steps.")
    optim: Literal["adamw_torch", "adamw_torch_fused", "adamw_8bit"] = setting(
        "adamw_torch_fused", section="Optim", help="Optimizer, by transformers' name."
    )
    weight_decay: float = setting(0.0, section="Optim", ge=0, le=1, help="Decoupled weight decay.")
    adam_beta1: float = setting(0.9, section="Optim", ge=0, lt=1, advanced=True, help="Decay of the first moment.")
    adam_beta2: float = setting(0.999, section="Optim", ge=0, lt=1, advanced=True, help="Decay of the second moment.")
    adam_epsilon: float = setting(
        1e-8, section="Optim", gt=0, lt=1, advanced=True, help="Added to the denominator of Adam."
    )
    max_grad_norm: float = setting(1.0, section="Optim", gt=0, help="Gradients are clipped to this L2 norm.")
    bf16: bool = setting(False, section="Precision", help="Compute in bfloat16 under autocast; weights stay float32.")
    gradient_checkpointing: bool = setting(
        False,
        section="Precision",
        help="Recompute activations in the backward pass: less memory, about a fifth slower.",
    )
    seed: int = setting(42, section="Data", ge=0, help="Seed of initialization, data order and dropout.")
    dataloader_num_workers: int = setting(
        0, section="Data", ge=0, le=64, advanced=True, help="Processes that load data."
    )
    save_steps: int = setting(
        100, section="Checkpoints", ge=1, unit="steps", help="A checkpoint every so many steps, and one at the end."
    )
    save_total_limit: int = setting(
        3,
        section="Checkpoints",
        ge=1,
        help="Newest checkpoints that are kept; the best and the newest healthy one stay besides.",
    )
    eval_steps: int | None = setting(
        None, section="Evaluation", ge=1, unit="steps", help="Evaluate on the val split every so many steps."
    )
    eval_max_tokens: int = setting(
        20_000,
        section="Evaluation",
        ge=1,
        unit="tokens",
        help="Tokens of the val split used by an evaluation during training.",
    )
    per_device_eval_batch_size: int = setting(
        8, section="Evaluation", ge=1, help="Sequences per forward pass of an evaluation."
    )
    guards: Guards = setting(default_factory=Guards, section="Guards", help="When the engine stops itself.")


class PretrainStage(TrainingFields):
    """A Llama-type decoder (GQA, SwiGLU, RoPE, RMSNorm) trained from scratch on token shards."""

    kind: Literal["pretrain"] = "pretrain"
    data: str = setting(section="Inputs", accepts=("tokens",), help="The tokens stage; its tokenizer comes with it.")
    hidden_size: int = setting(
        section="Model", ge=8, help="Width of the residual stream; a multiple of 256 quantizes best."
    )
    intermediate_size: int = setting(section="Model", ge=8, help="Width of the SwiGLU feed-forward layer.")
    num_hidden_layers: int = setting(section="Model", ge=1, le=1000, help="Decoder layers.")
    num_attention_heads: int = setting(section="Model", ge=1, help="Query heads; divides hidden_size.")
    num_key_value_heads: int = setting(section="Model", ge=1, help="Key and value heads; divides num_attention_heads.")
    rope_theta: float = setting(10_000.0, section="Model", gt=0, help="Base of the rotary position embedding.")
    rms_norm_eps: float = setting(
        1e-5, section="Model", gt=0, lt=1, advanced=True, help="Added to the variance in RMSNorm."
    )
    tie_word_embeddings: bool = setting(True, section="Model", help="Use one matrix for embedding and output head.")
    attention_dropout: float = setting(
        0.0, section="Model", ge=0, lt=1, help="Dropout on attention weights while training."
    )
    initializer_range: float = setting(
        0.02, section="Model", gt=0, lt=1, advanced=True, help="Standard deviation of the initial weights."
    )
    sample_steps: int | None = setting(
        None, section="Samples", ge=1, unit="steps", help="Generate from sample_prompts every so many steps."
    )
    sample_prompts: list[str] = setting(
        default_factory=lambda: ["def "], section="Samples", help="Prompts for the samples taken while training."
    )
    sample_max_new_tokens: int = setting(40, section="Samples", ge=1, unit="tokens", help="Length of a sample.")

    @model_validator(mode="after")
    def _shapes_fit(self) -> PretrainStage:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size — must be a multiple of num_attention_heads; got {self.hidden_size} and "
                f"{self.num_attention_heads}; allowed: a width that divides evenly"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"num_attention_heads — rotary embedding needs an even head width; got "
                f"{self.hidden_size // self.num_attention_heads}; allowed: hidden_size / num_attention_heads even"
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_key_value_heads — must divide num_attention_heads; got {self.num_key_value_heads} and "
                f"{self.num_attention_heads}; allowed: a divisor of {self.num_attention_heads}"
            )
        return self


class FinetuneStage(TrainingFields):
    """LoRA on a model, with its chat template and the loss on answers only."""

    kind: Literal["finetune"] = "finetune"
    model: str = setting(section="Inputs", accepts=MODEL_OUTPUTS, help="A stage's model, a folder, or a hub id.")
    data: str = setting(
        section="Inputs", accepts=("messages",), help="The messages stage, or a folder with train.jsonl."
    )
    r: int = setting(16, section="LoRA", ge=1, help="Rank of the adapter.")
    lora_alpha: float = setting(
        32.0, section="LoRA", gt=0, help="Scale of the adapter; it is multiplied by lora_alpha / r."
    )
    lora_dropout: float = setting(
        0.0, section="LoRA", ge=0, lt=1, help="Dropout on the adapter's input while training."
    )
    use_rslora: bool = setting(False, section="LoRA", advanced=True, help="Scale by lora_alpha / sqrt(r) instead.")
    target_modules: list[TargetModule] = setting(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        section="LoRA",
        min_length=1,
        help="Linear layers that get an adapter.",
    )


class EvaluateStage(StageFields):
    """Token-weighted loss and perplexity on held-out data, and greedy answers to a few questions."""

    kind: Literal["evaluate"] = "evaluate"
    model: str = setting(
        section="Inputs", accepts=("model", "adapter"), help="A stage's model or adapter, a folder, or a hub id."
    )
    data: str = setting(
        section="Inputs", accepts=("messages", "tokens"), help="The messages or tokens stage to evaluate on."
    )
    split: Literal["train", "val", "test"] = setting("test", section="Evaluation", help="Split that is evaluated.")
    max_length: int = setting(
        512, section="Evaluation", ge=8, unit="tokens", help="Sequence length; longer examples are cut and counted."
    )
    max_tokens: int = setting(
        200_000, section="Evaluation", ge=1, unit="tokens", help="Stop after this many scored tokens."
    )
    per_device_eval_batch_size: int = setting(8, section="Evaluation", ge=1, help="Sequences per forward pass.")
    answers: int = setting(
        0, section="Answers", ge=0, le=1000, help="Questions of the split that are answered greedily and shown."
    )
    max_new_tokens: int = setting(48, section="Answers", ge=1, unit="tokens", help="Longest answer.")


class MergeStage(StageFields):
    """An adapter merged into its 16- or 32-bit base: W + scale * B A, rounded once."""

    kind: Literal["merge"] = "merge"
    model: str = setting(
        section="Inputs", accepts=MODEL_OUTPUTS, help="The base model: a stage, a folder, or a hub id."
    )
    adapter: str = setting(section="Inputs", accepts=("adapter",), help="The adapter: a finetune stage or a folder.")
    dtype: Literal["base", "float32", "bfloat16", "float16"] = setting(
        "base", section="Merge", help="Type of the merged weights; base keeps the base model's."
    )


class ExportStage(StageFields):
    """GGUF files of the given types, compared with the model they come from."""

    kind: Literal["export"] = "export"
    model: str = setting(section="Inputs", accepts=MODEL_OUTPUTS, help="A stage's model, a folder, or a hub id.")
    data: str | None = setting(
        None,
        section="Inputs",
        accepts=DATA_OUTPUTS,
        help="Held-out text of the parity check; standard-library text by default.",
    )
    file_types: list[FileType] = setting(
        default_factory=lambda: ["F16", "Q8_0", "Q4_K_M"],
        section="Files",
        min_length=1,
        help="GGUF file types to write.",
    )
    parity_positions: int = setting(
        2048,
        section="Parity",
        ge=0,
        help="Token positions compared with transformers per file; 0 skips the comparison.",
    )
    max_length: int = setting(256, section="Parity", ge=8, unit="tokens", help="Context length of the comparison.")


class FakeStage(StageFields):
    """An engine with no model that drives the same events: for demonstrations, tests and screenshots."""

    kind: Literal["fake"] = "fake"
    data: str | None = setting(
        None,
        section="Inputs",
        accepts=("text", "tokens", "messages", "tokenizer", "model", "adapter", "report", "gguf", "fake"),
        help="A stage this one waits for.",
    )
    max_steps: int = setting(100, section="Schedule", ge=1, help="Steps to pretend.")
    step_s: float = setting(0.1, section="Schedule", ge=0, unit="seconds", help="Time that one step takes.")
    learning_rate: float = setting(3e-4, section="Optim", gt=0, le=1, help="Peak of the pretended schedule.")
    seed: int = setting(42, section="Data", ge=0, help="Seed of the pretended noise.")
    save_steps: int = setting(20, section="Checkpoints", ge=1, unit="steps", help="A checkpoint every so many steps.")
    save_total_limit: int = setting(3, section="Checkpoints", ge=1, help="Newest checkpoints that are kept.")
    checkpoint_bytes: int = setting(
        4096, section="Checkpoints", ge=1, unit="bytes", help="Size of a pretended checkpoint."
    )
    eval_steps: int | None = setting(
        None, section="Evaluation", ge=1, unit="steps", help="Pretend an evaluation every so many steps."
    )
    nan_at_step: int | None = setting(
        None, section="Faults", ge=1, help="The first attempt's loss is not a number at this step, and the guard trips."
    )
    fail_at_step: int | None = setting(
        None, section="Faults", ge=1, help="The first attempt ends with an error at this step."
    )
    guards: Guards = setting(default_factory=Guards, section="Guards", help="When the engine stops itself.")


def _prepare_tag(value: Any) -> str:
    output = value.get("output") if isinstance(value, dict) else getattr(value, "output", None)
    return f"prepare-{output}"


def _stage_tag(value: Any) -> str:
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return _prepare_tag(value) if kind == "prepare" else str(kind)


Stage = Annotated[
    Annotated[PrepareText, Tag("prepare-text")]
    | Annotated[PrepareTokens, Tag("prepare-tokens")]
    | Annotated[PrepareMessages, Tag("prepare-messages")]
    | Annotated[TokenizerStage, Tag("tokenizer")]
    | Annotated[PretrainStage, Tag("pretrain")]
    | Annotated[FinetuneStage, Tag("finetune")]
    | Annotated[EvaluateStage, Tag("evaluate")]
    | Annotated[MergeStage, Tag("merge")]
    | Annotated[ExportStage, Tag("export")]
    | Annotated[FakeStage, Tag("fake")],
    Discriminator(_stage_tag),
]

STAGE_TYPES: dict[str, type[StageFields]] = {
    "prepare-text": PrepareText,
    "prepare-tokens": PrepareTokens,
    "prepare-messages": PrepareMessages,
    "tokenizer": TokenizerStage,
    "pretrain": PretrainStage,
    "finetune": FinetuneStage,
    "evaluate": EvaluateStage,
    "merge": MergeStage,
    "export": ExportStage,
    "fake": FakeStage,
}
"""Every stage type by its tag: the kind, with `prepare` divided by its output."""

KINDS = ("prepare", "tokenizer", "pretrain", "finetune", "evaluate", "merge", "export", "fake")
TRAINING_KINDS = ("pretrain", "finetune", "fake")
"""Kinds that write checkpoints and go on from them."""


class Recipe(Strict):
    """A whole recipe, with `defaults` already laid under its stages."""

    schema_: Literal[1] = setting(section="Recipe", alias="schema", help="Version of the recipe format; 1.")
    name: str = setting(section="Recipe", pattern=STAGE_NAME, help="Name of the recipe; run ids end with it.")
    description: str = setting("", section="Recipe", max_length=2000, help="What the recipe is for.")
    sample_interval_s: float = setting(
        2.0,
        section="Recipe",
        ge=0.1,
        le=600,
        unit="seconds",
        help="Time between two readings of the machine's memory and load.",
    )
    stop_grace_s: float = setting(
        120.0,
        section="Recipe",
        ge=1,
        le=86_400,
        unit="seconds",
        help="Time a stopping engine has for its last checkpoint.",
    )
    stage: list[Stage] = setting(section="Recipe", min_length=1, max_length=256, help="The stages.")


_OUTPUTS = {
    "prepare-text": "text",
    "prepare-tokens": "tokens",
    "prepare-messages": "messages",
    "tokenizer": "tokenizer",
    "pretrain": "model",
    "merge": "model",
    "finetune": "adapter",
    "evaluate": "report",
    "export": "gguf",
    "fake": "fake",
}


def output_word(tag: str) -> str:
    """What a stage of this type (a key of `STAGE_TYPES`) produces, as a word that `accepts` lists know."""
    return _OUTPUTS[tag]


def output_of(stage: StageFields) -> str:
    """What a stage produces, as a word that `accepts` lists know."""
    return output_word(_stage_tag(stage))
