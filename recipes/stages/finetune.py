"""The finetune stage: an adapter, or all weights of the model, by its field `output`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal

from pydantic import field_validator, model_validator

from recipes.setting import setting
from recipes.stages.data_fields import DATASET, READ_METRICS, DataFields
from recipes.stages.fields import MODEL_OUTPUTS, StageFields
from recipes.stages.kind import UNSLOTH, StageKind
from recipes.stages.label_fields import LABEL_METRICS, LabelFields
from recipes.stages.training import EVALUATES, TrainingFields, training_metrics, training_needs

ALL_LINEAR = "all-linear"
"""In place of the names in `target_modules`: every linear layer except the output head, as in PEFT."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a Llama."""
INITIAL = ("true", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora")
"""Usual values of `init_lora_weights`."""
UNSLOTH_SAVES = ("embed_tokens", "lm_head")
"""Layers that Unsloth trains as a whole beside an adapter on every device."""
_INITIAL = re.compile(r"true|gaussian|orthogonal|pissa|pissa_niter_[1-9][0-9]?|olora")


class BackendFields(StageFields):
    """The field that selects who loads the model and adds the adapter."""

    backend: Literal["hf", "unsloth"] = setting(
        "hf",
        section="Launch",
        at_resume="arithmetic",
        advanced=True,
        help="Libraries that load and adapt the model: hf is transformers and PEFT; unsloth is Unsloth, which needs an"
        " environment of its own: name its interpreter in python.",
    )


class AdapterFields(StageFields):
    """The fields of a LoRA adapter, as PEFT names them."""

    r: int = setting(16, section="LoRA", at_resume="shapes", ge=1, help="Rank of the adapter.")
    lora_alpha: float = setting(
        32.0,
        section="LoRA",
        at_resume="arithmetic",
        gt=0,
        help="Scale of the adapter; its output is multiplied by lora_alpha / r.",
    )
    lora_dropout: float = setting(
        0.0, section="LoRA", at_resume="change", ge=0, lt=1, help="Dropout on the adapter's input during training."
    )
    use_rslora: bool = setting(
        False,
        section="LoRA",
        at_resume="arithmetic",
        advanced=True,
        help="Scale by lora_alpha / sqrt(r) instead (rsLoRA).",
    )
    use_dora: bool = setting(
        False,
        section="LoRA",
        at_resume="shapes",
        advanced=True,
        help="Train the norms of the weights' rows apart from their directions (DoRA); slower, often better at low r.",
    )
    init_lora_weights: str = setting(
        "true",
        section="LoRA",
        at_resume="arithmetic",
        advanced=True,
        suggests=INITIAL,
        help="First weights: true (A random, B zero), gaussian, orthogonal, or a part of the base model (pissa,"
        " pissa_niter_N, olora). With a part of the base model, the output is a plain LoRA adapter with 2 r over the"
        " unchanged base.",
    )
    target_modules: list[str] = setting(
        default_factory=lambda: list(PROJECTIONS),
        section="LoRA",
        at_resume="shapes",
        min_length=1,
        instead=ALL_LINEAR,
        suggests=(*PROJECTIONS, ALL_LINEAR),
        help="Linear layers that get an adapter, by the last parts of their names in the model; all-linear selects"
        " every one except the output head.",
    )
    modules_to_save: list[str] = setting(
        default_factory=list,
        section="LoRA",
        at_resume="shapes",
        advanced=True,
        suggests=("embed_tokens", "lm_head"),
        help="Layers that are trained as a whole and saved beside the adapter, by the last parts of their names.",
    )
    bias: Literal["none", "lora_only", "all"] = setting(
        "none",
        section="LoRA",
        at_resume="shapes",
        advanced=True,
        help="Biases that are trained: none, those of the layers with an adapter, or all.",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        return [value] if value == ALL_LINEAR else value

    @field_validator("init_lora_weights", mode="before")
    @classmethod
    def _true_as_word(cls, value: Any) -> Any:
        return "true" if value is True else value

    @model_validator(mode="after")
    def _all_or_names(self) -> AdapterFields:
        if ALL_LINEAR in self.target_modules and len(self.target_modules) > 1:
            raise ValueError(
                f"target_modules — {ALL_LINEAR} cannot be combined with names; got {len(self.target_modules)} entries;"
                f' allowed: "{ALL_LINEAR}" alone, or names of linear layers'
            )
        return self

    @model_validator(mode="after")
    def _first_weights(self) -> AdapterFields:
        value = self.init_lora_weights
        if not _INITIAL.fullmatch(value):
            raise ValueError(
                f"init_lora_weights — not an initialization; got {value!r}; allowed: true, gaussian, orthogonal, pissa,"
                " pissa_niter_1 to pissa_niter_99, or olora"
            )
        if self.use_dora and self.takes_from_base:
            raise ValueError(
                f"init_lora_weights — {value} cannot be combined with use_dora; got {value!r} and use_dora = true;"
                " allowed: use_dora = false, or true, gaussian, orthogonal"
            )
        if value == "orthogonal" and self.r % 2:
            raise ValueError(f"r — an orthogonal initialization needs an even rank; got {self.r}; allowed: an even r")
        return self

    @property
    def takes_from_base(self) -> bool:
        """Whether the first weights are a part of the base model, which is taken out of it."""
        return self.init_lora_weights.startswith(("pissa", "olora"))


class BaseFields(StageFields):
    """The fields of a base model whose weights are not trained."""

    base_dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        section="Precision",
        at_resume="arithmetic",
        advanced=True,
        help="Type in which the base model's frozen weights are kept: auto is bfloat16 where products are computed in"
        " it, else float32. Weights of 16 bits need half the memory and are computed with in bfloat16.",
    )


class QuantizedFields(StageFields):
    """The fields of a base model in 4 bits, as bitsandbytes and transformers name them."""

    load_in_4bit: bool = setting(
        False,
        section="Quantization",
        at_resume="arithmetic",
        help="Load the base model's linear layers in 4 bits (QLoRA); the adapter stays float32. Needs bitsandbytes.",
    )
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = setting(
        "nf4", section="Quantization", at_resume="arithmetic", help="The 4-bit values: nf4 or fp4."
    )
    bnb_4bit_use_double_quant: bool = setting(
        False,
        section="Quantization",
        at_resume="arithmetic",
        help="Quantize the scales of the 4-bit blocks too; saves about 0.4 bits per weight.",
    )
    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        section="Quantization",
        at_resume="arithmetic",
        advanced=True,
        help="Type in which 4-bit layers compute; auto is bfloat16 with bf16, else float32.",
    )
    llm_int8_skip_modules: list[str] = setting(
        default_factory=list,
        section="Quantization",
        at_resume="arithmetic",
        advanced=True,
        suggests=("lm_head",),
        help="Linear layers that stay unquantized besides the output head, by the last parts of their names.",
    )


