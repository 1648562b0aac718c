"""The keys of a GGUF file that describe the model.

All are always written, because llama.cpp replaces missing keys with defaults without a warning. A wrong rms epsilon,
rope base or rope scaling loads without an error and changes every answer; the parity check finds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from engines.llama.gguf_file import Value
from engines.llama.gguf_write import bool_list, float32_value, text_value, uint32_value
from exporters.gguf.file_names import ModelName, size_label
from exporters.hf_model.family import Architecture, value_of
from exporters.hf_model.rope import Rope

_WRITE: dict[str, Callable[[Any], Value]] = {
    "uint32": uint32_value,
    "float32": float32_value,
    "text": text_value,
    "bool_list": bool_list,
}
_PHI3 = re.compile(r"(phi)-?3", re.IGNORECASE)
QUANTIZATION_VERSION = 2
"""`general.quantization_version`: the version of ggml's block layouts (GGML_QNT_VERSION)."""


def model_keys(
    architecture: Architecture,
    config: dict[str, Any],
    *,
    title: ModelName,
    file_type_id: int,
    parameters: int,
    takes_blanks: bool = False,
) -> dict[str, Value]:
    """Every key of `general.` and of the architecture, in file order.

    Args:
        architecture: the model's family.
        config: the language model's settings.
        title: the model's name in parts, and its licence, for `general.`.
        file_type_id: `general.file_type`.
        parameters: number of weights, for the size label.
        takes_blanks: whether control tokens take the blanks after them, as in Phi-3.
    """
    named = {
        "general.name": runtime_name(title.stem, takes_blanks=takes_blanks),
        "general.basename": title.base,
        "general.finetune": title.finetune,
        "general.version": title.version,
        "general.size_label": title.size or size_label(parameters),
        "general.license": title.license or config.get("license"),
    }
    general = {"general.type": text_value("model")}
    general |= {key: text_value(value) for key, value in named.items() if isinstance(value, str) and value}
    general |= {
        "general.file_type": uint32_value(file_type_id),
        "general.quantization_version": uint32_value(QUANTIZATION_VERSION),
    }
    values = {key: value_of(config, key) for key in architecture.keys}
    network = {key.name: _WRITE[key.kind](value) for key, value in values.items() if value is not None}
    network |= _rope_keys(architecture.rope(config), boundaries=architecture.yarn_boundaries)
    return {
        "general.architecture": text_value(architecture.name),
        **general,
        **{f"{architecture.name}.{key}": value for key, value in network.items()},
    }


def runtime_name(name: str, *, takes_blanks: bool) -> str:
    """A model's name from which llama.cpp reads the right rule.

    A name with phi-3 or phi3 in it means that control tokens take the blanks after them, and the file is not loaded if
    the vocabulary lacks one of Phi-3's tokens; no other key says either (llama-vocab.cpp, `llama_vocab::impl::load`).
    """
    if takes_blanks:
        return name if _PHI3.search(name) else f"{name} (tokens of Phi-3)"
    return _PHI3.sub(r"\1 3", name)


def _rope_keys(rope: Rope, *, boundaries: bool) -> dict[str, Value]:
    """`boundaries`: whether llama.cpp reads YaRN's for the family."""
    keys = {"rope.freq_base": float32_value(rope.theta)}
    if rope.kind in ("linear", "yarn"):
        keys["rope.scaling.type"] = text_value(rope.kind)
        keys["rope.scaling.factor"] = float32_value(rope.factor)
    if rope.kind == "yarn":
        keys["rope.scaling.original_context_length"] = uint32_value(rope.original_context)
        if boundaries:
            keys["rope.scaling.yarn_beta_fast"] = float32_value(rope.beta_fast)
            keys["rope.scaling.yarn_beta_slow"] = float32_value(rope.beta_slow)
    if rope.magnitude != 1.0:
        keys["rope.scaling.attn_factor"] = float32_value(rope.magnitude)
    return keys
