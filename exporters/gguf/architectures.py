"""The model families that are written to GGUF, and how each one's weights and settings are named there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.hf_model.model_config import check_config, head_width, window_problem
from recipes.problems import OperatorError, either, shown


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


def architecture_of(folder: Path, config: dict[str, Any]) -> Architecture:
    """The family of a model.

    Raises:
        OperatorError: one that is not written here, or with a setting that a GGUF file of this family cannot express.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if found is None:
        raise OperatorError(
            f"{folder}/config.json: architectures — got {shown(name if name is not None else names)}; allowed {either(ARCHITECTURES)}",
            "a llama.cpp checkout may know it: converter = upstream",
        )
    check_config(folder, config)
    window = window_problem(config)
    if window:
        raise OperatorError(f"{folder}/config.json: {window}; {found.name} files attend to everything")
    if not found.free_head_width and head_width(config) * config["num_attention_heads"] != config["hidden_size"]:
        raise OperatorError(
            f"{folder}/config.json: head_dim — got {head_width(config)}; {found.name} files need hidden_size / num_attention_heads"
        )
    return found
