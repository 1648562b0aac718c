"""Faults that are planted in a correct GGUF file, each with the words by which the proofs must name it.

A fault changes keys or tensors of a finished file of any type, or the model from which it is written; its tensors keep
their types, so one fault fits F16 and quantized files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.llama.gguf_file import GgufFile, Value, read_gguf
from engines.llama.gguf_write import (
    NewTensor,
    bool_value,
    float32_list,
    float32_value,
    int32_list,
    text_list,
    text_value,
    uint32_value,
)
from exporters.gguf.file_writer import ready, write_file
from exporters.gguf.write import Model
from exporters.proof.audit_vocab import numbers_of, texts_of

Rows = NDArray[np.uint8]
"""A tensor's stored rows, uint8 [rows, bytes of a row]."""


@dataclass
class Content:
    """A file's keys and tensors in memory: by name, dimensions and type, and the stored rows."""

    keys: dict[str, Value]
    tensors: dict[str, tuple[tuple[int, ...], int, Rows]]

    def rows(self, name: str) -> Rows:
        return self.tensors[name][2]

    def replace(self, name: str, rows: Rows) -> None:
        dimensions, kind, _ = self.tensors[name]
        self.tensors[name] = (dimensions, kind, np.ascontiguousarray(rows))

    def swap(self, one: str, other: str) -> None:
        self.tensors[one], self.tensors[other] = self.tensors[other], self.tensors[one]


def read_content(path: Path) -> Content:
    file: GgufFile = read_gguf(path)
    tensors = {}
    for name, tensor in file.tensors.items():
        data = np.frombuffer(file.read(tensor, 0, tensor.rows), np.uint8).reshape(tensor.rows, -1).copy()
        tensors[name] = (tensor.dimensions, tensor.type_id, data)
    return Content(dict(file.keys), tensors)


def write_content(content: Content, path: Path) -> Path:
    tensors = [
        (NewTensor(name, dimensions, kind, rows.nbytes), [ready(rows, rows.size)])
        for name, (dimensions, kind, rows) in content.tensors.items()
    ]
    with path.open("wb") as file:
        write_file(file, content.keys, tensors)
    return path


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        named: words of the finding.
        change: spoils the content of a correct file.
        model: the model whose file it is planted in: "llama" or "qwen".
        spoil: spoils the model before its file is written, instead of `change`.
    """

    named: str
    change: Callable[[Content], None] = lambda _content: None
    model: str = "llama"
    spoil: Callable[[Model], Model] | None = None


def number(key: str, value: int) -> Callable[[Content], None]:
    return lambda content: content.keys.__setitem__(key, uint32_value(value))


def fraction(key: str, value: float) -> Callable[[Content], None]:
    return lambda content: content.keys.__setitem__(key, float32_value(value))


def text(key: str, value: str) -> Callable[[Content], None]:
    return lambda content: content.keys.__setitem__(key, text_value(value))


def flag(key: str, value: bool) -> Callable[[Content], None]:
    return lambda content: content.keys.__setitem__(key, bool_value(value))


def without(key: str) -> Callable[[Content], None]:
    return lambda content: content.keys.__delitem__(key)


def no_tensor(name: str) -> Callable[[Content], None]:
    return lambda content: content.tensors.__delitem__(name)


def rows(name: str, change: Callable[[Rows], Rows]) -> Callable[[Content], None]:
    return lambda content: content.replace(name, change(content.rows(name)))


def flipped(name: str, share: float) -> Callable[[Content], None]:
    """One bit of one byte, at this share of the tensor."""

    def flip(content: Content) -> None:
        flat = content.rows(name).reshape(-1)
        flat[int(share * (flat.size - 1))] ^= 1

    return flip


def swapped(one: str, other: str) -> Callable[[Content], None]:
    return lambda content: content.swap(one, other)


def like(name: str, other: str) -> Callable[[Content], None]:
    """A tensor with the type and the rows of another."""
    return lambda content: content.tensors.__setitem__(name, content.tensors[other])


def reordered(heads: int, *, back: bool) -> Callable[[Rows], Rows]:
    """Rows of each head from transformers' rotary order to llama.cpp's, or back."""

    def change(data: Rows) -> Rows:
        parts = data.reshape(heads, -1, 2, data.shape[1]) if back else data.reshape(heads, 2, -1, data.shape[1])
        return parts.swapaxes(1, 2).reshape(data.shape)

    return change


def layers_swapped(content: Content) -> None:
    for name in [name for name in content.tensors if name.startswith("blk.0.") and name.endswith(".weight")]:
        content.swap(name, name.replace("blk.0.", "blk.1."))


def texts(key: str, change: Callable[[list[bytes]], Any]) -> Callable[[Content], None]:
    def spoil(content: Content) -> None:
        listed = texts_of(content.keys[key])
        change(listed)
        content.keys[key] = text_list(listed)

    return spoil


def tokens(change: Callable[[list[bytes]], Any]) -> Callable[[Content], None]:
    return texts("tokenizer.ggml.tokens", change)


def merges(change: Callable[[list[bytes]], Any]) -> Callable[[Content], None]:
    return texts("tokenizer.ggml.merges", change)


def token_type(index: int, kind: int) -> Callable[[Content], None]:
    def spoil(content: Content) -> None:
        listed = [int(item) for item in numbers_of(content.keys["tokenizer.ggml.token_type"])]
        listed[index] = kind
        content.keys["tokenizer.ggml.token_type"] = int32_list(listed)

    return spoil


def scores(change: Callable[[list[float]], list[float]]) -> Callable[[Content], None]:
    def spoil(content: Content) -> None:
        listed = numbers_of(content.keys["tokenizer.ggml.scores"])
        content.keys["tokenizer.ggml.scores"] = float32_list(change(listed))

    return spoil


def _swap(listed: list[bytes], one: int, other: int) -> None:
    listed[one], listed[other] = listed[other], listed[one]


@dataclass
class ChangedWeights:
    """A model's tensors with the rows of one changed while they are read."""

    inner: Any
    name: str
    change: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    folder: Path = field(init=False)
    files: list[Path] = field(init=False)
    tensors: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.folder, self.files, self.tensors = self.inner.folder, self.inner.files, self.inner.tensors

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        found = self.inner.read_rows(name, start, stop)
        return self.change(found) if self.name in name else found

    def read(self, name: str) -> NDArray[np.float32]:
        found = self.inner.read(name)
        return self.change(found) if self.name in name else found


