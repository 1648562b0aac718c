"""Where several programs have a key for the same thing: its rule, or what it means that it is left out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cockpit.importing.draft import (
    TUNED,
    Draft,
    Rule,
    each,
    flag,
    names,
    number,
    numbers,
    switch,
    text,
    to,
    unneeded,
    whole,
)
from recipes.problems import shown
from recipes.stages.dpo import LOSS_TYPES

FULL = "a stage trains all weights, or LoRA; it does not train single layers of a model (freeze) or other adapters"
ALL_WEIGHTS_SAYS = 'a stage with output = "model" trains all weights'
METHOD_PART = (
    "no stage kind trains a reward model, with rewards (PPO, GRPO), from single judgements (KTO), or from preferences"
    " without a reference (ORPO, CPO, SimPO)"
)
OTHER_METHOD = "belongs to another method than this one"
REFERENCE = "the reference is the model as it was before the first step"
WHOLE_PAIR = "max_length counts the prompt and an answer together"
EIGHT_BITS = "8 bits are not supported: the base is not quantized, with at least twice the memory for its weights"
BITSANDBYTES = "4 bits are those of bitsandbytes"
UNSLOTH_ENVIRONMENT = (
    "name the interpreter of Unsloth's environment in python; without backend, transformers and PEFT train the same"
)
ADAPTER = "LoRA has no such part here: the adapter is trained without it"
PADDING = "rows are not padded unless padding_free is false, and the loss is the same"
NO_TOKENS = "no tokens are added to the tokenizer"
ROPE = "the model keeps its own positions; longer texts than it was trained on are not scaled"
NO_TRAINING = "the file describes generating text or a comparison, not a training"
GENERATION = "belongs to generating text, not to training"
NO_FLOAT16 = (
    "small gradients are 0 in float16 without a scaled loss: 4-bit layers compute in bfloat16 with bf16, in float16"
    " with fp16, else in float32"
)
OTHER_TEMPLATE = "the model's own chat template is used; cockpit rows shows what it writes"


def bits(value: Any) -> bool:
    """Whether a number of bits is the one that a base model can be loaded in."""
    found = number(value)
    if found == 8:
        raise ValueError(EIGHT_BITS)
    if found != 4:
        raise ValueError(f"got {shown(value)}; allowed: 4, and {BITSANDBYTES}")
    return True


def initial(value: Any) -> str:
    """The first weights of an adapter, as PEFT names them; true is Microsoft's own."""
    if value is False:
        raise ValueError("got false; allowed: true or a name, because an adapter without first weights is random")
    return "true" if value is True else text(value)


def pattern(value: Any) -> list[str]:
    """The layers of an adapter: names, or one regular expression."""
    if isinstance(value, str) and any(sign in value for sign in "()|*[\\"):
        return [value]
    return names(value)


def whole_numbers(value: Any) -> list[int]:
    """A list of whole numbers, also a single one."""
    return [whole(item) for item in (value if isinstance(value, list) else [value])]


def table(each: Callable[[Any], Any]) -> Callable[[Any], dict[str, Any]]:
    """A conversion of a table whose values are converted by `each`."""

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValueError(f"got {shown(value)}; allowed: a table")
        return {str(name): each(item) for name, item in value.items()}

    return convert


SELECTED: dict[str, Rule] = {
    **each("rank_pattern lora_rank_pattern", switch("rank_pattern", table(whole))),
    **each("alpha_pattern lora_alpha_pattern", switch("alpha_pattern", table(number))),
    **each("layers_to_transform peft_layers_to_transform", switch("layers_to_transform", whole_numbers)),
}
"""Which layers get an adapter, and their own ranks and scales."""


def loftq(draft: Draft, key: str) -> None:
    """LoftQ: the program rounds the base model to 4 bits by itself, and the recipe loads it in 4 bits."""
    if draft.value(key) != "loftq" or draft.all_weights or (entry := draft.take(key)) is None:
        return
    draft.put(f"{TUNED}.load_in_4bit", True)
    draft.stages[TUNED]["init_lora_weights"] = "loftq"
    says = "one iteration; the base model is loaded in 4 bits"
    draft.note(entry, "imported", [f"{TUNED}.init_lora_weights", f"{TUNED}.load_in_4bit"], says)
    draft.apply({"loftq_config": unneeded("the base is rounded to 4 bits, and one iteration is made")})


def type_name(value: Any) -> str:
    """A type of numbers without the library's name."""
    return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(
        found := text(value).removeprefix("torch."), found
    )


def compute_type(value: Any) -> str:
    """The type in which 4-bit layers compute."""
    found = type_name(value)
    if found == "float16":
        raise ValueError(NO_FLOAT16)
    return found


QUANTIZED: dict[str, Rule] = {
    "bnb_4bit_quant_type": to("bnb_4bit_quant_type", text),
    **each(
        "bnb_4bit_use_double_quant bnb_4bit_use_double_quantization use_bnb_nested_quant",
        switch("bnb_4bit_use_double_quant", flag),
    ),
    "bnb_4bit_compute_dtype": to("bnb_4bit_compute_dtype", compute_type),
    "llm_int8_skip_modules": switch("llm_int8_skip_modules", names),
    "bnb_4bit_quant_storage": unneeded("how 4-bit values are stored changes none of them"),
    **each(
        "llm_int8_threshold llm_int8_has_fp16_weight llm_int8_enable_fp32_cpu_offload", unneeded("belongs to 8 bits")
    ),
}
"""Arguments of transformers' BitsAndBytesConfig, besides the bits."""


def losses(draft: Draft, key: str) -> None:
    """The losses of pairs; one that no stage computes makes no recipe, because another one is another method."""
    read = draft.read(key, names)
    if read is None:
        return
    entry, found = read
    if not draft.on_pairs:
        draft.note(entry, "unneeded", says="belongs to training on pairs of answers")
        return
    unknown = [name for name in found if name not in LOSS_TYPES]
    if unknown:
        draft.note(entry, "missing", says=f"got {shown(unknown[0])}; allowed: {', '.join(LOSS_TYPES)}")
    else:
        draft.set(entry, f"{TUNED}.loss_type", found)


def weights_of_losses(draft: Draft, key: str) -> None:
    """The weight of each loss; after `losses`."""
    draft.apply({key: switch("loss_weights", numbers)})


def chosen_too(draft: Draft, key: str, says: str = "") -> None:
    """A weight of the likelihood of the chosen answers beside the other losses; after `losses`."""
    read = draft.read(key, number)
    if read is None:
        return
    entry, weight = read
    if not weight:
        draft.note(entry, "unneeded", says="asks for what a recipe does anyway")
        return
    before = draft.get(f"{TUNED}.loss_type") or ["sigmoid"]
    weights = draft.get(f"{TUNED}.loss_weights") or [1.0] * len(before)
    if draft.set(entry, f"{TUNED}.loss_weights", [*weights, weight], says):
        draft.put(f"{TUNED}.loss_type", [*before, "sft"])
