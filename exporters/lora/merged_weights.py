"""A base model with adapters merged into it, read row by row as if it were a folder: nothing is written, little is
held.

W' = W + sum of weight_i * D_i, in float32, rounded once to the stored type. D_i is what the adapter i changes: scale *
B A;
with DoRA or whole saved modules W_i - W, where W_i is the adapter's own weight. A single adapter of weight 1 is PEFT's
`merge_and_unload`, operation for operation, so that a float32 result is equal to it bit by bit.
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
    """A base's tensors as they are with the adapters in them. Has the face of
    `exporters.hf_model.tensor_files.Weights`.

    Attributes:
        config: the merged model's config: the base's, with its head untied or its vocabulary resized as the adapters
            need.
        changed: names of the tensors that differ from the base's.
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
        """Find a place for every tensor of the adapters.

        Args:
            base: a model's tensors, 16- or 32-bit.
            config: its config.json, with `tie_word_embeddings` explicit.
            adapters: what is merged, with weights.
            dtype: "base" keeps each tensor's type; or float32, bfloat16, float16.
            untie: give a tied model a head of its own where an adapter changes the embedding or the head alone.
            rounded: the base as a 4-bit copy of it would be; None for the base itself.

        Raises:
            OperatorError: a tensor without a place, of another shape, or in the way of another one.
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
        # Whole blocks of rows: a product of fewer may be summed up in another order, and differ in its last bit.
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
        """Rows as they are to be stored, [stop - start, columns] of the tensor's type, into as many bytes."""
        source, info = self._plan.sources[name], self.tensors[name]
        untouched = name not in self.changed and self._base.tensors[source].dtype == info.dtype
        if untouched and (self._rounded is None or not self._rounded.rounds(name)):
            self._base.read_into(source, start, place)
        else:
            stored = torch.frombuffer(place, dtype=_TORCH[info.dtype]).view(stop - start, info.columns)
            self._fill(name, start, stop, stored)

    def _fill(self, name: str, start: int, stop: int, stored: torch.Tensor) -> None:
        """Sum up rows in float32 and round them into `stored`, of the stored type [stop - start, columns]."""
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
        low, high = (float(value) for value in torch.aminmax(rows))  # NaN when any is
        if limits.min <= low and high <= limits.max:
            return
        if not bool(torch.isfinite(stored).all()):  # the largest that are rounded down to the limit are finite
            info = self.tensors[name]
            raise OperatorError(
                f"{info.file}: {printable(name, 200)} has a value that is not finite as {NAMES[info.dtype]}",
                "choose dtype = bfloat16 or float32" if info.dtype == "F16" else "the base or the adapter is damaged",
            )

    def _base_rows(self, name: str, start: int, stop: int) -> torch.Tensor:
        """The base's rows, float32 [stop - start, columns], until the next are asked for; those that only a resized
        vocabulary has are zero, and replaced."""
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
        """Room for float32 [rows, columns] that is used again for the next: see `Buffers` for the reason."""
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
