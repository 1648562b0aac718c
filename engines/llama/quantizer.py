"""Quantizing rows: llama.cpp's kernels in a worker process, or the gguf package's numpy for what it can do."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.llama.golden import check_golden
from engines.llama.library import NativeError
from engines.llama.worker_process import WorkerProcess

NUMPY_TYPES = frozenset({"Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1", "TQ1_0", "TQ2_0"})


class Quantizer(Protocol):
    """A source of quantized rows that has passed its self-test."""

    record: dict[str, Any]

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns], and float32 [columns] saying how much each column matters → uint8 [rows, bytes of a row]."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


class KernelQuantizer:
    """llama.cpp's own kernels, one worker process."""

    def __init__(self, threads: int) -> None:
        """Start the worker.

        Raises:
            NativeError: no usable library.
        """
        self._worker = WorkerProcess("engines.llama.quantize_worker", threads)
        try:
            self.record, _ = self._worker.ask({"open": threads})
        except BaseException:
            self._worker.close()
            raise

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns], and float32 [columns] saying how much each column matters → uint8 [rows, bytes of a row]."""
        data = np.ascontiguousarray(rows, "<f4")
        header = {
            "type": type_name,
            "rows": rows.shape[0],
            "columns": rows.shape[1],
            "importance": importance is not None,
        }
        if importance is not None:
            data = np.concatenate([data.ravel(), np.asarray(importance, "<f4")])
        _, answer = self._worker.ask(header, data.data.cast("B"))
        return np.frombuffer(answer, np.uint8).reshape(rows.shape[0], -1)

    def close(self) -> None:
        """End the worker."""
        self._worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class NumpyQuantizer:
    """The gguf package's own quantization, for the simple types."""

    def __init__(self) -> None:
        """Nothing to start."""
        path = Path(gguf.quants.__file__)
        self.record: dict[str, Any] = {
            "name": "gguf numpy",
            "version": importlib.metadata.version("gguf"),
            "path": str(path),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """float32 [rows, columns] → uint8 [rows, bytes of a row].

        Raises:
            NativeError: a type, or a use of importances, that only llama.cpp's kernels have.
        """
        if importance is not None and type_name not in ("Q8_0", "TQ1_0", "TQ2_0"):
            raise NativeError(f"{type_name} with an importance matrix can only be written by llama.cpp's kernels")
        if type_name not in NUMPY_TYPES:
            raise NativeError(f"{type_name} can only be written by llama.cpp's kernels")
        quantized: NDArray[np.uint8] = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[type_name])
        return quantized

    def close(self) -> None:
        """Nothing to end."""


def open_quantizer(type_names: set[str], threads: int, wanted: str = "auto") -> tuple[Quantizer, list[str]]:
    """A quantizer for the given types, tested: llama.cpp's kernels, else numpy.

    Args:
        type_names: the block types that will be written.
        threads: CPU threads.
        wanted: "kernels" or "numpy" for one of them only.

    Returns:
        The quantizer, its `record` extended by `self_test`, and what the operator should know.

    Raises:
        NativeError: no source passes for every type; says why each was refused.
    """
    refused: list[str] = []
    sources: dict[str, Callable[[], Quantizer]] = {"kernels": lambda: KernelQuantizer(threads), "numpy": NumpyQuantizer}
    for make in [sources[wanted]] if wanted in sources else sources.values():
        quantizer: Quantizer | None = None
        try:
            quantizer = make()
            tests = {name: check_golden(quantizer, name) for name in sorted(type_names)}
        except NativeError as error:
            refused.append(str(error))
            if quantizer is not None:
                quantizer.close()
            continue
        quantizer.record = {**quantizer.record, "self_test": tests}
        notes = [f"llama.cpp's kernels are not used: {reason}" for reason in refused]
        return quantizer, notes
    raise NativeError("; ".join(refused))
