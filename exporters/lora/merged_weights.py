"""Reads a base model with merged adapters row by row, like a model folder, without writing it.

W' = W + sum of weight_i * D_i, in float32, rounded once to the stored type. D_i is the change of adapter i: scale *
B A, or, with DoRA or saved full modules, W_i - W, where W_i is the adapted weight. A single adapter of weight 1 uses
the operations of PEFT's `merge_and_unload` in the same order, so a float32 result is equal bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exporters.hf_model.tensor_files import (
    DTYPE_BYTES,
    ROW_BLOCK,
    SafetensorsFolder,
)
from exporters.lora.adapter_part import AdapterPart
from exporters.lora.merge_plan import DTYPES, Weighted, plan_merge
from exporters.lora.rounded_base import RoundedBase
from recipes.problems import OperatorError, printable

NAMES = {value: key for key, value in DTYPES.items()}
_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


class MergedWeights:
    """A base model's tensors with the adapters applied. Implements `exporters.hf_model.tensor_files.Weights`.

    Attributes:
        config: the base model's config, with the head untied or the vocabulary resized if the adapters need it.
        changed: names of the tensors that differ from the base model's.
        warnings: what an operator should know about the result.
    """

    def __init__(
        self,
        base: SafetensorsFolder,
        config: dict[str, Any],
        adapters: Sequence[Weighted],
        *,
        dtype: str = "base",
        untie: bool = False,
        rounded: RoundedBase | None = None,
    ) -> None:
        """Assign every adapter tensor to a tensor of the base model.

        Args:
            base: a model's tensors, 16- or 32-bit.
            config: its config.json, with `tie_word_embeddings` explicit.
            adapters: the adapters with their weights.
            dtype: "base" keeps each tensor's type; or float32, bfloat16, float16.
            untie: give a tied model a separate head if an adapter changes only the embedding or the head.
            rounded: the base model rounded to NF4 and back; None for the base model itself.

        Raises:
            OperatorError: the base model lacks a changed tensor or has it in another shape, or two changes conflict.
        """
        plan = plan_merge(base, config, adapters, dtype=dtype, untie=untie)
        self.folder: Path = base.folder
        self.files = base.files
        self.config, self.tensors = plan.config, plan.tensors
        self.changed, self.warnings = plan.changed, plan.warnings
        self._base = base
        self._rounded = rounded
        self._plan = plan
        self._ready: tuple[str, list[AdapterPart]] = ("", [])
        self._rows_space = torch.empty(0)
        self._raw = bytearray()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows after rounding to the stored type, float32 [stop - start, columns]."""
        info = self.tensors[name]
        # Whole blocks of rows: a product of fewer rows may be summed in another order and differ in the last bit.
        last = stop + -stop % ROW_BLOCK
        last = info.rows if info.rows - last < ROW_BLOCK else last
        first = max(0, min(start - start % ROW_BLOCK, last // ROW_BLOCK * ROW_BLOCK - ROW_BLOCK))
        stored = torch.empty(last - first, info.columns, dtype=_TORCH[info.dtype])
        self._fill(name, first, last, stored)
        array: NDArray[np.float32] = stored.float().numpy()
        return array[start - first : stop - first]

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor in its shape, float32 [rows, columns] or [length]."""
        info = self.tensors[name]
        return self.read_rows(name, 0, info.rows).reshape(info.shape)

    def read_into(self, name: str, start: int, stop: int, place: memoryview) -> None:
        """Fill `place` with rows in the stored type, [stop - start, columns]."""
        source, info = self._plan.sources[name], self.tensors[name]
        untouched = name not in self.changed and self._base.tensors[source].dtype == info.dtype
        if untouched and (self._rounded is None or not self._rounded.rounds(name)):
            self._base.read_into(source, start, place)
        else:
            stored = torch.frombuffer(place, dtype=_TORCH[info.dtype]).view(stop - start, info.columns)
            self._fill(name, start, stop, stored)

    def _fill(self, name: str, start: int, stop: int, stored: torch.Tensor) -> None:
        """Sum rows in float32 and round them into `stored`, [stop - start, columns] of the stored type."""
        if self._ready[0] != name:
            self._ready = (name, self._parts(name))
        parts = self._ready[1]
        rows = self._base_rows(name, start, stop)
        if len(parts) == 1 and parts[0].weight == 1.0 and parts[0].is_product:
            rows.add_(parts[0].delta(rows, start, stop))
        elif len(parts) == 1 and parts[0].weight == 1.0:
            rows = parts[0].changed(rows, start, stop)
        else:
            for delta in [part.weight * part.delta(rows, start, stop) for part in parts]:
                rows = rows + delta
        stored.copy_(rows)
        self._check_finite(name, rows, stored)

    def _check_finite(self, name: str, rows: torch.Tensor, stored: torch.Tensor) -> None:
        """`rows`: float32 [rows, columns]; `stored`: the same, rounded to the stored type."""
        limits = torch.finfo(stored.dtype)
        low, high = (float(value) for value in torch.aminmax(rows))  # NaN if any value is NaN
        if limits.min <= low and high <= limits.max:
            return
        if not bool(torch.isfinite(stored).all()):  # values just above the limit round down to it
            info = self.tensors[name]
            raise OperatorError(
                f"{info.file}: {printable(name, 200)} has a value that is not finite in {NAMES[info.dtype]}",
                "choose dtype = bfloat16 or float32"
                if info.dtype == "F16"
                else "the base model or the adapter is damaged",
            )

    def _base_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The base model's rows, float32 [stop - start, columns], valid until the next call. Rows that only a resized
        vocabulary has are zero; the adapter replaces them."""
        source = self._plan.sources[name]
        info = self._base.tensors[source]
        if self._rounded is not None and self._rounded.rounds(name):
            return self._rounded.read_rows(source, start, stop)
        rows = self._space(stop - start, info.columns)
        end = min(stop, info.rows)
        if end < stop:
            rows.zero_()
        if start < end:
            place = self._raw_space((end - start) * info.columns * DTYPE_BYTES[info.dtype])
            self._base.read_into(source, start, place)
            rows[: end - start].copy_(torch.frombuffer(place, dtype=_TORCH[info.dtype]).view(end - start, -1))
        return rows

    def _space(self, rows: int, columns: int) -> torch.Tensor:
        """A reused buffer for float32 [rows, columns]; `Buffers` has the reason."""
        if self._rows_space.numel() < rows * columns:
            self._rows_space = torch.empty(rows * columns)
        return self._rows_space[: rows * columns].view(rows, columns)

    def _raw_space(self, size: int) -> memoryview:
        if len(self._raw) < size:
            self._raw = bytearray(size)
        return memoryview(self._raw)[:size]

    def _parts(self, name: str) -> list[AdapterPart]:
        info = self.tensors[name]

        def rows(start: int, stop: int) -> torch.Tensor:
            return self._base_rows(name, start, stop)

        return [AdapterPart(part, info.rows, info.columns, rows) for part in self._plan.parts.get(name, [])]
