"""Compares every tensor of a GGUF file with its source: which tensors there are, their shapes, and their bytes."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.llama.gguf_file import GgufFile, Tensor
from exporters.hf_model.tensor_files import Weights
from exporters.proof.audit_families import family_of
from exporters.proof.audit_meanings import experts
from exporters.proof.byte_proof import ByteProver, Compared, Making, Progress, decoded
from recipes.problems import printable

_FACTORS = "rope_freqs.weight"
_FACTOR_ULPS = 4
"""llama.cpp's converter computes the factors in float32, Cockpit in float64: their last bits may differ."""


_PROBED = 4
"""Block tensors whose sampled rows show from what a foreign file was quantized."""


@dataclass(frozen=True)
class Source:
    """A tensor of the model in the order of the file.

    Attributes:
        name: its name in the folder.
        weights: the folder's tensors.
        heads: those whose rows llama.cpp stores in rotary order.
        plus_one: the file's values are the folder's plus one.
        experts: the names of all experts' matrices, in their order, the first of which is `name`; empty for a tensor
            that is not stacked.
        slots: which columns of the folder's tensor, which has all experts one after another, are the rows of each
            expert's matrix; None for all others.
    """

    name: str
    weights: Weights
    heads: int = 0
    plus_one: bool = False
    experts: tuple[str, ...] = ()
    slots: slice | None = None

    @property
    def label(self) -> str:
        """Its name, and which columns where it is not the whole tensor."""
        part = self._picked if self.slots is not None else range(0)
        return f"{self.name}, every {part.step}nd column from {part.start}" if part.step > 1 else self.name

    @property
    def _picked(self) -> range:
        return range(self.weights.tensors[self.name].shape[-1])[self.slots or slice(None)]

    @property
    def stacked(self) -> int:
        """Number of experts whose matrices are stacked; 1 for any other tensor."""
        shape = self.weights.tensors[self.name].shape
        return shape[0] if self.slots is not None and len(shape) == 3 else max(1, len(self.experts))

    @property
    def rows(self) -> int:
        """A vector is one row."""
        if self.slots is not None:
            shape = self.weights.tensors[self.name].shape
            return shape[0] * len(self._picked) if len(shape) == 3 else shape[0]
        return self.weights.tensors[self.name].rows * max(1, len(self.experts))

    def name_at(self, row: int) -> str:
        """The folder's tensor that a row comes from."""
        return self.experts[row // self.weights.tensors[self.name].rows] if self.experts else self.label

    @property
    def columns(self) -> int:
        """Values of one row."""
        if self.slots is not None:
            shape = self.weights.tensors[self.name].shape
            return shape[1] if len(shape) == 3 else len(self._picked)
        return self.weights.tensors[self.name].columns

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows in the file's order, float32 [stop - start, columns]."""
        info = self.weights.tensors[self.name]
        if self.slots is not None:
            return self._of_slots(start, stop)
        if self.experts:
            places = [(number * info.rows, name) for number, name in enumerate(self.experts)]
            return np.concatenate(
                [
                    self.weights.read_rows(name, max(0, start - first), min(info.rows, stop - first))
                    for first, name in places
                    if start < first + info.rows and stop > first
                ]
            )
        if self.plus_one:
            return self.weights.read_rows(self.name, start, stop) + np.float32(1)
        if not self.heads:
            return self.weights.read_rows(self.name, start, stop)
        if len(info.shape) == 1:
            return self._rotary(self.weights.read(self.name).reshape(-1, 1), self.heads).reshape(1, -1)
        width = info.rows // self.heads
        low, high = start // width * width, -(-stop // width) * width
        whole = self._rotary(self.weights.read_rows(self.name, low, high), (high - low) // width)
        return whole[start - low : stop - low]

    def _of_slots(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows that are columns in the folder: column `place` of each expert, one expert after the other."""
        shape, picked = self.weights.tensors[self.name].shape, self._picked
        if len(shape) == 2:
            return np.take(self.weights.read_rows(self.name, start, stop), picked, axis=1)
        rows = np.empty((stop - start, shape[1]), np.float32)
        row = start
        while row < stop:
            expert, place = divmod(row, len(picked))
            end = min(stop, (expert + 1) * len(picked))
            matrix = self.weights.read_rows(self.name, expert, expert + 1).reshape(shape[1], shape[2])
            rows[row - start : end - start] = matrix.T[list(picked[place : place + end - row])]
            row = end
        return rows

    def _rotary(self, rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
        """Whole heads from transformers' order to llama.cpp's, [rows, columns] → the same."""
        halves = rows.reshape(heads, 2, -1, rows.shape[1])
        return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))


@dataclass
class BytesProof:
    """What the comparison of a file's tensors found.

    Attributes:
        rows: "all", or "sampled".
        tensors: tensors compared.
        equal: those whose compared bytes are all equal to the derived ones.
        by_value: those that were compared by decoded values, because their bytes cannot be derived again.
        through: F16 or BF16 if the file was quantized from a file of that type, which rounded the model first.
        compared_bytes: bytes of the file that were compared.
        seconds: time of the comparison.
        kernels: the library that derived quantized bytes, and its self-test; None for a file without block types.
        notes: why tensors are compared by value.
        findings: the errors, each with its tensor.
    """

    rows: str
    tensors: int = 0
    equal: int = 0
    by_value: int = 0
    through: str | None = None
    compared_bytes: int = 0
    seconds: float = 0.0
    kernels: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def audit_tensors(
    file: GgufFile,
    config: Mapping[str, Any],
    weights: Weights,
    prover: ByteProver,
    importance: Mapping[str, NDArray[np.float32]] | None = None,
    progress: Progress = lambda _values: None,
) -> BytesProof:
    """Check that the file has exactly the expected tensors, and compare their bytes with the source's.

    Args:
        file: the file.
        config: the model's config.
        weights: its tensors.
        prover: derives the bytes.
        importance: the importance matrix that the file was written with, by tensor name, float32 [columns] or
            [experts, columns].
        progress: called with the number of values compared since the last call.

    Raises:
        KeyError: the audit does not support the model's family.
        NativeError: the kernels failed.
        OperatorError: a file became unreadable.
    """
    began = time.monotonic()
    wanted = expected_sources(config, weights)
    proof = BytesProof(prover.rows)
    proof.findings = _names(file, config, wanted)
    comparable: dict[str, Source] = {}
    for name, source in wanted.items():
        tensor = file.tensors.get(name)
        wrong = None if tensor is None else _shape(tensor, source)
        if wrong is not None:
            proof.findings.append(wrong)
        elif tensor is not None:
            comparable[name] = source
    _judge_factors(proof, file, config, exact=prover.same_kernels)
    unknown = not importance and any(key.startswith("quantize.imatrix.") for key in file.keys)
    making = Making(importance or {}, unknown)
    if not prover.same_kernels:
        making = _through(file, comparable, prover, making)
    compared = prover.compare(file, comparable, making, progress)
    tolerated = set() if prover.same_kernels else _other_kernels(file, compared)
    comparison = _Comparison(file, comparable, prover, making)
    for name, result in compared.items():
        _judge(proof, comparison, name, result, tolerated)
    if unknown and any(result.by_value for result in compared.values()):
        proof.notes.append(
            "the file was quantized with an importance matrix that is not given; its quantized tensors are compared by "
            "their decoded values"
        )
    proof.through = making.through or None
    if making.through:
        proof.notes.append(f"the file was quantized from {making.through}, which rounded the model's weights first")
    if tolerated:
        proof.notes.append(
            f"kernels of another build wrote {', '.join(sorted(tolerated))}: their rounding differs in places; these "
            "tensors are compared by their decoded values"
        )
    proof.notes += prover.notes
    proof.kernels = prover.record
    proof.seconds = time.monotonic() - began
    return proof


def expected_sources(config: Mapping[str, Any], weights: Weights) -> dict[str, Source]:
    """The source by GGUF name of every tensor that the file must have, except Llama 3's factors."""
    family = family_of(config)
    prefix = family.prefix(weights.tensors)
    tied = bool(config["tie_word_embeddings"])
    found = {
        name: Source(source, weights, plus_one=family.adds_one(name))
        for name, source in family.top(weights.tensors).items()
        if not (tied and name == "output.weight") and source in weights.tensors
    }
    for layer in range(int(config["num_hidden_layers"])):
        for part, module in family.layer.items():
            if "{expert}" in module:
                found |= _stacked(
                    f"blk.{layer}.{part}.weight", f"{prefix}layers.{layer}.{module}.weight", config, weights
                )
                continue
            for leaf in ("weight", "bias"):
                source = f"{prefix}layers.{layer}.{module}.{leaf}"
                if source in weights.tensors:
                    name = f"blk.{layer}.{part}.{leaf}"
                    found[name] = Source(source, weights, _heads(part, config), plus_one=family.adds_one(name))
        found |= {
            f"blk.{layer}.{part}": Source(f"{prefix}layers.{layer}.{parameter}", weights, slots=slots)
            for part, (parameter, slots) in [
                *family.packed.items(),
                *((p, (m, None)) for p, m in family.leafless.items()),
            ]
            if f"{prefix}layers.{layer}.{parameter}" in weights.tensors
        }
    return found


def _stacked(name: str, source: str, config: Mapping[str, Any], weights: Weights) -> dict[str, Source]:
    """The matrices of all experts, in the order of their numbers."""
    names = tuple(source.replace("{expert}", str(number)) for number in range(experts(config)))
    return {name: Source(names[0], weights, experts=names)} if all(part in weights.tensors for part in names) else {}


def _heads(part: str, config: Mapping[str, Any]) -> int:
    """Number of heads whose rows llama.cpp stores in another order; 0 for other tensors."""
    if not family_of(config).permuted:
        return 0
    heads = int(config["num_attention_heads"])
    return {"attn_q": heads, "attn_k": int(config.get("num_key_value_heads") or heads)}.get(part, 0)


def _factors(config: Mapping[str, Any]) -> dict[str, list[float]]:
    """The divisors of the rotary frequencies that the file must have, by tensor name."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) == "llama3":
        return {_FACTORS: _llama3_factors(rope, config)}
    found = {"rope_factors_long.weight": rope.get("long_factor"), "rope_factors_short.weight": rope.get("short_factor")}
    return {name: [float(number) for number in numbers] for name, numbers in found.items() if numbers}


def _names(file: GgufFile, config: Mapping[str, Any], wanted: Mapping[str, Source]) -> list[str]:
    """Missing and additional tensors."""
    why = {"output.weight": ": the model's head shares the embedding's matrix"} if config["tie_word_embeddings"] else {}
    names = [*wanted, *_factors(config)]
    missing = [f"tensor {name} is missing" for name in names if name not in file.tensors]
    return missing + [
        f"tensor {printable(name, 120)} does not exist in the model{why.get(name, '')}"
        for name in file.tensors
        if name not in names
    ]


def _shape(tensor: Tensor, source: Source) -> str | None:
    """What makes a tensor incomparable; None if it has a known type and the source's shape."""
    if tensor.kind is None:
        return f"tensor {tensor.name} has the unknown type {tensor.type_id}"
    stacked = tuple(size for size in tensor.dimensions[2:] if size != 1)
    if stacked != ((source.stacked,) if source.stacked > 1 else ()):
        return f"tensor {tensor.name} has dimensions {tensor.dimensions}; the model has {source.stacked} experts"
    if (tensor.rows, tensor.columns) != (source.rows, source.columns):
        return (
            f"tensor {tensor.name} is {tensor.rows} x {tensor.columns}; {source.name} is {source.rows} x "
            f"{source.columns}"
        )
    return None


def _through(file: GgufFile, sources: Mapping[str, Source], prover: ByteProver, making: Making) -> Making:
    """How a foreign file was quantized, by sampled rows of its first block tensors: from the model itself, or from its
    F16 or BF16 file, and with the given importance matrix or without."""
    tensors = [file.tensors[name] for name in sources]
    blocks = [tensor for tensor in tensors if tensor.kind is not None and not tensor.kind.plain][:_PROBED]
    prover.prepare({tensor.kind.name for tensor in blocks if tensor.kind is not None})
    weights = [making, replace(making, values={})] if making.values else [making]
    ways = [replace(way, through=name) for way in weights for name in ("", "F16", "BF16")]
    equal = [sum(prover.equal_rows(file, tensor, sources[tensor.name], way) for tensor in blocks) for way in ways]
    return ways[equal.index(max(equal))]


def _other_kernels(file: GgufFile, compared: Mapping[str, Compared]) -> set[str]:
    """Block types that other kernels wrote: rows differ in most of the type's tensors, and all decode to the source's
    values. A damaged byte is in one tensor."""
    all_of, differing, wrong = Counter[str](), Counter[str](), set[str]()
    for name, result in compared.items():
        kind = file.tensors[name].kind
        assert kind is not None
        if kind.plain or result.by_value:
            continue
        all_of[kind.name] += 1
        differing[kind.name] += bool(result.differing)
        if result.wrong:
            wrong.add(kind.name)
    common = {name for name, count in differing.items() if count >= 2 and 2 * count >= all_of[name]}
    # A type with one tensor cannot show it by itself.
    alone = {name for name, count in differing.items() if count == all_of[name] == 1} if common - wrong else set()
    return (common | alone) - wrong


@dataclass(frozen=True)
class _Comparison:
    """A file with its expected sources and what derives their bytes."""

    file: GgufFile
    sources: Mapping[str, Source]
    prover: ByteProver
    making: Making

    def contains(self, tensor: Tensor, source: Source) -> bool:
        """Whether a tensor has the sampled rows of a source."""
        return self.prover.has_rows_of(self.file, tensor, source, self.making)

    def describe(self, tensor: Tensor, result: Compared, wrong: list[int]) -> str:
        """A finding about a tensor whose rows differ: what they are instead, where that can be seen."""
        name, source = tensor.name, self.sources[tensor.name]
        if source.heads and self.contains(tensor, Source(source.name, source.weights)):
            return f"tensor {name}: its rows are in the folder's order, not in llama.cpp's rotary order (Q/K permute)"
        where = f"tensor {name}: row {wrong[0]} differs from {source.name_at(wrong[0])}"
        count = f"({len(wrong)} of {result.rows} {'rows' if self.prover.rows == 'all' else 'sampled rows'})"
        if len(wrong) == result.rows:
            embedding = self.sources.get("token_embd.weight")
            if name == "output.weight" and embedding is not None and self.contains(tensor, embedding):
                return f"{where} and equals the embedding's: the file's head is tied, the model's is not {count}"
            others = (item for item in self.sources.values() if (item.name, item.slots) != (source.name, source.slots))
            other = next((item for item in others if self.contains(tensor, item)), None)
            if other is not None:
                return f"{where}: the tensor contains {other.label} {count}"
        if result.first is not None and not result.by_value:
            row, byte, got, expected = result.first
            return f"{where} {count}: byte {byte} of row {row} is 0x{got:02x}, not 0x{expected:02x}"
        return f"{where} {count}"


def _judge(proof: BytesProof, comparison: _Comparison, name: str, result: Compared, tolerated: set[str]) -> None:
    """Count one tensor, or add its finding. `tolerated`: types that are compared by value."""
    tensor = comparison.file.tensors[name]
    assert tensor.kind is not None
    proof.tensors += 1
    proof.compared_bytes += result.bytes
    if result.not_finite:
        source = printable(comparison.sources[name].name, 200)
        proof.findings.append(f"tensor {name}: {source} contains a value that is not finite")
        return
    by_value = result.by_value or tensor.kind.name in tolerated
    wrong = result.wrong if by_value else result.differing
    if wrong:
        proof.findings.append(comparison.describe(tensor, result, wrong))
    elif result.by_value or result.differing:
        proof.by_value += 1
    else:
        proof.equal += 1


def _llama3_factors(rope: Mapping[str, Any], config: Mapping[str, Any]) -> list[float]:
    """Llama 3's divisors of the rotary frequencies, from the definition in its config."""
    theta = float(rope.get("rope_theta", config.get("rope_theta", 10000.0)))
    width = int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))
    low, high, factor = (float(rope[field]) for field in ("low_freq_factor", "high_freq_factor", "factor"))
    original = float(rope["original_max_position_embeddings"])
    expected = []
    for place in range(width // 2):
        turns = original * theta ** (-2 * place / width) / (2 * math.pi)
        blend = min(1.0, max(0.0, (turns - low) / (high - low)))
        expected.append(1.0 / ((1 - blend) / factor + blend))
    return expected


def _judge_factors(proof: BytesProof, file: GgufFile, config: Mapping[str, Any], *, exact: bool) -> None:
    """Compare the divisors of the rotary frequencies that the file has."""
    for name, factors in _factors(config).items():
        if name in file.tensors:
            proof.tensors += 1
            ulps = 0 if exact or name != _FACTORS else _FACTOR_ULPS
            unequal = _compare_factors(file, file.tensors[name], factors, ulps)
            proof.findings += unequal
            proof.equal += not unequal


def _compare_factors(file: GgufFile, tensor: Tensor, expected: list[float], ulps: int) -> list[str]:
    """Compare divisors, which may differ by `ulps` last bits; they are computed, or listed in the config."""
    wrong = f"tensor {tensor.name} does not contain the factors of the model's rope scaling"
    if tensor.kind is None or tensor.rows != 1 or tensor.columns != len(expected):
        return [wrong]
    actual = decoded(tensor, np.frombuffer(file.read(tensor, 0, 1), np.uint8).reshape(1, -1))[0]
    values = np.asarray(expected, np.float32)
    return [] if bool((np.abs(actual - values) <= ulps * np.spacing(values)).all()) else [wrong]