class FinetuneFields(TrainingFields, DataFields, LabelFields, BackendFields):
    """The fields of fine-tuning, whatever its output."""

    model: str = setting(
        section="Inputs", at_resume="input", accepts=MODEL_OUTPUTS, help="The model: a stage, a folder, or a hub id."
    )
    data: str = setting(
        section="Inputs",
        at_resume="input",
        accepts=("messages", "text", DATASET),
        help="The conversations, or texts in which every token counts: a messages or text stage, a file, a folder of"
        " files, or the id of a dataset in the hub cache.",
    )
    padding_free: bool = setting(
        True,
        section="Batch",
        at_resume="change",
        advanced=True,
        help="Compute the rows of a batch without padding: in one sequence whose rows do not see each other, or one by"
        " one where the model's attention cannot keep them apart. Micro-batches of short rows are joined, up to the"
        " tokens of the longest micro-batch. The loss is the same.",
    )

    packing: bool = setting(
        False,
        section="Batch",
        at_resume="order",
        help="Fill sequences of max_length with several rows that do not see each other; per_device_train_batch_size"
        " then counts sequences.",
    )
    train_sampling_strategy: Literal["random", "group_by_length"] = setting(
        "random",
        section="Batch",
        at_resume="order",
        advanced=True,
        help="Order of the rows: random, or rows of similar lengths together.",
    )

    @model_validator(mode="after")
    def _packs_fit_the_batch(self) -> FinetuneFields:
        if self.packing and not self.padding_free:
            raise ValueError("packing — needs padding_free; got padding_free = false; allowed: true")
        if self.packing and self.train_sampling_strategy != "random":
            raise ValueError(
                "train_sampling_strategy — packed sequences have similar lengths anyway; got group_by_length with"
                " packing; allowed: random"
            )
        return self


