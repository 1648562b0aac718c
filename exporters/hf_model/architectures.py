"""The list of the model families that can be written to GGUF, and the settings of a model of any family.

The list is the only one. The writer, the merge, the estimates before a launch and the check of a recipe read it. The
audit of a finished file has its own table (`exporters.proof.audit_families`), so that it finds a mistake in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from exporters.hf_model.families.gemma import GEMMA2, GEMMA3, GEMMA3_WITH_VISION
from exporters.hf_model.families.gpt_oss import GPT_OSS
from exporters.hf_model.families.granite import GRANITE
from exporters.hf_model.families.llama import LLAMA, MISTRAL
from exporters.hf_model.families.mistral3 import MINISTRAL3, MISTRAL3_WITH_VISION
from exporters.hf_model.families.olmo import OLMO2
from exporters.hf_model.families.phi import PHI3
from exporters.hf_model.families.qwen import QWEN2, QWEN3
from exporters.hf_model.families.qwen_moe import QWEN3_MOE
from exporters.hf_model.families.smollm import SMOLLM3
from exporters.hf_model.family import Architecture, Settings, head_width
from exporters.hf_model.model_config import check_config, contradictions
from exporters.hf_model.rope import LARGEST_CONTEXT
from exporters.hf_model.windows import window_of
from recipes.problems import OperatorError, either, shown

NESTED = "text_config"
"""The table of config.json that has the language model's settings in repositories of several modalities."""

ARCHITECTURES: Mapping[str, Architecture] = {
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3_WITH_VISION,
    "GptOssForCausalLM": GPT_OSS,
    "GraniteForCausalLM": GRANITE,
    "LlamaForCausalLM": LLAMA,
    "Ministral3ForCausalLM": MINISTRAL3,
    "Mistral3ForConditionalGeneration": MISTRAL3_WITH_VISION,
    "MistralForCausalLM": MISTRAL,
    "Olmo2ForCausalLM": OLMO2,
    "Phi3ForCausalLM": PHI3,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
    "SmolLM3ForCausalLM": SMOLLM3,
}
"""By the class name in `architectures` of config.json."""


def known_architecture(config: Settings) -> Architecture | None:
    """The row of a model's family; None for an unsupported one."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return ARCHITECTURES.get(name) if isinstance(name, str) else None


def language_settings(config: Settings) -> dict[str, Any]:
    """The settings of a model's language part, for any family, with `tie_word_embeddings` made explicit.

    config.json's top level, overridden by its nested table if any, over the family's defaults. As in transformers, the
    outermost `tie_word_embeddings` counts, and `architectures` names the class of the whole model.
    """
    row, nested = known_architecture(config), config.get(NESTED)
    settings: dict[str, Any] = {"tie_word_embeddings": False, **(row.defaults if row else {}), **config}
    if isinstance(nested, dict):
        outer = {name: config[name] for name in ("architectures", "tie_word_embeddings") if name in config}
        settings |= {**nested, **outer}
    return settings


def change_settings(config: Settings, **values: Any) -> dict[str, Any]:
    """A config.json with changed values, in its nested table if it has one; in both places if both have the value."""
    nested = config.get(NESTED)
    if not isinstance(nested, dict):
        return {**config, **values}
    outer = {name: value for name, value in values.items() if name in config or name == "tie_word_embeddings"}
    return {**config, **outer, NESTED: {**nested, **values}}


def architecture_of(folder: Path, config: Settings) -> Architecture:
    """The family of a model that an exporter writes.

    Raises:
        OperatorError: the family is not supported, or its GGUF files cannot express a setting.
    """
    found = known_architecture(config)
    if found is None:
        names = config.get("architectures")
        got = names[0] if isinstance(names, list) and names and names[0] is not None else names
        raise OperatorError(
            f"{folder}/config.json: architectures — got {shown(got)}; allowed {either(ARCHITECTURES)}",
            "a llama.cpp checkout may support it: converter = upstream",
        )
    settings = language_settings(config)
    check_config(folder, settings, found, contradictions(config, NESTED))
    if not found.free_head_width and head_width(settings) * settings["num_attention_heads"] != settings["hidden_size"]:
        raise OperatorError(
            f"{folder}/config.json: head_dim — got {head_width(settings)}; {found.name} files require hidden_size / "
            "num_attention_heads"
        )
    return found


def exact_context(config: Settings) -> int:
    """The number of tokens up to which llama.cpp's attention is the model's: its context, or a window that the
    family's files do not have, or the context from which on llama.cpp takes the long rotary factors for any text.

    Args:
        config: config.json, or the language model's settings.
    """
    settings, row = language_settings(config), known_architecture(config)
    short = LARGEST_CONTEXT
    if row is not None and "longrope" in row.rope_kinds:
        with suppress(OperatorError):  # another converter may write what Cockpit's own cannot
            rope = row.rope(settings)
            short = rope.original_context if rope.long_factor else LARGEST_CONTEXT
    return min(int(settings["max_position_embeddings"]), _missing_window(settings) or LARGEST_CONTEXT, short)


def _missing_window(settings: Settings) -> int | None:
    """The model's window, if the family's files do not have it."""
    row = known_architecture(settings)
    return None if row is None or row.windowed else window_of(settings)


def window_warning(settings: Settings) -> str:
    """What an operator should know about a window that the family's files do not have; empty if there is nothing."""
    exact = _missing_window(settings)
    if exact is None or exact >= int(settings["max_position_embeddings"]):
        return ""
    return (
        f"sliding_window — each token of the model sees {exact} tokens, but in llama.cpp all of them: the answers are "
        f"the model's up to {exact} tokens; the files have the model's context, {settings['max_position_embeddings']}"
    )
