"""The base model of an adapter in 4 bits, as its training had it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.artifacts.adapter_folder import BASE_JSON, OUTPUT_HEADS, is_adapter
from engines.json_text import read_object
from recipes.problems import OperatorError, printable

_TYPES = ("nf4", "fp4")
_COMPUTE = ("float32", "bfloat16", "float16")

OTHER_BASE = (
    "the adapter was trained over a base model in 4 bits and is loaded over the 16-bit weights, as a merge has them:"
    " answers may differ from those of the training; an evaluation has load_in_4bit for the base as trained"
)


def is_over_four_bits(adapter: Path) -> bool:
    """Whether the training of an adapter loaded its base model in 4 bits."""
    record = adapter / BASE_JSON
    return record.is_file() and isinstance(read_object(record).get("quantization"), dict)


def quantization_as_trained(adapter: Path) -> Any:
    """The `BitsAndBytesConfig` with which the training of an adapter loaded its base model.

    Raises:
        OperatorError: the folder is not an adapter, or its training did not load the base model in 4 bits.
    """
    from transformers import BitsAndBytesConfig

    record = adapter / BASE_JSON
    found = read_object(record).get("quantization") if is_adapter(adapter) and record.is_file() else None
    if not isinstance(found, dict):
        raise OperatorError(
            f"load_in_4bit — {printable(str(adapter), 400)} is not an adapter that was trained over a 4-bit base model",
            "leave it out; an adapter of a finetune stage with load_in_4bit has this record",
        )
    kind, compute = found.get("bnb_4bit_quant_type"), found.get("bnb_4bit_compute_dtype", "float32")
    skipped = found.get("llm_int8_skip_modules", [])
    if kind not in _TYPES or compute not in _COMPUTE or not isinstance(skipped, list):
        raise OperatorError(
            f"{printable(str(record), 400)}: quantization — not as Cockpit writes it; got {printable(str(found), 200)}",
            "restore the file",
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=kind,
        bnb_4bit_use_double_quant=bool(found.get("bnb_4bit_use_double_quant", False)),
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=list(dict.fromkeys([*map(str, skipped), *OUTPUT_HEADS])),
    )


def keep_layout(model: Any) -> None:
    """Keep bitsandbytes from repacking 4-bit weights at the first use on a CPU with AVX512-BF16, which rounds their
    scales: the training computed with the others."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def precision_of(model: Any) -> str:
    """The type of a model's weights, as reports say it: bfloat16, or float32 with 4-bit layers."""
    kind = str(next(model.parameters()).dtype).removeprefix("torch.")
    four = any(type(module).__name__ == "Linear4bit" for module in model.modules())
    return f"{kind} with 4-bit layers" if four else kind
