"""What a row of the table of model families consists of: the parts of a model, its GGUF keys, and what is special.

The rows are in `exporters.hf_model.families`, one file per family; `exporters.hf_model.architectures` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from exporters.hf_model.rope import Rope, read_rope

Settings = Mapping[str, Any]
"""A language model's settings, as config.json names them."""
Size = str | Callable[[Settings], int]
"""A setting, a name of `DERIVED`, or a function of the settings."""
KeyKind = Literal["uint32", "float32", "text", "bool_list"]


@dataclass(frozen=True)
class Packed:
    """How one of transformers' tensors has the matrices or vectors of all experts, column by column.

    Value [expert, row, column] of the file is [expert, column, first + step * row] there; value [expert, place] of a
    vector is [expert, first + step * place].
    """

    first: int = 0
    step: int = 1

    def shape(self, experts: int, one: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in transformers, from the number of experts and the shape of one in the file."""
        return (experts, *one[1:], one[0] * self.step)


@dataclass(frozen=True)
class Part:
    """A tensor of a model, or of each of its layers.

    Attributes:
        name: in GGUF, without `blk.N.` and `.weight`.
        module: in transformers, without the family's prefix, `layers.N.` and the leaf. With `experts` it contains
            `{expert}`, the expert's number.
        shape: rows and columns, or a vector's length; of one expert with `experts`.
        rotary: the number of heads whose rows are stored in rotary order; empty for tensors without.
        biased: whether it may have a bias, one value per row.
        offset: is added to every value, for norms that multiply by 1 + weight.
        experts: the number of experts; the file has their matrices stacked in one tensor. Empty for all others.
        packed: how the module's parameter has all experts; None if each expert has a module.
        kinds: the kinds of layers that have it; empty for all layers.
        leaf: the end of the name in transformers; empty for a parameter without any.
        suffix: the end of the name in GGUF; empty for a tensor without any.
        required: whether every model has it.
    """

    name: str
    module: str
    shape: tuple[Size, ...]
    rotary: Size = ""
    biased: bool = False
    offset: float = 0.0
    experts: Size = ""
    packed: Packed | None = None
    kinds: tuple[str, ...] = ()
    leaf: str = "weight"
    suffix: str = "weight"
    required: bool = True


@dataclass(frozen=True)
class Key:
    """A GGUF key that describes the network: its name without the family's, and where its value comes from.

    A value of None means that the file does not have the key.
    """

    name: str
    value: str | Callable[[Settings], Any]
    kind: KeyKind = "uint32"


@dataclass(frozen=True)
class Tensor:
    """A tensor of a GGUF file of a model with known settings.

    Attributes:
        name: in GGUF.
        sources: the model's tensors that it consists of, as transformers names them: one, or one per expert.
        shape: of each source, [rows, columns] or [length].
        heads: how many heads have their rows in rotary order; 0 for a tensor in transformers' order.
        offset: is added to every value.
        stacked: whether the file has one more dimension, for the experts.
        optional: whether a model may lack it.
        packed: how its only source has the values of all experts; None for other tensors.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    heads: int = 0
    offset: float = 0.0
    stacked: bool = False
    optional: bool = False
    packed: Packed | None = None


def no_problems(_settings: Settings) -> Iterable[str]:
    """Nothing to refuse or to warn of."""
    return ()


def _all_alike(_settings: Settings, _layer: int) -> str:
    return ""


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
        prefix: the prefix of its tensors' names in transformers, except the output head's.
        head: the name of the output head's tensor.
        norm: the tensor before the output head.
        stored: other beginnings of names in files and adapters, each with transformers' own.
        left_out: beginnings of names that a GGUF file of the language model does not have, and what they are.
        defaults: values of settings that config.json may lack, as the family's configuration class has them.
        activation: transformers' name of the only activation that llama.cpp computes for the family.
        kind_of_layer: the kind of a layer, for parts that not every layer has.
        rope_layers: the kind of layer whose rotary settings the plain `rope.` keys have, for families with one table
            per kind; empty for families with one for all layers.
        rope_kinds: the kinds of rotary positions that llama.cpp computes for the family.
        partly_rotary: whether only a part of each head's values may be rotated.
        yarn_boundaries: whether llama.cpp reads YaRN's boundaries for the family.
        rounded_yarn: whether models whose range between YaRN's boundaries is not rounded, as it always is in llama.cpp,
            are written; they are compared with the rounded range.
        windowed: whether llama.cpp applies the family's sliding windows; the others' files use full attention.
        problems: what a GGUF file cannot express in these settings, one line each.
        warnings: what an operator should know about the file, one line each.
        seventy_b_layers: number of layers of models that llama.cpp counts as 70B; 0 without any.
    """

    name: str
    layer: tuple[Part, ...]
    keys: tuple[Key, ...]
    permuted: bool = False
    free_head_width: bool = True
    vocabularies: tuple[str, ...] = ("llama", "gpt2")
    prefix: str = "model."
    head: str = "lm_head.weight"
    norm: Part = Part("output_norm", "norm", ("hidden_size",))
    stored: tuple[tuple[str, str], ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    activation: str = "silu"
    kind_of_layer: Callable[[Settings, int], str] = _all_alike
    rope_layers: str = ""
    rope_kinds: tuple[str, ...] = ("default", "linear", "yarn")
    partly_rotary: bool = False
    yarn_boundaries: bool = False
    rounded_yarn: bool = False
    windowed: bool = False
    problems: Callable[[Settings], Iterable[str]] = no_problems
    warnings: Callable[[Settings], Iterable[str]] = no_problems
    seventy_b_layers: int = 0

    @property
    def embedding(self) -> str:
        """The name of the embedding's tensor in transformers."""
        return f"{self.prefix}embed_tokens.weight"

    def rope(self, settings: Settings) -> Rope:
        """The rotary settings of all layers, or of those that `rope_layers` names.

        Raises:
            OperatorError: as `read_rope`.
        """
        return read_rope(
            dict(settings),
            self.rope_layers,
            self.rope_kinds,
            partly=self.partly_rotary,
            boundaries=self.yarn_boundaries,
            rounded=self.rounded_yarn,
        )

    def rope_factors(self, settings: Settings) -> dict[str, list[float]]:
        """Divisors of the rotary frequencies, one per pair of a head's values, by the name of the file's tensor.

        Raises:
            OperatorError: as `read_rope`.
        """
        rope = self.rope(settings)
        found = {
            "rope_freqs.weight": rope.frequency_divisors(head_width(settings)),
            "rope_factors_long.weight": list(rope.long_factor),
            "rope_factors_short.weight": list(rope.short_factor),
        }
        return {name: factors for name, factors in found.items() if factors}

    def own_name(self, name: str) -> str:
        """A tensor's or module's name as transformers has it, from its name in a file or in an adapter."""
        return next((new + name.removeprefix(old) for old, new in self.stored if name.startswith(old)), name)

    def names_in(self, names: Iterable[str]) -> dict[str, str]:
        """The names in a folder by the names in transformers, without those that are left out."""
        return {self.own_name(name): name for name in names if self.left_out_of(name) is None}

    def left_out_of(self, name: str) -> str | None:
        """What a tensor that the language model does not have belongs to; None for the language model's."""
        own = self.own_name(name)
        return next((what for beginning, what in self.left_out.items() if own.startswith(beginning)), None)

    def tensors(self, settings: Settings) -> dict[str, Tensor]:
        """Every tensor that a GGUF file of a model with these settings may have, by its name there."""
        embedding = Part("token_embd", "embed_tokens", ("vocab_size", "hidden_size"))
        found = self._tensors(embedding, settings, self.prefix, "")
        for layer in range(int(settings["num_hidden_layers"])):
            kind = self.kind_of_layer(settings, layer)
            within = f"{self.prefix}layers.{layer}.", f"blk.{layer}."
            for part in self.layer:
                if not part.kinds or kind in part.kinds:
                    found += self._tensors(part, settings, *within)
        found += self._tensors(self.norm, settings, self.prefix, "")
        if not settings["tie_word_embeddings"]:
            found.append(Tensor("output.weight", (self.head,), _sizes(embedding.shape, settings)))
        return {tensor.name: tensor for tensor in found}

    def _tensors(self, part: Part, settings: Settings, module: str, block: str) -> list[Tensor]:
        shape = _sizes(part.shape, settings)
        heads = size_of(settings, part.rotary) if part.rotary and self.permuted else 0
        if part.packed is not None:
            source = _joined(f"{module}{part.module}", part.leaf)
            every = part.packed.shape(size_of(settings, part.experts), shape)
            return [Tensor(_joined(f"{block}{part.name}", part.suffix), (source,), every, packed=part.packed)]
        experts = range(size_of(settings, part.experts)) if part.experts else None
        modules = [f"{module}{part.module}"] if experts is None else _numbered(f"{module}{part.module}", experts)
        names = tuple(_joined(name, part.leaf) for name in modules)
        stacked, optional = experts is not None, not part.required
        name = _joined(f"{block}{part.name}", part.suffix)
        found = [Tensor(name, names, shape, heads, part.offset, stacked, optional)]
        if part.biased:
            names = tuple(f"{name}.bias" for name in modules)
            found.append(Tensor(f"{block}{part.name}.bias", names, shape[:1], heads, stacked=stacked, optional=True))
        return found

    def is_seventy_b(self, layers: int) -> bool:
        """Whether llama.cpp counts a model with this many layers as 70B, whose value projections get more bits."""
        return layers == self.seventy_b_layers


def _joined(name: str, end: str) -> str:
    return f"{name}.{end}" if end else name


def _numbered(module: str, experts: range) -> list[str]:
    return [module.replace("{expert}", str(number)) for number in experts]


def head_width(settings: Settings) -> int:
    """Width of one attention head."""
    return int(settings.get("head_dim") or settings["hidden_size"] // settings["num_attention_heads"])


def kv_heads(settings: Settings) -> int:
    """Number of key and value heads."""
    return int(settings.get("num_key_value_heads") or settings["num_attention_heads"])


def query_rows(settings: Settings) -> int:
    """Rows of the query projection."""
    return head_width(settings) * int(settings["num_attention_heads"])


def key_rows(settings: Settings) -> int:
    """Rows of the key projection, and of the value projection."""
    return head_width(settings) * kv_heads(settings)


DERIVED: Mapping[str, Callable[[Settings], int]] = {
    "head_width": head_width,
    "kv_heads": kv_heads,
    "query_rows": query_rows,
    "key_rows": key_rows,
}
"""Sizes that are computed from several settings, or have a default."""


def size_of(settings: Settings, size: Size) -> int:
    """A size: a setting, one of `DERIVED`, or what a function computes."""
    if not isinstance(size, str):
        return size(settings)
    return DERIVED[size](settings) if size in DERIVED else int(settings[size])


def value_of(settings: Settings, key: Key) -> Any:
    """A key's value; None if the file does not have the key."""
    if not isinstance(key.value, str):
        return key.value(settings)
    return size_of(settings, key.value) if key.kind == "uint32" else settings[key.value]


def _sizes(sizes: tuple[Size, ...], settings: Settings) -> tuple[int, ...]:
    return tuple(size_of(settings, size) for size in sizes)


def layer_of(*more: Part, biased: Container[str] = (), without: Container[str] = ()) -> tuple[Part, ...]:
    """The tensors of a Llama layer and further ones of the family.

    Args:
        more: the further ones.
        biased: parts that may have a bias.
        without: parts of a Llama layer that the family does not have.
    """
    hidden, inner = "hidden_size", "intermediate_size"
    projections: dict[str, tuple[str, tuple[Size, ...], Size]] = {
        "attn_q": ("self_attn.q_proj", ("query_rows", hidden), "num_attention_heads"),
        "attn_k": ("self_attn.k_proj", ("key_rows", hidden), "kv_heads"),
        "attn_v": ("self_attn.v_proj", ("key_rows", hidden), ""),
        "attn_output": ("self_attn.o_proj", (hidden, "query_rows"), ""),
        "ffn_gate": ("mlp.gate_proj", (inner, hidden), ""),
        "ffn_up": ("mlp.up_proj", (inner, hidden), ""),
        "ffn_down": ("mlp.down_proj", (hidden, inner), ""),
    }
    parts = (
        Part("attn_norm", "input_layernorm", (hidden,)),
        Part("ffn_norm", "post_attention_layernorm", (hidden,)),
        *(Part(name, *rest, biased=name in biased) for name, rest in projections.items()),
    )
    return (*(part for part in parts if part.name not in without), *more)


ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
PROJECTIONS = (*ATTENTION, "ffn_gate", "ffn_up", "ffn_down")
HEAD_NORMS = (
    Part("attn_q_norm", "self_attn.q_norm", ("head_width",)),
    Part("attn_k_norm", "self_attn.k_norm", ("head_width",)),
)
KEYS = (
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
