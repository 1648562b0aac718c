"""The model families that are written to GGUF, and how each one's weights and settings are named there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipes.problems import OperatorError, either, printable


@dataclass(frozen=True)
class Architecture:
    """One family. `name` is llama.cpp's.

    Attributes:
        name: value of `general.architecture`.
        permuted: query and key rows are stored in llama.cpp's rotary order (pairs interleaved), not in transformers'.
        biases: projections may have biases.
        head_norms: queries and keys have norms of their own.
        free_head_width: the head width may differ from hidden_size / heads.
    """

    name: str
    permuted: bool = False
    biases: bool = False
    head_norms: bool = False
    free_head_width: bool = True


ARCHITECTURES = {
    "LlamaForCausalLM": Architecture("llama", permuted=True, biases=True),
    "MistralForCausalLM": Architecture("llama", permuted=True),
    "Qwen2ForCausalLM": Architecture("qwen2", biases=True, free_head_width=False),
    "Qwen3ForCausalLM": Architecture("qwen3", biases=True, head_norms=True),
}

_REQUIRED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
    "vocab_size",
)


def architecture_of(folder: Path, config: dict[str, Any]) -> Architecture:
    """The family of a model.

    Raises:
        OperatorError: one that is not written here, or with a setting that a GGUF file of this family cannot express.
    """
    names = config.get("architectures") or ["none"]
    found = ARCHITECTURES.get(str(names[0]))
    if found is None:
        raise OperatorError(
            f"{folder}: architectures — got {printable(str(names[0]))}; allowed {either(ARCHITECTURES)}",
            "llama.cpp's own convert_hf_to_gguf.py may know this model",
        )
    missing = [name for name in _REQUIRED if not isinstance(config.get(name), int | float)]
    if missing:
        raise OperatorError(f"{folder}/config.json: {missing[0]} is missing")
    if config.get("hidden_act", "silu") != "silu":
        raise OperatorError(f"{folder}: hidden_act — got {printable(str(config['hidden_act']))}; allowed silu")
    if config.get("sliding_window") and config.get("use_sliding_window", True):
        window = config["sliding_window"]
        if window < config["max_position_embeddings"]:
            raise OperatorError(
                f"{folder}: sliding_window — got {window}, shorter than the context of {config['max_position_embeddings']}; {found.name} files attend to everything"
            )
    if not found.free_head_width and head_width(config) * config["num_attention_heads"] != config["hidden_size"]:
        raise OperatorError(
            f"{folder}: head_dim — got {head_width(config)}; {found.name} files need hidden_size / num_attention_heads"
        )
    return found


def head_width(config: dict[str, Any]) -> int:
    """Width of one attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def kv_heads(config: dict[str, Any]) -> int:
    """Number of key and value heads."""
    return int(config.get("num_key_value_heads") or config["num_attention_heads"])


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary settings, from today's `rope_parameters` or from the older `rope_theta` and `rope_scaling`.

    Returns:
        `rope_theta`, `rope_type` ("default", "linear", "yarn" or "llama3") and the type's own fields.

    Raises:
        OperatorError: another type.
    """
    settings = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    if any(isinstance(value, dict) for value in settings.values()):
        raise OperatorError("rope_parameters — got different ones per kind of layer; allowed one for all layers")
    settings.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise OperatorError(f"rope_type — got {printable(str(kind))}; allowed default, linear, yarn, llama3")
    if float(settings.get("partial_rotary_factor", config.get("partial_rotary_factor") or 1.0)) != 1.0:
        raise OperatorError("partial_rotary_factor — got a part; allowed 1.0")
    return {**settings, "rope_type": kind}
