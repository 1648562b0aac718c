"""Compares sampled rows of every tensor of a GGUF file with its source tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.llama.gguf_file import GgufFile, Tensor
from exporters.hf_model.tensor_files import Weights
from exporters.proof.audit_families import family_of
from recipes.problems import printable

ROWS = 6
"""Rows of each tensor that are compared: the first, the last, and some between."""
_EXACT = {"F32": np.float32, "F16": np.float16}
_QUANTIZED_LIMIT = {4.5: 0.25, 5.5: 0.15, 6.6: 0.08, 9.0: 0.03}
"""Maximum relative RMS error of decoded values, by bits per weight; 0.9 for fewer bits. Rows of another tensor give
1.4."""
_HALF_STEP = 2.0**-25
"""Half of the distance between the smallest numbers of F16."""
_FACTORS = "rope_freqs.weight"


def audit_tensors(file: GgufFile, config: Mapping[str, Any], weights: Weights) -> list[str]:
    """Check that the file has exactly the expected tensors, and compare sampled rows of each."""
    wanted = _expected(config, weights)
    why = {"output.weight": ": the model's head shares the embedding's matrix"} if config["tie_word_embeddings"] else {}
    findings = [f"tensor {name} is missing" for name in wanted if name not in file.tensors]
    findings += [
        f"tensor {printable(name, 120)} does not exist in the model{why.get(name, '')}"
        for name in file.tensors
        if name not in wanted
    ]
    for name, source in wanted.items():
        tensor = file.tensors.get(name)
        if tensor is not None:
            findings += _compare(file, tensor, source, config, weights)
    return findings


def _expected(config: Mapping[str, Any], weights: Weights) -> dict[str, str]:
    """The source's tensor by GGUF name; empty for rope_freqs."""
    family = family_of(config)
    tied = bool(config["tie_word_embeddings"])
    found = {name: source for name, source in family.top.items() if not (tied and name == "output.weight")}
    for layer in range(int(config["num_hidden_layers"])):
        for part, module in family.layer.items():
            for leaf in ("weight", "bias"):
                source = f"{family.prefix}layers.{layer}.{module}.{leaf}"
                if source in weights.tensors:
                    found[f"blk.{layer}.{part}.{leaf}"] = source
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) == "llama3":
        found[_FACTORS] = ""
    return found


def _compare(file: GgufFile, tensor: Tensor, source: str, config: Mapping[str, Any], weights: Weights) -> list[str]:
    name = tensor.name
    if tensor.kind is None:
        return [f"tensor {name} has the unknown type {tensor.type_id}"]
    if name == _FACTORS:
        return _compare_factors(file, tensor, config)
    info = weights.tensors[source]
    rows, columns = (info.rows, info.columns) if len(info.shape) > 1 else (1, info.values)
    if (tensor.rows, tensor.columns) != (rows, columns):
        return [f"tensor {name} is {tensor.rows} x {tensor.columns}; {source} is {rows} x {columns}"]
    heads = _heads(name, config)
    picked = _picked(rows) if len(info.shape) > 1 else [0]
    off: list[int] = []
    unpermuted = bool(heads)
    for row in picked:
        actual = _row(file, tensor, row)
        off += [row] if not _close(tensor, actual, _source_row(weights, source, row, heads, rotary=True)) else []
        unpermuted = unpermuted and _close(tensor, actual, _source_row(weights, source, row, heads, rotary=False))
    if not off:
        return []
    if unpermuted:
        return [f"tensor {name}: its rows are in the folder's order, not in llama.cpp's rotary order (Q/K permute)"]
    like = _like_the_embedding(file, tensor, family_of(config).top["token_embd.weight"], weights)
    return [f"tensor {name}: row {off[0]} differs from {source}{like} ({len(off)} of {len(picked)} sampled rows)"]


def _like_the_embedding(file: GgufFile, tensor: Tensor, embedding: str, weights: Weights) -> str:
    if tensor.name != "output.weight" or weights.tensors[embedding].columns != tensor.columns:
        return ""
    same = all(
        _close(tensor, _row(file, tensor, row), weights.read_rows(embedding, row, row + 1)[0])
        for row in _picked(tensor.rows)
    )
    return " and equals the embedding's: the file's head is tied, the model's is not" if same else ""


