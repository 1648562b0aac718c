"""Derives the bytes of a file's tensors again from their source, and compares them with the file's.

The rows come from the audit's own tables; the kernels are llama.cpp's, after a self-test. A tensor whose bytes cannot
be derived again (its importance matrix is not at hand, kernels of another build wrote it) is compared by its decoded
values.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Any, Protocol, Self

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import GgufFile, Tensor
from engines.llama.library import NativeError
from engines.llama.quantizer import KernelQuantizer, NotFiniteError, Quantizer, open_quantizer
from exporters.hf_model.tensor_files import row_chunks
from recipes.stages.export import ByteProof

SAMPLED_ROWS = 6
"""Rows of each tensor that a sampled proof compares: the first, the last, and some between."""
_VALUE_LIMIT = {4.5: 0.25, 5.5: 0.15, 6.6: 0.08, 9.0: 0.03}
"""Maximum relative RMS error of decoded values, by bits per weight, where no kernel shows what the type really costs;
0.9 for fewer bits. Rows of another tensor give 1.4."""
_HALF_STEP = 2.0**-25
"""Half of the distance between the smallest numbers of F16."""
_KERNEL_SHARE = 1.5
"""Decoded rows of other kernels, or of an importance matrix, may have this multiple of our own kernels' RMS error."""
_IN_FLIGHT = 2

Progress = Callable[[int], None]
"""Called with the number of values compared since the last call."""


class Origin(Protocol):
    """Where a tensor of a file comes from: its shape, and its rows derived again from the model."""

    @property
    def name(self) -> str: ...

    @property
    def rows(self) -> int: ...

    @property
    def columns(self) -> int: ...

    def read(self, start: int, stop: int) -> NDArray[np.float32]:
        """Rows in the file's order, float32 [stop - start, columns]; a vector is one row."""
        ...


