"""The model families that can be written to GGUF, one row each: names of tensors and settings in transformers and GGUF.

A row is the only definition of a family. The writer, the merge, the estimates before a launch and the check of a recipe
read it. The audit of a finished file has its own table (`exporters.proof.audit_families`), so that it finds a mistake
in a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from exporters.hf_model.model_config import check_config, head_width, kv_heads, window_problem
from recipes.problems import OperatorError, either, shown

Settings = Mapping[str, Any]
"""A language model's settings, as config.json names them."""


@dataclass(frozen=True)
class Part:
    """A tensor of a model, or of each of its layers.

    Attributes:
        name: in GGUF, without `blk.N.` and `.weight`.
        module: in transformers, without the family's prefix, `layers.N.` and `.weight`.
        shape: the settings, or names of `DERIVED`, with its rows and columns, or with a vector's length.
        rotary: the setting, or name of `DERIVED`, with the number of heads whose rows are stored in rotary order; empty
            for tensors without.
        biased: whether it may have a bias, one value per row.
    """

    name: str
    module: str
    shape: tuple[str, ...]
    rotary: str = ""
    biased: bool = False


@dataclass(frozen=True)
class Key:
    """A GGUF key that describes the network: its name without the family's, and the setting with its value."""

    name: str
    setting: str
    kind: Literal["uint32", "float32"] = "uint32"


@dataclass(frozen=True)
class Architecture:
    """One family.

    Attributes:
        name: value of `general.architecture`: llama.cpp's name.
        layer: the tensors of a layer.
        keys: the keys that describe the network, without those of rotary positions, in file order.
        permuted: rows of queries and keys are stored in llama.cpp's rotary order (pairs interleaved), not in
            transformers'.
        free_head_width: the head width may differ from hidden_size / heads.
        vocabularies: the kinds of tokenizer that it may have, as `tokenizer.ggml.model` names them.
        settings: the key of config.json with the language model's settings; empty if they are at the top level.
        prefix: the prefix of its tensors' names, except the output head's.
        head: the name of the output head's tensor.
        seventy_b_layers: number of layers of models that llama.cpp counts as 70B; 0 without any.
    """

    name: str
    layer: tuple[Part, ...]
    keys: tuple[Key, ...]
    permuted: bool = False
    free_head_width: bool = True
    vocabularies: tuple[str, ...] = ("llama", "gpt2")
    settings: str = ""
    prefix: str = "model."
    head: str = "lm_head.weight"
    seventy_b_layers: int = 0

    @property
    def embedding(self) -> str:
        """The name of the embedding's tensor in transformers."""
        return f"{self.prefix}embed_tokens.weight"

    def settings_of(self, config: Settings) -> dict[str, Any]:
        """The language model's settings: config.json's top level, overridden by the family's nested table if any."""
        nested = config.get(self.settings) if self.settings else None
        return {**config, **nested} if isinstance(nested, dict) else dict(config)

    def tensors(self, settings: Settings) -> dict[str, Tensor]:
        """Every tensor that a model with these settings may have, by its name in transformers."""
        top = [Part("token_embd", "embed_tokens", ("vocab_size", "hidden_size"))]
        found = [self._tensors(part, settings, self.prefix, "") for part in top]
        for layer in range(int(settings["num_hidden_layers"])):
            within = f"{self.prefix}layers.{layer}.", f"blk.{layer}."
            found += [self._tensors(part, settings, *within) for part in self.layer]
        found.append(self._tensors(Part("output_norm", "norm", ("hidden_size",)), settings, self.prefix, ""))
        tensors = {name: tensor for group in found for name, tensor in group.items()}
        if not settings["tie_word_embeddings"]:
            tensors[self.head] = Tensor("output.weight", _sizes(top[0].shape, settings))
        return tensors

    def _tensors(self, part: Part, settings: Settings, module: str, block: str) -> dict[str, Tensor]:
        shape = _sizes(part.shape, settings)
        heads = size_of(settings, part.rotary) if part.rotary and self.permuted else 0
        found = {f"{module}{part.module}.weight": Tensor(f"{block}{part.name}.weight", shape, heads)}
        if part.biased:
            bias = Tensor(f"{block}{part.name}.bias", shape[:1], heads, optional=True)
            found[f"{module}{part.module}.bias"] = bias
        return found

    def is_seventy_b(self, layers: int) -> bool:
        """Whether llama.cpp counts a model with this many layers as 70B, whose value projections get more bits."""
        return layers == self.seventy_b_layers


@dataclass(frozen=True)
class Tensor:
    """A tensor of a model with known settings.

    Attributes:
        name: in GGUF.
        shape: [rows, columns], or [length].
        heads: how many heads have their rows in rotary order; 0 for a tensor in transformers' order.
        optional: whether a model may lack it.
    """

    name: str
    shape: tuple[int, ...]
    heads: int = 0
    optional: bool = False


