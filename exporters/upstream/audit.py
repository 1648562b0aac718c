"""Proves the files of llama.cpp's own converter, for families that Cockpit has no table of.

The names come from the gguf package's map. How a family stores a tensor is not in the map, so it is found: as it is, or
by one of the changes that converters make (`_RULES`). What no rule explains is listed and left to the comparison of
behaviour. But a tensor that differs, where the same part of another layer does not, is an error.

Quantized files are proven against the full-precision file that they were made from, byte for byte.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engines.llama.gguf_file import GgufFile, Tensor, read_gguf
from exporters.gguf.source import rows_of
from exporters.hf_model.tensor_files import Weights, row_chunks
from exporters.proof.audit import MeaningProof, Proofs
from exporters.proof.audit_keys import equal, value_of
from exporters.proof.audit_tensors import BytesProof
from exporters.proof.audit_tokens import audit_tokens
from exporters.proof.byte_proof import ByteProver, Compared, Making, Progress, plain_bytes, sampled_rows
from exporters.upstream.names import sources_of
from recipes.problems import printable

_LAYER = re.compile(r"^blk\.\d+\.")
_SHOWN = 6
_PLAIN_ROPES = ("default", "linear", "yarn", "llama3")
_KEYS = (
    ("embedding_length", "hidden_size"),
    ("attention.head_count", "num_attention_heads"),
    ("attention.head_count_kv", "num_key_value_heads"),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps"),
)
"""Keys that mean the same in every family that has both."""

Rule = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""A whole matrix as the folder has it, float32 [rows, columns], and a number of heads → as the file has it."""