class FinetuneStage(FinetuneFields, AdapterFields, BaseFields, QuantizedFields):
    """LoRA or QLoRA fine-tuning of a model, with its chat template and the loss on answers only."""

    kind: Literal["finetune"] = "finetune"
    output: Literal["adapter"] = "adapter"
    start_from: str | None = setting(
        None,
        section="Inputs",
        at_resume="input",
        advanced=True,
        accepts=("adapter",),
        help="Adapter whose weights the training starts from: a stage, a folder, or RUN:STAGE."
        " A checkpoint (RUN:STAGE@STEP) is continued instead, with its optimizer and its steps.",
    )

    @model_validator(mode="after")
    def _sixteen_bits_compute_in_bfloat16(self) -> FinetuneStage:
        if self.base_dtype in {"bfloat16", "float16"} and self.bf16 is False:
            raise ValueError(
                f"base_dtype — weights of 16 bits are computed with in bfloat16; got {self.base_dtype} with bf16 ="
                " false; allowed: auto or float32, or leave bf16 out"
            )
        if self.base_dtype in {"bfloat16", "float16"} and self.takes_from_base:
            raise ValueError(
                f"base_dtype — {self.init_lora_weights} takes a part out of float32 weights; got {self.base_dtype};"
                " allowed: auto or float32"
            )
        return self

    @model_validator(mode="after")
    def _four_bits_are_not_taken_apart(self) -> FinetuneStage:
        if self.load_in_4bit and self.takes_from_base:
            raise ValueError(
                f"init_lora_weights — {self.init_lora_weights} needs a base model that is not quantized; got"
                " load_in_4bit = true; allowed: load_in_4bit = false, or true, gaussian, orthogonal"
            )
        return self

    @model_validator(mode="after")
    def _what_unsloth_can(self) -> FinetuneStage:
        if self.backend == "unsloth":
            for field, got, allowed in _not_of_unsloth(self):
                raise ValueError(f"{field} — backend = unsloth has its own; got {got}; allowed: {allowed}")
        return self


def _not_of_unsloth(stage: FinetuneStage) -> Iterator[tuple[str, str, str]]:
    """The fields whose values Unsloth replaces by its own, or refuses: the field, the value, the allowed ones."""
    if stage.load_in_4bit:
        if stage.bnb_4bit_quant_type != "nf4":
            yield "bnb_4bit_quant_type", stage.bnb_4bit_quant_type, "nf4"
        if not stage.bnb_4bit_use_double_quant:
            yield "bnb_4bit_use_double_quant", "false", "true"
        if stage.bnb_4bit_compute_dtype != "auto":
            yield "bnb_4bit_compute_dtype", stage.bnb_4bit_compute_dtype, "auto"
        if stage.llm_int8_skip_modules:
            yield "llm_int8_skip_modules", ", ".join(stage.llm_int8_skip_modules), "an empty list"
    others = [name for name in stage.modules_to_save if name not in UNSLOTH_SAVES]
    if others:
        yield "modules_to_save", ", ".join(others), ", ".join(UNSLOTH_SAVES)


class FinetuneModelStage(FinetuneFields):
    """Fine-tuning of all weights of a model, with its chat template and the loss on answers only."""

    kind: Literal["finetune"] = "finetune"
    output: Literal["model"]
    start_from: str | None = setting(
        None,
        section="Inputs",
        at_resume="input",
        advanced=True,
        accepts=("model",),
        help="Model of the same shapes whose weights the training starts from: a stage, a folder, or RUN:STAGE."
        " A checkpoint (RUN:STAGE@STEP) is continued instead, with its optimizer and its steps.",
    )


def _needs(stage: FinetuneFields) -> tuple[str, ...]:
    quantized = isinstance(stage, FinetuneStage) and stage.load_in_4bit
    more = (*(("bitsandbytes",) if quantized else ()), *(UNSLOTH if stage.backend == "unsloth" else ()))
    return tuple(dict.fromkeys((*training_needs(stage), *more)))


FINETUNE = StageKind[FinetuneFields](
    kind="finetune",
    types={"adapter": FinetuneStage, "model": FinetuneModelStage},
    module="engines.finetune.stage",
    needs=_needs,
    starts_with=lambda stage: "engines.finetune.unsloth_start" if stage.backend == "unsloth" else "",
    metrics=lambda stage: tuple(dict.fromkeys((*training_metrics(stage), *LABEL_METRICS, *READ_METRICS))),
    default_output="adapter",
    metrics_if=EVALUATES,
    trains=True,
    samples=True,
    same_shape_as="model",
)