DERIVED: Mapping[str, Callable[[Settings], int]] = {
    "head_width": head_width,
    "kv_heads": kv_heads,
    "query_rows": lambda settings: head_width(settings) * int(settings["num_attention_heads"]),
    "key_rows": lambda settings: head_width(settings) * kv_heads(settings),
}
"""Sizes that are computed from several settings, or have a default."""


def size_of(settings: Settings, name: str) -> int:
    """A size by its name: a setting, or one of `DERIVED`."""
    return DERIVED[name](settings) if name in DERIVED else int(settings[name])


def _sizes(names: tuple[str, ...], settings: Settings) -> tuple[int, ...]:
    return tuple(size_of(settings, name) for name in names)


def _layer(*more: Part, biased: tuple[str, ...] = ()) -> tuple[Part, ...]:
    """The tensors of a Llama layer and further ones of the family; `biased`: parts that may have a bias."""
    hidden, inner = "hidden_size", "intermediate_size"
    projections = {
        "attn_q": ("self_attn.q_proj", ("query_rows", hidden), "num_attention_heads"),
        "attn_k": ("self_attn.k_proj", ("key_rows", hidden), "kv_heads"),
        "attn_v": ("self_attn.v_proj", ("key_rows", hidden), ""),
        "attn_output": ("self_attn.o_proj", (hidden, "query_rows"), ""),
        "ffn_gate": ("mlp.gate_proj", (inner, hidden), ""),
        "ffn_up": ("mlp.up_proj", (inner, hidden), ""),
        "ffn_down": ("mlp.down_proj", (hidden, inner), ""),
    }
    return (
        Part("attn_norm", "input_layernorm", (hidden,)),
        Part("ffn_norm", "post_attention_layernorm", (hidden,)),
        *(Part(name, *rest, biased=name in biased) for name, rest in projections.items()),
        *more,
    )


_ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
_PROJECTIONS = (*_ATTENTION, "ffn_gate", "ffn_up", "ffn_down")
_HEAD_NORMS = (
    Part("attn_q_norm", "self_attn.q_norm", ("head_width",)),
    Part("attn_k_norm", "self_attn.k_norm", ("head_width",)),
)
_KEYS = (
    Key("context_length", "max_position_embeddings"),
    Key("embedding_length", "hidden_size"),
    Key("block_count", "num_hidden_layers"),
    Key("feed_forward_length", "intermediate_size"),
    Key("attention.head_count", "num_attention_heads"),
    Key("attention.head_count_kv", "kv_heads"),
    Key("attention.key_length", "head_width"),
    Key("attention.value_length", "head_width"),
    Key("attention.layer_norm_rms_epsilon", "rms_norm_eps", "float32"),
    Key("vocab_size", "vocab_size"),
    Key("rope.dimension_count", "head_width"),
)
"""The keys of every Llama-type file. All are written: llama.cpp replaces missing keys with defaults silently."""

LLAMA = Architecture("llama", _layer(biased=_PROJECTIONS), _KEYS, permuted=True, seventy_b_layers=80)
ARCHITECTURES: Mapping[str, Architecture] = {
    "LlamaForCausalLM": LLAMA,
    "MistralForCausalLM": Architecture("llama", _layer(), _KEYS, permuted=True, seventy_b_layers=80),
    "Qwen2ForCausalLM": Architecture(
        "qwen2", _layer(biased=_PROJECTIONS), _KEYS, free_head_width=False, seventy_b_layers=80
    ),
    "Qwen3ForCausalLM": Architecture("qwen3", _layer(*_HEAD_NORMS, biased=_PROJECTIONS), _KEYS),
}
"""By the class name in `architectures` of config.json."""


def known_architecture(config: Settings) -> Architecture | None:
    """The row of a model's family; None for an unsupported one."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    return ARCHITECTURES.get(name) if isinstance(name, str) else None


def language_settings(config: Settings) -> dict[str, Any]:
    """The settings of a model's language part, for any family; an unsupported one has them at the top level."""
    return (known_architecture(config) or LLAMA).settings_of(config)


def change_settings(config: Settings, **values: Any) -> dict[str, Any]:
    """A config.json with changed values, stored where the family has its language model's settings."""
    row = known_architecture(config)
    nested = config.get(row.settings) if row is not None and row.settings else None
    if row is None or not isinstance(nested, dict):
        return {**config, **values}
    return {**config, row.settings: {**nested, **values}}


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
    settings = found.settings_of(config)
    check_config(folder, settings)
    window = window_problem(settings)
    if window:
        raise OperatorError(f"{folder}/config.json: {window}; {found.name} files use full attention")
    if not found.free_head_width and head_width(settings) * settings["num_attention_heads"] != settings["hidden_size"]:
        raise OperatorError(
            f"{folder}/config.json: head_dim — got {head_width(settings)}; {found.name} files require hidden_size / "
            "num_attention_heads"
        )
    return found