def _rotary(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    halves = rows.reshape(heads, 2, -1, rows.shape[1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


_RULES: Mapping[str, Rule] = {
    "as it is": lambda rows, _heads: rows,
    "rotary order": _rotary,
    "plus 1": lambda rows, _heads: rows + np.float32(1),
    "transposed": lambda rows, _heads: np.ascontiguousarray(rows.T),
    "negative exponential": lambda rows, _heads: -np.exp(rows),
}
"""What converters do to a tensor's values or order."""


@dataclass(frozen=True)
class Derived:
    """A tensor of a file, derived from the folder's tensors by one rule.

    Attributes:
        tensor: its name in the file.
        name: of the first tensor in the folder.
        names: one, or one per expert.
        size: [rows, columns] in the file.
        rule: of `_RULES`.
        heads: for the rotary order.
    """

    tensor: str
    name: str
    names: tuple[str, ...]
    weights: Weights
    size: tuple[int, int]
    rule: str = "as it is"
    heads: int = 0

    @property
    def rows(self) -> int:
        return self.size[0]

    @property
    def columns(self) -> int:
        return self.size[1]

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows in the file's order, float32 [stop - start, columns]."""
        if self.rule == "as it is" and len(self.names) == 1 and self.weights.tensors[self.name].rows == self.rows:
            return self.weights.read_rows(self.name, start, stop)
        return _whole(self)[start:stop]


@lru_cache(maxsize=1)
def _whole(origin: Derived) -> NDArray[np.float32]:
    """A tensor of the file, derived at once, float32 [rows, columns]; the last one is kept while its rows are read."""
    parts = []
    for name in origin.names:
        values = origin.weights.read(name)
        if origin.rule == "transposed" and values.ndim != 2:
            raise ValueError("only a matrix can be transposed")
        rows = {"transposed": len(values), "rotary order": len(values)}.get(origin.rule, 1)
        parts.append(_RULES[origin.rule](values.reshape(rows, -1), origin.heads).reshape(-1, origin.columns))
    return np.concatenate(parts)


@dataclass(frozen=True)
class _Rows:
    """A tensor of the full-precision file that a quantized one was made from."""

    file: GgufFile
    tensor: Tensor

    @property
    def name(self) -> str:
        return f"{self.tensor.name} of the full-precision file"

    @property
    def rows(self) -> int:
        return self.tensor.rows

    @property
    def columns(self) -> int:
        return self.tensor.columns

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows, float32 [stop - start, columns]."""
        return rows_of(self.file, self.tensor, start, stop)


@dataclass
class _Found:
    """What is known of a file's tensors: each with its rule, and those without one by their part."""

    origins: dict[str, Derived] = field(default_factory=dict)
    unexplained: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def prove_converted(
    path: Path, folder: Path, config: Mapping[str, Any], weights: Weights, prover: ByteProver, progress: Progress
) -> Proofs:
    """Prove a full-precision file against the model folder.

    Args:
        path: the file.
        folder: the model's folder.
        config: its language model's settings.
        weights: its tensors.
        prover: derives the bytes.
        progress: called with the number of values compared since the last call.
    """
    began, file = time.monotonic(), read_gguf(path)
    meaning = MeaningProof(len(file.keys))
    meaning.findings = [*_keys(file, config), *audit_tokens(file, folder, config)]
    meaning.seconds = time.monotonic() - began
    began = time.monotonic()
    found, proof = _explain(file, config, weights), BytesProof(prover.rows)
    explained = {_part(name) for name in found.origins}
    for part, names in found.unexplained.items():
        if part in explained:
            proof.findings += [f"tensor {name} differs from its source; in other layers it is equal" for name in names]
    parts = sorted(part for part in found.unexplained if part not in explained)
    if parts:
        listed = ", ".join(printable(part, 60) for part in parts[:_SHOWN]) + (", …" if len(parts) > _SHOWN else "")
        proof.notes.append(
            f"{len(parts)} kinds of tensors ({listed}) are stored in a way that the audit does not know; only the "
            "comparison of behaviour covers them"
        )
    compared = prover.compare(file, found.origins, Making(), progress)
    moved = {name for name, result in compared.items() if result.differing and moves_rows(file, found.origins[name])}
    if moved:
        listed = ", ".join(sorted({printable(_part(name), 60) for name in moved}))
        proof.notes.append(
            f"the rows of {listed} are in another order; only the comparison of behaviour proves the order"
        )
    _judge(proof, found.origins, {name: result for name, result in compared.items() if name not in moved})
    proof.seconds = time.monotonic() - began
    return Proofs(proof, meaning)


def moves_rows(file: GgufFile, origin: Derived) -> bool:
    """Whether a tensor has exactly the derived rows, each as often, in another order."""
    tensor = file.tensors[origin.tensor]
    assert tensor.kind is not None
    given, derived = Counter[int](), Counter[int]()
    for start, stop in row_chunks(tensor.rows, tensor.columns):
        width = tensor.kind.row_bytes(tensor.columns)
        raw, made = (
            file.read(tensor, start, stop - start),
            plain_bytes(origin.read(start, stop), tensor.kind.name).tobytes(),
        )
        given.update(hash(raw[at : at + width]) for at in range(0, len(raw), width))
        derived.update(hash(made[at : at + width]) for at in range(0, len(made), width))
    return given == derived


def prove_quantized(
    path: Path,
    source: Path,
    folder: Path,
    config: Mapping[str, Any],
    prover: ByteProver,
    importance: Mapping[str, NDArray[np.float32]] | None,
    progress: Progress,
) -> Proofs:
    """Prove a quantized file against the full-precision file that it was made from.

    Args:
        path: the quantized file.
        source: the other file, which is proven by itself.
        folder: the model's folder.
        config: its language model's settings.
        prover: derives the bytes.
        importance: the importance matrix, by tensor name, float32 [columns] or [experts, columns]; None without one.
        progress: called with the number of values compared since the last call.
    """
    began, file, exact = time.monotonic(), read_gguf(path), read_gguf(source)
    meaning = MeaningProof(len(file.keys))
    meaning.findings = [*_keys(file, config), *audit_tokens(file, folder, config)]
    meaning.seconds = time.monotonic() - began
    began, proof = time.monotonic(), BytesProof(prover.rows)
    origins = {name: _Rows(exact, tensor) for name, tensor in exact.tensors.items() if name in file.tensors}
    proof.findings = [f"tensor {name} is missing" for name in exact.tensors if name not in file.tensors]
    proof.findings += [
        f"tensor {printable(name, 120)} does not exist in the model" for name in file.tensors if name not in origins
    ]
    _judge(proof, origins, prover.compare(file, origins, Making(importance or {}), progress))
    proof.notes += prover.notes
    proof.kernels = prover.record
    proof.seconds = time.monotonic() - began
    return Proofs(proof, meaning)


def _judge(proof: BytesProof, origins: Mapping[str, Any], compared: Mapping[str, Compared]) -> None:
    for name, result in compared.items():
        proof.tensors += 1
        proof.compared_bytes += result.bytes
        wrong = result.wrong if result.by_value else result.differing
        if result.not_finite:
            proof.findings.append(f"tensor {name}: {origins[name].name} contains a value that is not finite")
        elif wrong:
            proof.findings.append(
                f"tensor {name}: row {wrong[0]} differs from {origins[name].name} ({len(wrong)} of {result.rows} rows)"
            )
        elif result.by_value:
            proof.by_value += 1
        else:
            proof.equal += 1


def _explain(file: GgufFile, config: Mapping[str, Any], weights: Weights) -> _Found:
    """Find the rule of every tensor."""
    family = str(file.scalar("general.architecture"))
    layers = file.scalar(f"{family}.block_count", 0)
    sources = sources_of(family, layers if isinstance(layers, int) else 0, weights.tensors)
    found = _Found()
    for name, tensor in file.tensors.items():
        origin = _origin(file, tensor, sources.get(name, ()), config, weights)
        if origin is None:
            found.unexplained[_part(name)].append(name)
        else:
            found.origins[name] = origin
    return found


def _part(name: str) -> str:
    return _LAYER.sub("blk.*.", name)


def _origin(
    file: GgufFile, tensor: Tensor, names: tuple[str, ...], config: Mapping[str, Any], weights: Weights
) -> Derived | None:
    """A tensor's derivation: the rule under which most of its sampled rows are equal; None if none explains half."""
    if not names or tensor.kind is None or not tensor.kind.plain:
        return None
    if sum(weights.tensors[name].values for name in names) != tensor.rows * tensor.columns:
        return None
    best: Derived | None = None
    most, rows = 0, sampled_rows(tensor.rows)
    for rule in _RULES:
        for heads in _heads(rule, tensor, config):
            origin = Derived(tensor.name, names[0], names, weights, (tensor.rows, tensor.columns), rule, heads)
            try:
                same = sum(_same(file, tensor, origin, row) for row in rows)
            except ValueError:  # the rule does not fit this shape
                continue
            if same > most:
                best, most = origin, same
        if most == len(rows):
            break
    return best if 2 * most >= len(rows) else None


def _heads(rule: str, tensor: Tensor, config: Mapping[str, Any]) -> list[int]:
    if rule != "rotary order":
        return [0]
    values = tensor.rows * tensor.columns
    counts = [config.get(name) for name in ("num_attention_heads", "num_key_value_heads")]
    return [n for n in dict.fromkeys(counts) if isinstance(n, int) and n > 0 and values % (2 * n) == 0]


def _same(file: GgufFile, tensor: Tensor, origin: Derived, row: int) -> bool:
    assert tensor.kind is not None
    derived = plain_bytes(origin.read(row, row + 1), tensor.kind.name)
    return file.read(tensor, row, 1) == derived.tobytes()


def _keys(file: GgufFile, config: Mapping[str, Any]) -> list[str]:
    """Compare the keys whose meaning does not depend on the family."""
    family = str(file.scalar("general.architecture"))
    findings = []
    for key, setting in _KEYS:
        given, wanted = file.keys.get(f"{family}.{key}"), config.get(setting)
        if given is None or isinstance(wanted, bool) or not isinstance(wanted, int | float):
            continue
        value = value_of(given)
        if not isinstance(value, list) and not equal(value, wanted):
            findings.append(f"{family}.{key} is {printable(str(value), 60)}; the model's {setting} is {wanted}")
    given, theta = file.keys.get(f"{family}.rope.freq_base"), _theta(config)
    if given is not None and theta is not None and not equal(value_of(given), theta):
        findings.append(
            f"{family}.rope.freq_base is {printable(str(value_of(given)), 60)}; the model's rope_theta is {theta}"
        )
    layers, wanted = file.scalar(f"{family}.block_count"), config.get("num_hidden_layers")
    more = file.scalar(f"{family}.nextn_predict_layers", 0)
    if isinstance(wanted, int) and layers not in (wanted, wanted + more):
        findings.append(f"{family}.block_count is {layers}; the model's num_hidden_layers is {wanted}")
    return findings


def _theta(config: Mapping[str, Any]) -> float | None:
    """The base of the rotary frequencies; None if layers differ in it, or if a converter folds a scaling into it."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) not in _PLAIN_ROPES:
        return None
    theta = rope.get("rope_theta", config.get("rope_theta"))
    return float(theta) if isinstance(theta, int | float) and not isinstance(theta, bool) else None
