"""Measures what each type of each matrix costs: the mean KL that it adds on held-out text.

One matrix at a time is replaced by its quantized values, and the model's distributions are compared with those before:
that is the cost of one type. The costs of the other types follow from the errors of the matrix's outputs, because for
small errors the KL is proportional to their square. Both are measured on the same text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.llama.ggml_types import TYPES
from engines.llama.quantizer import Quantizer
from exporters.budget.choose import Option
from exporters.budget.places import in_folder_order, parameter_of, places_of
from exporters.gguf.importance import Importance
from exporters.gguf.own_types import WITHOUT_IMPORTANCE, own_type
from exporters.gguf.quant_types import Shape, fitting, is_quantized_matrix
from exporters.gguf.tensor_kinds import EMBEDDINGS
from exporters.gguf.write import Model, read_rows
from recipes.file_types import TENSOR_TYPES
from recipes.problems import OperatorError

BELOW_BITS = 2.0
"""Types with fewer bits than the target minus this are not tried: they would hardly be chosen."""
SLOW_BITS, SLOW_UP_TO = 3.0, 3.25
"""IQ types below the first number of bits are tried for targets up to the second: their kernels take seconds for a
million values."""
SAMPLE_VALUES = 512 * 1024
"""Values of a matrix, in evenly spaced rows, that are quantized to each type; some types take seconds for a million."""
INPUTS = 512
"""Tokens whose inputs to a matrix are used."""
_BLOCK = 256

Progress = Callable[[str], None]
"""Called with the name of each matrix when it is measured."""


@dataclass(frozen=True)
class Measured:
    """The measured matrices.

    Attributes:
        options: the types of each matrix, by its name; their `error` is the expected KL.
        probe: the type of each matrix whose KL was measured.
        probe_kl: that KL, nats.
    """

    options: Mapping[str, list[Option]]
    probe: Mapping[str, str]
    probe_kl: Mapping[str, float]


def candidates(
    shape: Shape, target_bits: float, tensor_types: Mapping[str, str], *, weighted: bool = True
) -> list[str]:
    """The types to try for a matrix, fewest bits first: K and IQ types for widths in whole blocks of 256, else the
    types of 32 values.

    Args:
        shape: the matrix.
        target_bits: of the file.
        tensor_types: the operator's own types, which are kept.
        weighted: whether the importance matrix covers it.
    """
    own = own_type(shape, tensor_types)
    if own is not None:
        return [fitting(own, shape.columns)]
    found = []
    for name in TENSOR_TYPES:
        kind = TYPES[name]
        if kind.plain or kind.block != (32 if name == "Q8_0" or shape.columns % _BLOCK else _BLOCK) or name == "MXFP4":
            continue
        covered = weighted and shape.name not in WITHOUT_IMPORTANCE
        if shape.columns % kind.block or (kind.importance == "required" and not covered):
            continue
        slow = kind.importance == "required" and kind.bits_per_weight < SLOW_BITS
        if name == "Q8_0" or (
            kind.bits_per_weight >= target_bits - BELOW_BITS and not (slow and target_bits > SLOW_UP_TO)
        ):
            found.append(name)
    return sorted(found, key=lambda name: TYPES[name].bits_per_weight) or [fitting("Q8_0", shape.columns)]


def probe_type(names: Sequence[str], target_bits: float) -> str:
    """The type whose KL is measured: the nearest to the target."""
    return min(names, key=lambda name: abs(TYPES[name].bits_per_weight - target_bits))


def matrices(model: Model) -> list[Shape]:
    """The matrices whose types are chosen.

    Raises:
        OperatorError: a matrix of the model is not stored as one matrix in transformers.
    """
    found = [shape for shape in model.shapes if is_quantized_matrix(shape)]
    unknown = [shape.name for shape in found if shape.dimensions < 3 and not model.sources[shape.name].name]
    if unknown:
        raise OperatorError(
            f"target_bits — {unknown[0]} is not one matrix of the model in transformers; its types cannot be measured",
            "name tensor types yourself: tensor_types",
        )
    return found


class Meter:
    """Measures the matrices of one model on one text."""

    def __init__(self, model: Model, network: Any, windows: Sequence[Sequence[int]], quantizer: Quantizer) -> None:
        """Compute the model's own distributions.

        Args:
            model: the folder.
            network: its transformers model, float32, in evaluation mode; matrices are replaced and restored in it.
            windows: token ids.
            quantizer: for the types.
        """
        self._model, self._network, self._windows, self._quantizer = model, network, windows, quantizer
        self.positions = sum(map(len, windows))
        began = time.perf_counter()
        self._expected = [self._logits(window) for window in windows]
        self.pass_s = time.perf_counter() - began

    def measure(
        self,
        target_bits: float,
        importance: Importance,
        progress: Progress = lambda _name: None,
        tensor_types: Mapping[str, str] | None = None,
    ) -> Measured:
        """Measure every matrix with every candidate type.

        Args:
            target_bits: of the file.
            importance: the importance matrix that the file will be written with.
            progress: see `Progress`.
            tensor_types: the operator's own types, which are kept.

        Raises:
            NativeError: the kernels failed.
        """
        options: dict[str, list[Option]] = {}
        probes: dict[str, str] = {}
        kls: dict[str, float] = {}
        for shape in matrices(self._model):
            weighted = shape.name in importance.values
            names = candidates(shape, target_bits, tensor_types or {}, weighted=weighted)
            probes[shape.name] = probe = probe_type(names, target_bits)
            rows = read_rows(self._model, shape, 0, shape.rows)
            made = self._decoded(shape, probe, rows, importance)
            kls[shape.name], inputs = self._kl_with(shape, made)
            picked = sampled_rows(shape)
            some = np.ascontiguousarray(rows[picked])
            others = {name: self._decoded(shape, name, some, importance, picked) for name in names if name != probe}
            sampled = {probe: made[picked], **others}
            stacked = shape.dimensions > 2
            errors = {
                name: _error_of_experts(shape, some - values, picked, importance)
                if stacked
                else self._error(some - values, picked, inputs)
                for name, values in sampled.items()
            }
            options[shape.name] = [
                Option(
                    name,
                    shape.rows * TYPES[name].row_bytes(shape.columns),
                    kls[shape.name] * errors[name] / errors[probe] if errors[probe] > 0 else 0.0,
                )
                for name in names
            ]
            progress(shape.name)
        return Measured(options, probes, kls)

    def kl_of(self, types: Mapping[str, str], importance: Importance) -> float:
        """Mean KL of the model with all matrices in these types, nats; its matrices are restored."""
        kept: list[tuple[Any, Any]] = []
        import torch

        try:
            for shape in matrices(self._model):
                if shape.name in types:
                    rows = read_rows(self._model, shape, 0, shape.rows)
                    made = self._decoded(shape, types[shape.name], rows, importance)
                    kept += self._replace(shape, made)
            return self._kl()
        finally:
            with torch.no_grad():
                for parameter, values in kept:
                    parameter.copy_(values)

    def _replace(self, shape: Shape, values: NDArray[np.float32]) -> list[tuple[Any, Any]]:
        """Give a matrix other values, float32 [rows, columns] in the file's order; returns its places and their own."""
        import torch

        places = places_of(self._model, self._network, shape)
        parts = np.split(in_folder_order(self._model, shape, values), len(places))
        kept = [(place, place.detach().clone()) for place in places]
        with torch.no_grad():
            for place, part in zip(places, parts, strict=True):
                place.copy_(torch.from_numpy(part))
        return kept

    def _decoded(
        self,
        shape: Shape,
        type_name: str,
        rows: NDArray[np.float32],
        importance: Importance,
        picked: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Rows of a matrix, float32 [rows, columns], quantized and decoded; `picked` are their numbers, or all."""
        columns = importance.of(shape)
        if columns is None or len(columns) == 1:
            return self._quantized(type_name, rows, columns)
        expert = (np.arange(shape.rows) if picked is None else picked) * shape.experts // shape.rows
        bounds = np.searchsorted(expert, np.arange(shape.experts + 1))
        parts = [
            (low, high, row) for low, high, row in zip(bounds[:-1], bounds[1:], columns, strict=True) if high > low
        ]
        return np.concatenate([self._quantized(type_name, rows[low:high], row) for low, high, row in parts])

    def _quantized(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
    ) -> NDArray[np.float32]:
        if TYPES[type_name].plain:
            kind = gguf.GGMLQuantizationType[type_name]
            plain: NDArray[np.float32] = gguf.quants.dequantize(gguf.quants.quantize(rows, kind), kind)
            return plain.reshape(rows.shape)
        weights = None if importance is None else np.ascontiguousarray(importance.reshape(-1))
        stored = self._quantizer.quantize(type_name, rows, weights)
        decoded: NDArray[np.float32] = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[type_name])
        return decoded

    def _kl_with(self, shape: Shape, values: NDArray[np.float32]) -> tuple[float, Any]:
        """Mean KL with other values of one matrix, and a sample of its inputs, float32 [tokens, columns]; None for
        experts, and for an embedding that is not the head."""
        import torch

        taken: list[Any] = []
        step = max(1, -(-self.positions // INPUTS))

        def take(_module: Any, inputs: tuple[Any, ...]) -> None:
            taken.append(inputs[0].detach().reshape(-1, inputs[0].shape[-1])[::step].clone())

        module = self._reader(shape)
        hook = module.register_forward_pre_hook(take) if module is not None else None
        kept = self._replace(shape, values)
        try:
            kl = self._kl()
        finally:
            with torch.no_grad():
                for place, own in kept:
                    place.copy_(own)
            if hook is not None:
                hook.remove()
        return kl, torch.cat(taken) if taken else None

    def _error(self, difference: NDArray[np.float32], picked: NDArray[np.int64], inputs: Any) -> float:
        """Mean squared error of a matrix's outputs; of an embedding's rows, weighted by how often the text has them.

        Args:
            difference: float32 [picked rows, columns].
            picked: the rows.
            inputs: see `_kl_with`.
        """
        import torch

        if inputs is None:
            ids = np.concatenate([np.asarray(window) for window in self._windows])
            counts = np.bincount(ids, minlength=int(picked[-1]) + 1)[picked]
            weights = counts + 1e-3  # rows that the text lacks are read too
            return float((np.square(difference, dtype=np.float64).sum(1) * weights).sum() / weights.sum())
        with torch.inference_mode():
            return float((inputs @ torch.from_numpy(np.ascontiguousarray(difference)).T).double().square().sum())

    def _reader(self, shape: Shape) -> Any:
        """The module that multiplies by the matrix: the head, for a tied embedding; None for another embedding, and for
        experts."""
        if shape.dimensions > 2:
            return None
        name = parameter_of(self._model, shape)
        if shape.name not in EMBEDDINGS:
            return self._network.get_submodule(name.removesuffix(".weight"))
        head = self._network.get_output_embeddings()
        return head if head is not None and head.weight is self._network.get_parameter(name) else None

    def _logits(self, window: Sequence[int]) -> Any:
        import torch

        with torch.inference_mode():
            return self._network(torch.tensor([list(window)]), use_cache=False).logits[0].float()

    def _kl(self) -> float:
        """Mean KL(model ‖ model with changed matrices) over all positions, nats."""
        import torch

        total = 0.0
        with torch.inference_mode():
            for window, expected in zip(self._windows, self._expected, strict=True):
                actual = self._logits(window)
                for start in range(0, len(window), 64):
                    p = torch.log_softmax(expected[start : start + 64].double(), -1)
                    q = torch.log_softmax(actual[start : start + 64].double(), -1)
                    total += float((p.exp() * (p - q)).sum())
        return total / self.positions


def _error_of_experts(
    shape: Shape, difference: NDArray[np.float32], picked: NDArray[np.int64], importance: Importance
) -> float:
    """Squared error of the experts' outputs over the text, as far as inputs of different columns are independent.

    Args:
        shape: the experts' matrices.
        difference: float32 [picked rows, columns].
        picked: the rows.
        importance: mean squared input of each expert's columns, and how many tokens it got.
    """
    expert = picked * shape.experts // shape.rows
    squares = np.square(difference, dtype=np.float64)
    columns, counts = importance.of(shape), importance.counts.get(shape.name)
    if columns is not None:
        squares = squares * columns[expert]
    tokens = np.ones(shape.experts) if counts is None else counts.reshape(-1) + 1e-3  # an unused expert counts too
    return float((squares.sum(1) * tokens[expert]).sum())


def sampled_rows(shape: Shape) -> NDArray[np.int64]:
    """Evenly spaced rows with at most `SAMPLE_VALUES` values, int64 [picked]."""
    count = min(shape.rows, max(64, SAMPLE_VALUES // shape.columns))
    return np.unique(np.linspace(0, shape.rows - 1, count).astype(np.int64))


def first_windows(windows: Sequence[Sequence[int]], tokens: int) -> list[Sequence[int]]:
    """The first windows with at least this many tokens together, if there are so many."""
    found: list[Sequence[int]] = []
    count = 0
    for window in windows:
        if count >= tokens:
            break
        found.append(window)
        count += len(window)
    return found
