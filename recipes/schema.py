"""What a recipe may say: a name and an ordered list of stages, each with the fields of its kind.

Every field is declared once, with `setting()`. Field names are those of transformers, TRL, PEFT and GGUF. Units:
`_s` seconds, `_bytes` bytes, `_steps` optimizer steps; losses are nats per token.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Tag, model_validator

from recipes.data_stages import PrepareMessages, PrepareText, PrepareTokens, TokenizerStage
from recipes.file_types import FILE_TYPES, FIRST_FILE_TYPES, FileTypeName, needing_importance
from recipes.setting import setting
from recipes.stage_fields import MODEL_OUTPUTS, STAGE_NAME, Gate, Guards, Retry, StageFields, Strict, TrainingRetry
from recipes.training_stages import FinetuneStage, PretrainStage, TrainingFields

__all__ = [
    "KINDS",
    "SCHEMA",
    "STAGE_NAME",
    "STAGE_TYPES",
    "TRAINING_KINDS",
    "EvaluateStage",
    "ExportStage",
    "FakeStage",
    "FinetuneStage",
    "Gate",
    "Guards",
    "MergeStage",
    "PrepareMessages",
    "PrepareText",
    "PrepareTokens",
    "PretrainStage",
    "Recipe",
    "Retry",
    "Stage",
    "StageFields",
    "Strict",
    "TokenizerStage",
    "TrainingFields",
    "output_of",
    "output_word",
]

SCHEMA = 1

DATA_OUTPUTS = ("messages", "tokens", "text")


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
    """Adapters merged into their 16- or 32-bit base: W + weight * scale * B A, summed in float32 and rounded once."""

    kind: Literal["merge"] = "merge"
    model: str = setting(
        section="Inputs", accepts=MODEL_OUTPUTS, help="The base model: a stage, a folder, or a hub id."
    )
    adapter: str | None = setting(
        None, section="Inputs", accepts=("adapter",), help="The adapter: a finetune stage or a folder."
    )
    adapters: list[str] = setting(
        default_factory=list,
        section="Inputs",
        accepts=("adapter",),
        help="Several adapters instead of one: finetune stages or folders.",
    )
    weights: list[float] = setting(
        default_factory=list,
        section="Merge",
        help="How much of each adapter is added, in their order; 1 each by default. 0.5 keeps half of what was learned.",
    )
    dtype: Literal["base", "float32", "bfloat16", "float16"] = setting(
        "base", section="Merge", help="Type of the merged weights; base keeps the base model's."
    )
    base_rounding: Literal["none", "nf4", "nf4-double"] = setting(
        "none",
        section="Merge",
        advanced=True,
        help="Round the base's linear layers to 4-bit NF4 and back first, as an adapter trained over a 4-bit base saw"
        " them; evaluate both and keep the better one.",
    )
    untie_word_embeddings: bool = setting(
        False,
        section="Merge",
        advanced=True,
        help="Give a model whose head is its embedding a head of its own when the adapter changes only one of them, as"
        " it was in training; PEFT's merge changes both.",
    )
    parity_positions: int = setting(
        512,
        section="Parity",
        ge=0,
        help="Token positions at which the merged model is compared with the adapter over its base; 0 skips it.",
    )

    @model_validator(mode="after")
    def _adapters_and_weights(self) -> MergeStage:
        if bool(self.adapters) == (self.adapter is not None):
            got = "both adapter and adapters" if self.adapters else "neither adapter nor adapters"
            raise ValueError(f"adapter — what is merged; got {got}; allowed: adapter, or a list of adapters")
        count = len(self.adapters) or 1
        if self.weights and len(self.weights) != count:
            raise ValueError(
                f"weights — one for each adapter; got {len(self.weights)} for {count}; allowed: {count} numbers, or none"
            )
        return self


class ExportStage(StageFields):
    """GGUF files of the given types, compared with the model they come from."""

    kind: Literal["export"] = "export"
    model: str = setting(section="Inputs", accepts=MODEL_OUTPUTS, help="A stage's model, a folder, or a hub id.")
    adapter: str | None = setting(
        None,
        section="Inputs",
        accepts=("adapter",),
        help="An adapter that is merged into the model while the files are written, without a merged copy on the disk.",
    )
    data: str | None = setting(
        None,
        section="Inputs",
        accepts=DATA_OUTPUTS,
        help="Held-out text of the parity check and the importance matrix: a stage, a text file or a folder of text files;"
        " standard-library text by default.",
    )
    file_types: list[FileTypeName] = setting(
        default_factory=lambda: list(FIRST_FILE_TYPES),
        section="Files",
        min_length=1,
        help="GGUF file types to write.",
    )
    adapters: list[str] = setting(
        default_factory=list,
        section="Inputs",
        accepts=("adapter",),
        help="Adapters of this model, each written as a GGUF adapter that llama.cpp applies when it loads one of the files.",
    )
    adapter_type: Literal["F16", "F32"] = setting(
        "F16", section="Files", advanced=True, help="Type of the GGUF adapters' matrices."
    )
    imatrix: Literal["auto", "always", "never"] = setting(
        "auto",
        section="Files",
        help="Importance matrix, computed from held-out text: auto for the types that cannot be written without"
        f" ({', '.join(needing_importance(list(FILE_TYPES)))}), always for every quantized type.",
    )
    imatrix_tokens: int = setting(
        16_384,
        section="Files",
        ge=256,
        unit="tokens",
        help="Held-out text that the importance matrix is computed from; never what the comparison reads.",
    )
    converter: Literal["own", "upstream"] = setting(
        "own",
        section="Files",
        advanced=True,
        help="What writes GGUF: own, for the families that are known here; upstream runs convert_hf_to_gguf.py of your llama.cpp"
        " checkout (llama_cpp), for others.",
    )
    quantizer: Literal["auto", "llama-quantize", "kernels", "numpy"] = setting(
        "auto",
        section="Files",
        advanced=True,
        help="What quantizes: auto takes your own llama-quantize if there is one, else llama.cpp's kernels, else numpy;"
        " each is tested on fixed numbers before it is used.",
    )
    llama_cpp: str | None = setting(
        None,
        section="Files",
        folder=True,
        advanced=True,
        help="Your llama.cpp: a folder with llama-quantize, or a checkout with its build; by default COCKPIT_LLAMA_CPP,"
        " then the PATH.",
    )
    i2s: Literal["none", "x86-128", "arm-64", "x86-rows4"] = setting(
        "none",
        section="Files",
        advanced=True,
        help="Also write bitnet.cpp's i2_s, in this byte layout: the one that your reader was built for. Only for models"
        " trained with ternary weights; llama.cpp reads TQ2_0 instead.",
    )
    parity_positions: int = setting(
        2048,
        section="Parity",
        ge=0,
        help="Token positions compared with transformers per file; 0 skips the comparison.",
    )
    max_length: int = setting(256, section="Parity", ge=8, unit="tokens", help="Context length of the comparison.")

    @model_validator(mode="after")
    def _one_way_for_adapters(self) -> ExportStage:
        if self.adapter is not None and self.adapters:
            raise ValueError(
                "adapters — are put over the model as it is; got adapter as well, which changes it; allowed: one of the two, or a"
                " merge stage first"
            )
        return self

    @model_validator(mode="after")
    def _what_upstream_leaves_out(self) -> ExportStage:
        if self.converter != "upstream":
            return self
        rows = [FILE_TYPES[name] for name in self.file_types]
        needing = [row.name for row in rows if row.importance == "required" or row.ternary]
        left_out = {
            "adapter": self.adapter is not None,
            "adapters": bool(self.adapters),
            "i2s": self.i2s != "none",
            "imatrix": self.imatrix == "always",
            f"file_types ({', '.join(needing)})": bool(needing),
        }
        wrong = [name for name, asked in left_out.items() if asked]
        if wrong:
            raise ValueError(
                f"converter — got upstream together with {', '.join(wrong)}, which need the model's names of tensors; allowed: own, or"
                " a merge stage before and types without importance matrix"
            )
        return self

    @model_validator(mode="after")
    def _importance_where_needed(self) -> ExportStage:
        needing = needing_importance(self.file_types)
        if needing and self.imatrix == "never":
            raise ValueError(
                f"imatrix — {', '.join(needing)} cannot be written without an importance matrix; got never; allowed: auto or"
                " always"
            )
        return self


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
    retry: TrainingRetry = setting(default_factory=TrainingRetry, section="Retry", help="Automatic retries.")


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


def tag_of_stage(stage: StageFields) -> str:
    """The stage's type: a key of `STAGE_TYPES`."""
    return _stage_tag(stage)


def kind_of_stage(stage: StageFields) -> str:
    """The stage's kind, as a recipe says it."""
    return tag_of_stage(stage).partition("-")[0]