def weights(name: str, change: Callable[[NDArray[np.float32]], NDArray[np.float32]]) -> Callable[[Model], Model]:
    return lambda model: replace(model, weights=ChangedWeights(model.weights, name, change))


def _rounded(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 through BF16."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def _one_value(values: NDArray[np.float32]) -> NDArray[np.float32]:
    changed = values.copy()
    changed.reshape(-1)[7] += 0.5
    return changed


def _tied_head(model: Model) -> Model:
    """The head from a converter that treats the model as tied."""
    sources = dict(model.sources)
    sources["output.weight"] = sources["token_embd.weight"]
    return replace(model, sources=sources)


def _negate(content: Content, name: str) -> None:
    key = f"tokenizer.ggml.{name}"
    content.keys[key] = bool_value(not content.keys[key].scalar)


def _edit(content: Content, key: str, addition: str) -> None:
    content.keys[key] = text_value(f"{content.keys[key].scalar}{addition}")


_RMS = "attention.layer_norm_rms_epsilon"
_Q, _K = "blk.1.attn_q.weight", "blk.1.attn_k.weight"
HEADS, KV_HEADS = 4, 2

FAULTS: dict[str, Fault] = {
    # keys
    "architecture": Fault("general.architecture is qwen2", text("general.architecture", "qwen2")),
    "context length": Fault("context_length is 64", number("llama.context_length", 64)),
    "embedding length": Fault("embedding_length is 128", number("llama.embedding_length", 128)),
    "layers": Fault("block_count is 1", number("llama.block_count", 1)),
    "inner width": Fault("feed_forward_length is 512", number("llama.feed_forward_length", 512)),
    "heads": Fault("attention.head_count is 8", number("llama.attention.head_count", 8)),
    "key heads": Fault("attention.head_count_kv is 1", number("llama.attention.head_count_kv", 1)),
    "key heads by default": Fault(
        "attention.head_count_kv is missing, which means 4", without("llama.attention.head_count_kv")
    ),
    "key width": Fault("attention.key_length is 32", number("llama.attention.key_length", 32)),
    "value width": Fault("attention.value_length is 32", number("llama.attention.value_length", 32)),
    "rotated width": Fault("rope.dimension_count is 32", number("llama.rope.dimension_count", 32)),
    "norm epsilon": Fault("layer_norm_rms_epsilon is", fraction(f"llama.{_RMS}", 1e-6)),
    "norm epsilon missing": Fault("layer_norm_rms_epsilon is missing", without(f"llama.{_RMS}")),
    "rope theta": Fault("rope.freq_base is 10000.0", fraction("llama.rope.freq_base", 10_000.0)),
    "rope theta by default": Fault("rope.freq_base is missing, which means 10000.0", without("llama.rope.freq_base")),
    "rope scaling that the model lacks": Fault("rope.scaling.type", fraction("llama.rope.scaling.factor", 4.0)),
    "rope magnitude that the model lacks": Fault(
        "rope.scaling.attn_factor is", fraction("llama.rope.scaling.attn_factor", 1.2)
    ),
    "vocabulary size": Fault("vocab_size is 600", number("llama.vocab_size", 600)),
    "sliding window": Fault("attention.sliding_window is 32", number("llama.attention.sliding_window", 32)),
    "soft cap of attention": Fault("attn_logit_softcapping is 50.0", fraction("llama.attn_logit_softcapping", 50.0)),
    "soft cap of the head": Fault("final_logit_softcapping is 30.0", fraction("llama.final_logit_softcapping", 30.0)),
    "scale of logits": Fault("logit_scale is 0.5", fraction("llama.logit_scale", 0.5)),
    "scale of embeddings": Fault("embedding_scale is 12.0", fraction("llama.embedding_scale", 12.0)),
    "scale of residuals": Fault("residual_scale is", fraction("llama.residual_scale", 0.22)),
    "scale of attention": Fault("attention.scale is", fraction("llama.attention.scale", 0.5)),
    "experts": Fault("expert_count is 8", number("llama.expert_count", 8)),
    "attention in both directions": Fault("attention.causal is False", flag("llama.attention.causal", False)),
    "file type": Fault("general.file_type is 7", number("general.file_type", 7)),
    # tensors
    "tensor missing": Fault("tensor blk.1.attn_norm.weight is missing", no_tensor("blk.1.attn_norm.weight")),
    "bias missing": Fault("tensor blk.0.attn_k.bias is missing", no_tensor("blk.0.attn_k.bias")),
    "tensor that the model lacks": Fault(
        "tensor blk.1.attn_q_norm.weight does not exist", like("blk.1.attn_q_norm.weight", "blk.0.attn_norm.weight")
    ),
    "rope factors missing": Fault("tensor rope_freqs.weight is missing", no_tensor("rope_freqs.weight")),
    "rope factors of 1": Fault(
        "rope_freqs.weight does not contain",
        rows("rope_freqs.weight", lambda data: np.ones(data.size // 4, np.float32).view(np.uint8).reshape(1, -1)),
    ),
    "queries not permuted": Fault(
        "blk.1.attn_q.weight: its rows are in the folder's order", rows(_Q, reordered(HEADS, back=True))
    ),
    "queries permuted twice": Fault("blk.1.attn_q.weight: row", rows(_Q, reordered(HEADS, back=False))),
    "keys permuted by the heads of queries": Fault(
        "blk.1.attn_k.weight: row",
        rows(_K, lambda data: reordered(HEADS, back=False)(reordered(KV_HEADS, back=True)(data))),
    ),
    "rows reversed": Fault("blk.0.ffn_up.weight: row 0", rows("blk.0.ffn_up.weight", lambda data: data[::-1])),
    "two rows swapped": Fault(
        "blk.0.ffn_up.weight: row 100",
        rows("blk.0.ffn_up.weight", lambda data: data[[*range(100), 101, 100, *range(102, len(data))]]),
    ),
    "embedding shifted by one token": Fault(
        "token_embd.weight: row 0", rows("token_embd.weight", lambda data: np.roll(data, 1, axis=0))
    ),
    "layers swapped": Fault("contains model.layers.1.", layers_swapped),
    "gate and up swapped": Fault(
        "blk.0.ffn_gate.weight: row 0 differs from model.layers.0.mlp.gate_proj.weight: the tensor contains "
        "model.layers.0.mlp.up_proj.weight",
        swapped("blk.0.ffn_gate.weight", "blk.0.ffn_up.weight"),
    ),
    "norms swapped": Fault(
        "the tensor contains model.layers.0.post_attention_layernorm.weight",
        swapped("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight"),
    ),
    "head of the embedding": Fault(
        "output.weight: row 0 differs from lm_head.weight and equals the embedding's",
        spoil=_tied_head,
    ),
    "matrix of zeros": Fault("blk.0.attn_v.weight: row 0", rows("blk.0.attn_v.weight", np.zeros_like)),
    "byte of a matrix": Fault("blk.1.ffn_down.weight: row", flipped("blk.1.ffn_down.weight", 0.51)),
    "byte of the embedding": Fault("token_embd.weight: row", flipped("token_embd.weight", 0.9)),
    "byte of the head": Fault("output.weight: row", flipped("output.weight", 0.33)),
    "byte of a norm": Fault("output_norm.weight: row 0", flipped("output_norm.weight", 0.7)),
    "byte of a bias": Fault("blk.1.attn_q.bias: row 0", flipped("blk.1.attn_q.bias", 0.2)),
    "first byte": Fault("blk.0.attn_q.weight: row 0", flipped("blk.0.attn_q.weight", 0.0)),
    "last byte": Fault("blk.1.attn_output.weight: row 255", flipped("blk.1.attn_output.weight", 1.0)),
    "norms without their offset": Fault(
        "attn_norm.weight: row 0", spoil=weights("input_layernorm", lambda values: values - 1)
    ),
    "adapter with a doubled scale": Fault(
        "blk.0.attn_v.weight: row", spoil=weights("layers.0.self_attn.v_proj.weight", lambda values: values * 1.01)
    ),
    "one value": Fault("blk.1.ffn_gate.weight: row 0", spoil=weights("layers.1.mlp.gate_proj.weight", _one_value)),
    "weights rounded once more": Fault("attn_output.weight: row", spoil=weights("self_attn.o_proj.weight", _rounded)),
    # the vocabulary
    "token's text": Fault(
        "tokenizer.ggml.tokens: 1 differ", tokens(lambda listed: listed.__setitem__(300, b"something"))
    ),
    "tokens swapped": Fault("tokenizer.ggml.tokens: 2 differ", tokens(lambda listed: _swap(listed, 400, 401))),
    "tokens cut": Fault("tokenizer.ggml.tokens has 639 entries", tokens(lambda listed: listed.pop())),
    "control token as text": Fault("tokenizer.ggml.token_type: 1 differ", token_type(2, 1)),
    "text as control token": Fault("tokenizer.ggml.token_type: 1 differ", token_type(400, 3)),
    "byte as text": Fault("tokenizer.ggml.token_type: 1 differ", token_type(100, 1)),
    "scores of -1000": Fault("tokenizer.ggml.scores: ", scores(lambda listed: [-1000.0] * len(listed))),
    "one score": Fault(
        "tokenizer.ggml.scores: 1 of", scores(lambda listed: [*listed[:500], listed[500] + 3, *listed[501:]])
    ),
    "kind of tokenizer": Fault("tokenizer.ggml.model is gpt2", text("tokenizer.ggml.model", "gpt2")),
    "begin token": Fault("tokenizer.ggml.bos_token_id is 2", number("tokenizer.ggml.bos_token_id", 2)),
    "end token": Fault("tokenizer.ggml.eos_token_id is 1", number("tokenizer.ggml.eos_token_id", 1)),
    "unknown token": Fault("tokenizer.ggml.unknown_token_id is 5", number("tokenizer.ggml.unknown_token_id", 5)),
    "space before a text": Fault(
        "tokenizer.ggml.add_space_prefix is True", flag("tokenizer.ggml.add_space_prefix", True)
    ),
    "space before a text by default": Fault(
        "tokenizer.ggml.add_space_prefix is missing, which means True", without("tokenizer.ggml.add_space_prefix")
    ),
    "begin token not added": Fault(
        "tokenizer.ggml.add_bos_token is", lambda content: _negate(content, "add_bos_token")
    ),
    "end token added": Fault("tokenizer.ggml.add_eos_token is", lambda content: _negate(content, "add_eos_token")),
    "chat template": Fault(
        "tokenizer.chat_template differs", lambda content: _edit(content, "tokenizer.chat_template", " ")
    ),
    "chat template missing": Fault("tokenizer.chat_template", without("tokenizer.chat_template")),
    "another template": Fault(
        "tokenizer.chat_template.tool_use is set", text("tokenizer.chat_template.tool_use", "{{ messages }}")
    ),
    "sampling": Fault("general.sampling.temp is set", fraction("general.sampling.temp", 5.0)),
    # byte-level BPE, YaRN
    "merges swapped": Fault("tokenizer.ggml.merges differ", merges(lambda listed: _swap(listed, 10, 11)), model="qwen"),
    "merge missing": Fault("tokenizer.ggml.merges differ", merges(lambda listed: listed.pop(20)), model="qwen"),
    "pre-tokenizer": Fault("tokenizer.ggml.pre is gpt-2", text("tokenizer.ggml.pre", "gpt-2"), model="qwen"),
    "pre-tokenizer missing": Fault("tokenizer.ggml.pre", without("tokenizer.ggml.pre"), model="qwen"),
    "end of turn as text": Fault("tokenizer.ggml.token_type: 1 differ", token_type(602, 1), model="qwen"),
    "yarn factor": Fault("rope.scaling.factor is 2.0", fraction("qwen2.rope.scaling.factor", 2.0), model="qwen"),
    "yarn context": Fault(
        "rope.scaling.original_context_length is 512",
        number("qwen2.rope.scaling.original_context_length", 512),
        model="qwen",
    ),
    "yarn magnitude": Fault(
        "rope.scaling.attn_factor is missing, which means 1.0",
        without("qwen2.rope.scaling.attn_factor"),
        model="qwen",
    ),
    "yarn as linear": Fault("rope.scaling.type is linear", text("qwen2.rope.scaling.type", "linear"), model="qwen"),
    "yarn missing": Fault("rope.scaling.type is", without("qwen2.rope.scaling.type"), model="qwen"),
}
"""By the kind of fault."""