@dataclass(frozen=True)
class Making:
    """How the block types of a file were made.

    Attributes:
        values: the importance of the columns by tensor name, float32 [columns], or [experts, columns]; empty without
            an importance matrix.
        unknown: the file was quantized with an importance matrix that is not at hand.
        through: F16 or BF16 if the file was quantized from a file of that type, which rounded the model first; empty if
            it was not.
    """

    values: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    unknown: bool = False
    through: str = ""

    def of(self, tensor: Tensor) -> NDArray[np.float32] | None:
        """The importances of a tensor's columns, float32 [experts, columns]; None without any that fit it."""
        found = self.values.get(tensor.name)
        if found is None or found.shape[-1] != tensor.columns or tensor.rows % (found.size // tensor.columns):
            return None
        return np.atleast_2d(found)

    def at(self, tensor: Tensor, row: int) -> Making:
        """Those of the expert that a row belongs to."""
        found = self.of(tensor)
        if found is None:
            return replace(self, values={})
        return replace(self, values={tensor.name: found[row * len(found) // tensor.rows]})


@dataclass
class Compared:
    """The comparison of one tensor.

    Attributes:
        rows: rows that were compared.
        differing: numbers of the rows whose bytes differ.
        wrong: those of them whose decoded values differ by more than the type's rounding.
        first: the first differing byte as (row, byte, the file's, the derived); None without one.
        by_value: only decoded values could be compared.
        not_finite: the source has a value that is not finite.
    """

    rows: int = 0
    bytes: int = 0
    differing: list[int] = field(default_factory=list)
    wrong: list[int] = field(default_factory=list)
    first: tuple[int, int, int, int] | None = None
    by_value: bool = False
    not_finite: bool = False


@dataclass(frozen=True)
class _Job:
    tensor: Tensor
    start: int
    stop: int
    source: NDArray[np.float32]
    derived: Future[Any] | NDArray[np.uint8] | None


class ByteProver:
    """Compares tensors of any number of files of one model. One kernel process serves all of them.

    Attributes:
        rows: "all", or "sampled".
        same_kernels: the files were written by the kernels that derive the bytes: any difference is an error.
        record: the kernels and their self-test; None without any.
        notes: what an operator should know about the kernels.
    """

    def __init__(
        self,
        threads: int,
        *,
        rows: ByteProof = "all",
        same_kernels: bool = False,
        llama_cpp: str | None = None,
        quantizer: Quantizer | None = None,
    ) -> None:
        """Start nothing yet.

        Args:
            threads: CPU threads of the kernels.
            rows: which rows of every tensor are compared.
            same_kernels: see the attribute.
            llama_cpp: the operator's build of llama.cpp, whose kernels come first.
            quantizer: an open quantizer to use; the caller closes it.
        """
        self.rows: ByteProof = rows
        self.same_kernels = same_kernels
        self.notes: list[str] = []
        self._threads, self._llama_cpp = threads, llama_cpp
        self._given = quantizer
        self._opened: Quantizer | None = None
        self._tested: frozenset[str] = frozenset()

    @property
    def record(self) -> Mapping[str, Any] | None:
        """See the class."""
        quantizer = self._given or self._opened
        return None if quantizer is None else quantizer.record

    def prepare(self, type_names: set[str]) -> None:
        """Test the kernels for these types; types without kernels are compared by value."""
        wanted = {name for name in type_names if not TYPES[name].plain}
        if self._given is not None or wanted <= self._tested:
            return
        self.close()
        try:
            self._opened, notes = open_quantizer(wanted | self._tested, self._threads, "auto", self._llama_cpp)
        except NativeError as error:
            notes = [f"quantized tensors are compared by their decoded values: {error}"]
        self._tested |= wanted
        self.notes += [note for note in notes if note not in self.notes]

    def compare(
        self, file: GgufFile, origins: Mapping[str, Origin], making: Making, progress: Progress
    ) -> dict[str, Compared]:
        """Compare tensors of one file.

        Args:
            file: the file.
            origins: by tensor name; each has the tensor's shape.
            making: how its block types were made.
            progress: see `Progress`.

        Raises:
            NativeError: the kernel process died.
            OperatorError: the source or the file became unreadable.
        """
        self.prepare({t.kind.name for name in origins if (t := file.tensors[name]).kind is not None})
        found = {name: Compared() for name in origins}
        waiting: deque[_Job] = deque()
        for name, origin in origins.items():
            for job in self._jobs(file.tensors[name], origin, found[name], making):
                waiting.append(job)
                if len(waiting) > _IN_FLIGHT:
                    self._finish(file, waiting.popleft(), found, progress)
        while waiting:
            self._finish(file, waiting.popleft(), found, progress)
        return found

    def _jobs(self, tensor: Tensor, origin: Origin, result: Compared, making: Making) -> Iterator[_Job]:
        assert tensor.kind is not None
        kind = tensor.kind
        quantizer = self._given or self._opened
        vector = making.of(tensor)
        lacking = making.unknown and kind.importance != "ignored"
        able = quantizer is not None and self._can(kind.name, vector)
        result.by_value = not kind.plain and (lacking or not able)
        experts = 1 if vector is None else len(vector)
        for start, stop in _pieces(origin.rows, origin.columns, self.rows, experts):
            rows = origin.read(start, stop)
            weights = None if vector is None else vector[start * experts // origin.rows]
            if making.through and not kind.plain:
                rows = decoded_plain(plain_bytes(rows, making.through), making.through)
            derived: Future[Any] | NDArray[np.uint8] | None
            if kind.plain:
                derived = plain_bytes(rows, kind.name)
            elif quantizer is None or not able:
                derived = None
            elif isinstance(quantizer, KernelQuantizer):
                derived = quantizer.submit_floats(kind.name, rows, weights)
            else:
                derived = quantizer.quantize(kind.name, rows, weights)
            yield _Job(tensor, start, stop, rows, derived)

    def _can(self, type_name: str, vector: NDArray[np.float32] | None) -> bool:
        """Whether the quantizer has the type, with this importance."""
        if isinstance(self._given or self._opened, KernelQuantizer):
            return not (TYPES[type_name].importance == "required" and vector is None)
        return vector is None or TYPES[type_name].importance == "ignored"

    def _finish(self, file: GgufFile, job: _Job, found: Mapping[str, Compared], progress: Progress) -> None:
        tensor, result = job.tensor, found[job.tensor.name]
        assert tensor.kind is not None
        count = job.stop - job.start
        actual = np.frombuffer(file.read(tensor, job.start, count), np.uint8).reshape(count, -1)
        result.rows += count
        result.bytes += actual.size
        derived: NDArray[np.uint8] | None = None
        try:
            if job.derived is not None:
                made = job.derived.result() if isinstance(job.derived, Future) else job.derived
                derived = np.frombuffer(made, np.uint8).reshape(count, -1)
        except NotFiniteError:
            result.not_finite = True
            return
        differing = (
            np.flatnonzero((actual != derived).any(axis=1)) if derived is not None else np.arange(count)
        ).tolist()
        if differing and derived is not None and result.first is None:
            row = differing[0]
            byte = int(np.flatnonzero(actual[row] != derived[row])[0])
            result.first = (job.start + row, byte, int(actual[row, byte]), int(derived[row, byte]))
        result.differing += [job.start + row for row in differing]
        result.wrong += [
            job.start + row
            for row in differing
            if not close_row(tensor, actual[row], job.source[row], None if derived is None else derived[row])
        ]
        progress(job.source.size)

    def has_rows_of(self, file: GgufFile, tensor: Tensor, origin: Origin, making: Making) -> bool:
        """Whether sampled rows of a tensor are those of another origin of its shape: bytes, or values of the type."""
        return (origin.rows, origin.columns) == (tensor.rows, tensor.columns) and not any(
            result.wrong or result.not_finite for result in self._sampled(file, tensor, origin, making)
        )

    def equal_rows(self, file: GgufFile, tensor: Tensor, origin: Origin, making: Making) -> int:
        """How many sampled rows of a tensor have exactly the derived bytes."""
        return sum(
            not (result.differing or result.not_finite) for result in self._sampled(file, tensor, origin, making)
        )

    def _sampled(self, file: GgufFile, tensor: Tensor, origin: Origin, making: Making) -> Iterator[Compared]:
        for row in sampled_rows(tensor.rows):
            result = {tensor.name: Compared()}
            one = _OneRow(origin, row)
            job = next(self._jobs(tensor, one, result[tensor.name], making.at(tensor, row)))
            self._finish(file, _Job(tensor, row, row + 1, job.source, job.derived), result, lambda _values: None)
            yield result[tensor.name]

    def close(self) -> None:
        """End the kernel process."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class _OneRow:
    """One row of an origin, as an origin."""

    whole: Origin
    row: int
    rows: int = 1

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def columns(self) -> int:
        return self.whole.columns

    def read(self, _start: int, _stop: int) -> NDArray[np.float32]:
        return self.whole.read(self.row, self.row + 1)


def _pieces(rows: int, columns: int, which: ByteProof, experts: int) -> Iterator[tuple[int, int]]:
    """Bounds of the rows to compare; a piece is of one expert."""
    if which == "sampled":
        yield from ((row, row + 1) for row in sampled_rows(rows))
        return
    each = rows // experts
    for expert in range(experts):
        yield from ((expert * each + start, expert * each + stop) for start, stop in row_chunks(each, columns))


def sampled_rows(rows: int) -> list[int]:
    """The sampled rows: always the same, spread over the tensor, with two neighbours, because a wrong order may keep
    every second row."""
    spread = {round(part * (rows - 1) / (SAMPLED_ROWS - 1)) for part in range(SAMPLED_ROWS)} | {min(1, rows - 1)}
    return sorted(spread)


def plain_bytes(rows: NDArray[np.float32], type_name: str) -> NDArray[np.uint8]:
    """float32 [rows, columns] → uint8 [rows, bytes of a row], by the gguf package's own code for BF16."""
    if type_name == "F32":
        return np.ascontiguousarray(rows, "<f4").view(np.uint8)
    if type_name == "F16":
        with np.errstate(over="ignore"):
            return np.ascontiguousarray(rows.astype("<f2")).view(np.uint8)
    made: NDArray[np.uint8] = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[type_name])
    return made.view(np.uint8).reshape(rows.shape[0], -1)


def decoded_plain(raw: NDArray[np.uint8], type_name: str) -> NDArray[np.float32]:
    """Rows of F16 or BF16, uint8 [rows, bytes of a row] → float32 [rows, columns]."""
    if type_name == "F16":
        return np.ascontiguousarray(raw).view("<f2").astype(np.float32)
    return (np.ascontiguousarray(raw).view("<u2").astype("<u4") << np.uint32(16)).view("<f4")


def decoded(tensor: Tensor, raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stored rows, uint8 [rows, bytes of a row] → float32 [rows, columns]."""
    assert tensor.kind is not None
    if tensor.kind.name in ("F32", "F16"):
        return np.ascontiguousarray(raw).view("<f4" if tensor.kind.name == "F32" else "<f2").astype(np.float32)
    values: NDArray[np.float32] = gguf.quants.dequantize(
        np.ascontiguousarray(raw), gguf.GGMLQuantizationType(tensor.type_id)
    )
    return values


def close_row(
    tensor: Tensor, raw: NDArray[np.uint8], expected: NDArray[np.float32], derived: NDArray[np.uint8] | None
) -> bool:
    """Whether a stored row has the source's values, up to the rounding of its type.

    Args:
        tensor: its type.
        raw: uint8 [bytes of a row].
        expected: float32 [columns].
        derived: what our kernel makes of it, uint8 [bytes of a row]; None if it cannot.
    """
    assert tensor.kind is not None
    if tensor.kind.name in ("F32", "F16"):
        return False  # both store exactly one result
    error = _rms(decoded(tensor, raw[None])[0] - expected)
    scale = _rms(expected)
    if tensor.kind.name == "BF16":
        return bool(error <= scale * 2**-8)
    # Scales are F16: very small ones lose digits, and the error grows by the largest number that a scale multiplies.
    coarse = _HALF_STEP * (127 if tensor.kind.name == "Q8_0" else 1024)
    if derived is not None:
        return bool(error <= _KERNEL_SHARE * _rms(decoded(tensor, derived[None])[0] - expected) + coarse)
    bits = tensor.kind.bits_per_weight
    limit = next((limit for most, limit in sorted(_VALUE_LIMIT.items(), reverse=True) if bits >= most - 1.0), 0.9)
    return bool(error <= limit * scale + coarse)


def _rms(values: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
