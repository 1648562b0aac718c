"""The finetune stage: an adapter, or all weights of the model, by its field `output`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from recipes.problems import shown
from recipes.setting import setting
from recipes.stages.adapter.fields import AdapterFields
from recipes.stages.data_fields import DATASET, READ_METRICS, DataFields
from recipes.stages.fields import MODEL_OUTPUTS, StageFields, starting_weights
from recipes.stages.kind import UNSLOTH, StageKind
from recipes.stages.label_fields import LABEL_METRICS, LabelFields
from recipes.stages.launch.fields import DDP, SINGLE
from recipes.stages.training import EVALUATES, MUON, TrainingFields, training_metrics, training_needs

ROW_FIELDS = ("packing", "train_sampling_strategy", "padding_free")
"""Fields that say how rows become batches."""
UNSLOTH_SAVES = ("embed_tokens", "lm_head")
"""Layers that Unsloth trains as a whole beside an adapter on every device."""
NO_FLOAT16 = (
    "bnb_4bit_compute_dtype — gradients below 6e-8 are 0 in float16 unless fp16 scales the loss, and auto follows fp16;"
    " got float16; allowed: auto, float32, bfloat16"
)
"""Why float16 cannot be chosen for the layers alone: the least number above 0 that it has is 2⁻²⁴."""


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


class BaseFields(StageFields):
    """The fields of a base model whose weights are not trained."""

    base_dtype: Literal["auto", "float32", "bfloat16", "float16"] = setting(
        "auto",
        section="Precision",
        at_resume="arithmetic",
        advanced=True,
        help="Type in which the base model's frozen weights are kept: auto is the type of 16 bits in which products are"
        " computed, else float32. Weights of 16 bits need half the memory, and are computed with in bfloat16 or, with"
        " fp16, in float16.",
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
    bnb_4bit_compute_dtype: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        section="Quantization",
        at_resume="arithmetic",
        advanced=True,
        help="Type in which 4-bit layers compute; auto is bfloat16 with bf16, float16 with fp16, else float32.",
    )
    llm_int8_skip_modules: list[str] = setting(
        default_factory=list,
        section="Quantization",
        at_resume="arithmetic",
        advanced=True,
        suggests=("lm_head",),
        help="Linear layers that stay unquantized besides the output head, by the last parts of their names.",
    )

    @field_validator("bnb_4bit_compute_dtype", mode="before")
    @classmethod
    def _gradients_do_not_vanish(cls, value: Any) -> Any:
        if value == "float16":
            raise ValueError(NO_FLOAT16)
        return value


class FinetuneFields(TrainingFields, DataFields, LabelFields, BackendFields):
    """The fields of fine-tuning, whatever its output."""

    model: str = setting(
        section="Inputs", at_resume="input", accepts=MODEL_OUTPUTS, help="The model: a stage, a folder, or a hub id."
    )
    data: str = setting(
        section="Inputs",
        at_resume="input",
        accepts=("messages", "text", "tokens", DATASET),
        help="The conversations, or texts in which every token counts: a messages or text stage, a file, a folder of"
        " files, or the id of a dataset in the hub cache. Or tokens of the model's own tokenizer, which fill windows of"
        " max_length: continued pretraining.",
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

    def unread_with_tokens(self) -> list[tuple[str, str]]:
        """The fields of rows that have another value than their default, each as a problem and a way out.

        Tokens have neither rows nor turns, and their windows are full.
        """
        fields = (
            *ROW_FIELDS,
            *(set(LabelFields.model_fields) | set(DataFields.model_fields)) - {*StageFields.model_fields},
        )
        known = type(self).model_fields
        changed = [
            name
            for name in sorted(set(fields))
            if getattr(self, name) != known[name].get_default(call_default_factory=True)
        ]
        return [
            (f"{name} — the data is tokens, which have no rows; got {shown(getattr(self, name))}", f"leave {name} out")
            for name in changed
        ]

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

    strategies: ClassVar[tuple[str, ...]] = (SINGLE, DDP)

    kind: Literal["finetune"] = "finetune"
    output: Literal["adapter"] = "adapter"
    start_from: str | None = starting_weights("adapter", "Adapter")

    @model_validator(mode="after")
    def _sixteen_bits_compute_in_bfloat16(self) -> FinetuneStage:
        if self.fp16 and self.base_dtype == "bfloat16":
            raise ValueError("base_dtype — fp16 computes in float16; got bfloat16; allowed: auto, float32 or float16")
        if self.base_dtype in {"bfloat16", "float16"} and self.bf16 is False and not self.fp16:
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
    def _muon_is_for_all_weights(self) -> FinetuneStage:
        if self.optim == MUON:
            raise ValueError(
                "optim — muon is for the matrices of a model, not for those of an adapter; got muon; allowed: another"
                ' optim, or output = "model"'
            )
        return self

    @model_validator(mode="after")
    def _loftq_is_of_4_bits(self) -> FinetuneStage:
        if self.init_lora_weights == "loftq" and not self.load_in_4bit:
            raise ValueError(
                "init_lora_weights — loftq makes up for what 4 bits lose; got loftq without load_in_4bit; allowed:"
                " load_in_4bit = true, or another initialization"
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

    def launch_problems(self) -> Iterator[str]:
        """What does not work in several processes, or with parts of weights."""
        yield from super().launch_problems()
        if self.launch.world_size > 1 and self.backend == "unsloth":
            yield (
                "backend — Unsloth computes in one process; got unsloth and"
                f" {self.launch.world_size} processes; allowed: hf, or launch.processes = 1"
            )

    @model_validator(mode="after")
    def _what_unsloth_can(self) -> FinetuneStage:
        if self.backend == "unsloth":
            for field, got, allowed in _not_of_unsloth(self):
                raise ValueError(f"{field} — backend = unsloth has its own; got {got}; allowed: {allowed}")
        return self


_ONLY_OF_PEFT = ("layers_to_transform", "rank_pattern", "alpha_pattern", "label_smoothing_factor")


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
    chosen = {
        "init_lora_weights": stage.init_lora_weights if stage.init_lora_weights == "loftq" else "",
        "target_modules": stage.pattern,
        **{name: getattr(stage, name) for name in _ONLY_OF_PEFT},
    }
    yield from ((name, shown(value), "leave it out, or backend = hf") for name, value in chosen.items() if value)
    if stage.base_dtype != "auto":
        yield "base_dtype", stage.base_dtype, "auto"
    for field in ("torch_compile", "use_liger_kernel"):
        if getattr(stage, field):
            yield field, "true", "false"
    others = [name for name in stage.modules_to_save if name not in UNSLOTH_SAVES]
    if others:
        yield "modules_to_save", ", ".join(others), ", ".join(UNSLOTH_SAVES)


class FinetuneModelStage(FinetuneFields):
    """Fine-tuning of all weights of a model, with its chat template and the loss on answers only."""

    kind: Literal["finetune"] = "finetune"
    output: Literal["model"]
    start_from: str | None = starting_weights("model", "Model of the same shapes")


def _needs(stage: FinetuneFields) -> tuple[str, ...]:
    quantized = isinstance(stage, FinetuneStage) and stage.load_in_4bit
    more = (*(("bitsandbytes",) if quantized else ()), *((*UNSLOTH, "trl") if stage.backend == "unsloth" else ()))
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