def _compare_factors(file: GgufFile, tensor: Tensor, config: Mapping[str, Any]) -> list[str]:
    """Llama 3's divisors of the rotary frequencies, from the definition in its config."""
    rope = config.get("rope_parameters") or config["rope_scaling"]
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    width = int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))
    low, high, factor = (float(rope[field]) for field in ("low_freq_factor", "high_freq_factor", "factor"))
    original = float(rope["original_max_position_embeddings"])
    expected = []
    for place in range(width // 2):
        turns = original * theta ** (-2 * place / width) / (2 * math.pi)
        blend = min(1.0, max(0.0, (turns - low) / (high - low)))
        expected.append(1.0 / ((1 - blend) / factor + blend))
    actual = _row(file, tensor, 0)
    if len(actual) != len(expected) or not np.allclose(actual, expected, rtol=1e-5):
        return [f"tensor {tensor.name} does not contain the factors of the model's llama3 rope scaling"]
    return []


def _heads(name: str, config: Mapping[str, Any]) -> int:
    """Number of heads whose rows llama.cpp stores in another order; 0 for other tensors."""
    if not family_of(config).permuted:
        return 0
    part = name.split(".")[2] if name.startswith("blk.") else ""
    heads = int(config["num_attention_heads"])
    return {"attn_q": heads, "attn_k": int(config.get("num_key_value_heads") or heads)}.get(part, 0)


def _picked(rows: int) -> list[int]:
    """The sampled rows: always the same, spread over the tensor, with two neighbours, because a wrong order may keep
    every second row."""
    spread = {round(part * (rows - 1) / (ROWS - 1)) for part in range(ROWS)} | {min(1, rows - 1)}
    return sorted(spread)


def _source_row(weights: Weights, source: str, row: int, heads: int, *, rotary: bool) -> NDArray[np.float32]:
    """The source's row that belongs at `row` of the file, float32 [columns]; a vector is one row."""
    info = weights.tensors[source]
    if len(info.shape) == 1:
        values = weights.read(source)
        if heads and rotary:
            values = values.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
        return values
    if heads and rotary:
        width = info.rows // heads
        within = row % width
        row = row - within + within // 2 + (width // 2 if within % 2 else 0)
    return weights.read_rows(source, row, row + 1)[0]


def _row(file: GgufFile, tensor: Tensor, row: int) -> NDArray[np.float32]:
    """A decoded row, float32 [columns]."""
    assert tensor.kind is not None
    raw = np.frombuffer(file.read(tensor, row, 1), np.uint8)
    if tensor.kind.name in _EXACT:
        return raw.view(_EXACT[tensor.kind.name]).astype(np.float32)
    decoded: NDArray[np.float32] = gguf.quants.dequantize(raw.reshape(1, -1), gguf.GGMLQuantizationType(tensor.type_id))
    return decoded.reshape(-1)


def _close(tensor: Tensor, actual: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    """Whether two rows, float32 [columns], differ by no more than the rounding of the tensor's type."""
    assert tensor.kind is not None
    if tensor.kind.name == "F32":
        return bool(np.array_equal(actual, expected))
    if tensor.kind.name == "F16":
        return bool(np.array_equal(actual, expected.astype(np.float16).astype(np.float32)))
    scale = float(np.sqrt(np.mean(np.square(expected))))
    error = float(np.sqrt(np.mean(np.square(actual - expected))))
    if tensor.kind.name == "BF16":
        return error <= scale * 2**-8
    bits = tensor.kind.bits_per_weight
    limit = next((limit for most, limit in sorted(_QUANTIZED_LIMIT.items(), reverse=True) if bits >= most - 1.0), 0.9)
    # Scales are F16: very small ones lose digits, and the error grows by the largest number that a scale multiplies.
    coarse = _HALF_STEP * (127 if tensor.kind.name == "Q8_0" else 1024)
    return error <= limit * scale + coarse
