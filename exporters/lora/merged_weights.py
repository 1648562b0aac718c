"""A base model with adapters merged into it, read row by row as if it were a folder: nothing is written, little is held.

W' = W + sum of weight_i * D_i, in float32, rounded once to the stored type. D_i is what the adapter i changes: scale * B A;
with DoRA or whole saved modules W_i - W, where W_i is the adapter's own weight. A single adapter of weight 1 is PEFT's
`merge_and_unload`, operation for operation, so that a float32 result is equal to it bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from engines.files import open_regular
from exporters.hf_model.tensor_files import (
    DTYPE_BYTES,
    ROW_BLOCK,
    SafetensorsFolder,
    TensorInfo,
    row_chunks,
    to_float32,
)
from exporters.lora.adapter import Adapter, Change, read_matrix
from exporters.lora.rounded_base import RoundedBase
from recipes.problems import OperatorError, printable

MERGE_CHUNK_BYTES = 4 * 1024 * 1024
"""Bytes of float32 rows that are merged at once: a few of them are held, and small ones stay in the processor's cache."""
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
NAMES = {value: key for key, value in DTYPES.items()}
_TORCH = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True)
class Weighted:
    """An adapter and how much of it is added."""

    adapter: Adapter
    weight: float = 1.0


class MergedWeights:
    """A base's tensors as they are with the adapters in them. Has the face of `exporters.hf_model.tensor_files.Weights`.

    Attributes:
        config: the merged model's config: the base's, with its head untied or its vocabulary resized as the adapters need.
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
        self.folder: Path = base.folder
        self.files = base.files
        self.config = dict(config)
        self.warnings: list[str] = []
        self._base = base
        self._rounded = rounded
        self._adapters = list(adapters)
        self._source = {name: name for name in base.tensors}
        self._follow_ties(untie)
        self.tensors: dict[str, TensorInfo] = {}
        for name, source in self._source.items():
            info = base.tensors[source]
            shape = self._shape(name, info)
            self.tensors[name] = replace(info, name=name, shape=shape, dtype=DTYPES.get(dtype, info.dtype))
        self._check_places()
        self.changed = sorted({name for item in self._adapters for name in self._names(item.adapter)})
        self._ready: tuple[str, list[_Part]] = ("", [])
        self._rows_space = torch.empty(0)
        self._raw = bytearray()

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows as float32, after rounding to the stored type, [stop - start, columns]."""
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
        """A whole tensor as float32, in its shape."""
        info = self.tensors[name]
        return self.read_rows(name, 0, info.rows).reshape(info.shape)

    def read_into(self, name: str, start: int, stop: int, place: memoryview) -> None:
        """Rows as they are to be stored, into as many bytes."""
        source, info = self._source[name], self.tensors[name]
        untouched = name not in self.changed and self._base.tensors[source].dtype == info.dtype
        if untouched and (self._rounded is None or not self._rounded.rounds(name)):
            self._base.read_into(source, start, place)
        else:
            stored = torch.frombuffer(place, dtype=_TORCH[info.dtype]).view(stop - start, info.columns)
            self._fill(name, start, stop, stored)

    def _fill(self, name: str, start: int, stop: int, stored: torch.Tensor) -> None:
        """Sum up rows in float32 and round them into `stored`, [stop - start, columns]."""
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
        """The base's rows, until the next are asked for; those that only a resized vocabulary has are zero, and replaced."""
        source = self._source[name]
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
        """Room for float32 rows, [rows, columns], that is used again for the next: see `Buffers` for the reason."""
        if self._rows_space.numel() < rows * columns:
            self._rows_space = torch.empty(rows * columns)
        return self._rows_space[: rows * columns].view(rows, columns)

    def _raw_space(self, size: int) -> memoryview:
        if len(self._raw) < size:
            self._raw = bytearray(size)
        return memoryview(self._raw)[:size]

    def _parts(self, name: str) -> list[_Part]:
        parts = []
        for item in self._adapters:
            change, whole = item.adapter.changes.get(name), item.adapter.replacements.get(name)
            if name == HEAD and self._source[name] == EMBEDDING and change is None and whole is None:
                continue
            if change is not None or whole is not None:
                parts.append(_Part(item.weight, change, whole, self, name))
        return parts

    def _names(self, adapter: Adapter) -> list[str]:
        return [*adapter.changes, *adapter.replacements]

    def _follow_ties(self, untie: bool) -> None:
        """A head that shares the embedding's matrix stays so, or gets one of its own.

        PEFT adds a LoRA of one of the two to the matrix that both share, although the other was used without it in
        training; `untie` keeps what was trained. Whole saved modules have left the tie already.
        """
        if not self.config["tie_word_embeddings"]:
            return
        held = [self._holds_tie(item.adapter) for item in self._adapters]  # each is asked: they may lose their heads
        if any(held):
            return
        replaced = {name for item in self._adapters for name in item.adapter.replacements}
        changed = {name for item in self._adapters for name in item.adapter.changes}
        split = (replaced & {EMBEDDING, HEAD}) - changed
        if changed & {EMBEDDING, HEAD} and not split and not untie:
            self.warnings.append(
                "the adapter changes the embedding or the head of a model in which they are one matrix: merged as PEFT does it,"
                " both get the change, and the model answers differently than it did in training; untie_word_embeddings = true"
                " keeps what was trained"
            )
            for item in self._adapters:
                _move_to_embedding(item.adapter)
        elif split or (untie and changed & {EMBEDDING, HEAD}):
            self.config["tie_word_embeddings"] = False
            self._source[HEAD] = EMBEDDING

    def _holds_tie(self, adapter: Adapter) -> bool:
        """Whether an adapter saved the one matrix anew: under both names (one is dropped), or resized."""
        ours, theirs = adapter.replacements.get(EMBEDDING), adapter.replacements.get(HEAD)
        if ours is None:
            return False
        if theirs is None:
            return ours.shape != self._base.tensors[EMBEDDING].shape
        if ours.shape != theirs.shape or not np.array_equal(read_matrix(ours), read_matrix(theirs)):
            return False
        del adapter.replacements[HEAD]
        return True

    def _shape(self, name: str, info: TensorInfo) -> tuple[int, ...]:
        """The tensor's shape in the merged model: the base's, or a resized vocabulary's."""
        shapes = {item.adapter.replacements[name].shape for item in self._adapters if name in item.adapter.replacements}
        if not shapes or shapes == {info.shape}:
            return info.shape
        (shape, *others) = sorted(shapes)
        resized = name in (EMBEDDING, HEAD) and len(shape) == 2 and shape[1:] == info.shape[1:]
        if not resized or others:
            raise OperatorError(f"{printable(name, 200)} is {info.shape} in the base and {shape} in the adapter")
        if len(self._adapters) > 1 or self._adapters[0].weight != 1.0:
            raise OperatorError(
                f"{printable(name, 200)} has {info.shape[0]} rows in the base and {shape[0]} in the adapter",
                "an adapter with a resized vocabulary is merged alone, with weight 1",
            )
        self.config["vocab_size"] = shape[0]
        return shape

    def _check_places(self) -> None:
        for item in self._adapters:
            for name in self._names(item.adapter):
                if name not in self.tensors:
                    module = printable(name.removesuffix(".weight"), 200)
                    raise OperatorError(f"the adapter changes {module}, which the base {self.folder} does not have")
            for name, change in item.adapter.changes.items():
                if self.tensors[name].shape != change.shape:
                    raise OperatorError(
                        f"{printable(change.module, 200)} is {self.tensors[name].shape} in the base and {change.shape} in the adapter"
                    )
        rows = {self.tensors[name].rows for name in (EMBEDDING, HEAD) if name in self.tensors}
        if len(rows) > 1:
            raise OperatorError(
                f"the adapter resizes the embedding to {self.tensors[EMBEDDING].rows} rows and the head to {self.tensors[HEAD].rows}"
            )


def _move_to_embedding(adapter: Adapter) -> None:
    """A change of the head of a tied model is one of the embedding's matrix."""
    for found in (adapter.changes, adapter.replacements):
        if HEAD in found:
            if EMBEDDING in found:
                raise OperatorError("the adapter changes the embedding and the head, which are one matrix in this base")
            found[EMBEDDING] = found.pop(HEAD)  # type: ignore[assignment]


class _Part:
    """One adapter's part in one tensor."""

    def __init__(
        self, weight: float, change: Change | None, whole: TensorInfo | None, of: MergedWeights, name: str
    ) -> None:
        self.weight = weight
        self._change = change
        self._whole = whole
        self._magnitude: torch.Tensor | None = None
        self._space = torch.empty(0, 0)
        if change is not None:
            assert change.a is not None
            assert change.b is not None
            self._a, self._b = _tensor(change.a), _tensor(change.b)
            self._magnitude = None if change.magnitude is None else _tensor(change.magnitude).reshape(-1)
            self._norms: torch.Tensor | None = None
            if self._magnitude is not None and change.embedding:
                self._norms = self._column_norms(of, name)

    @property
    def is_product(self) -> bool:
        """Whether it is scale * B A and nothing more."""
        return self._change is not None and self._whole is None and self._magnitude is None

    def changed(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """The adapter's own weight: the base's rows with the whole change."""
        rows = self._saved(rows, start, stop)
        if self._change is None:
            return rows
        delta = self._product(start, stop)
        if self._magnitude is None:
            return rows + delta
        changed = rows + delta
        if self._norms is not None:
            return (self._magnitude / self._norms).view(1, -1) * changed
        norms = torch.linalg.norm(changed, dim=1)
        return (self._magnitude[start:stop] / norms).view(-1, 1) * changed

    def delta(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        """What the adapter adds to the base's rows."""
        if self.is_product:
            return self._product(start, stop)
        return self.changed(rows, start, stop) - rows

    def _saved(self, rows: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        if self._whole is None:
            return rows
        columns = rows.shape[1]
        item = self._whole
        size = item.bytes // max(1, item.values)
        with open_regular(item.file) as file:
            file.seek(item.offset + start * columns * size)
            raw = file.read((stop - start) * columns * size)
        return torch.from_numpy(to_float32(raw, item.dtype).reshape(stop - start, columns).copy())

    def _product(self, start: int, stop: int) -> torch.Tensor:
        assert self._change is not None
        if self._change.embedding:
            return (self._b @ self._a[:, start:stop]).T * self._change.scale
        shape = (stop - start, self._a.shape[1])
        if self._space.shape[0] < shape[0]:
            self._space = torch.empty(shape)
        return torch.mm(self._b[start:stop], self._a, out=self._space[: shape[0]]).mul_(self._change.scale)

    def _column_norms(self, of: MergedWeights, name: str) -> torch.Tensor:
        """Norms over all rows, which a chunk of rows alone cannot know: one pass before the merge."""
        info = of.tensors[name]
        total = torch.zeros(info.columns, dtype=torch.float64)
        for start, stop in row_chunks(info.rows, info.columns, MERGE_CHUNK_BYTES):
            rows = self._saved(of._base_rows(name, start, stop), start, stop) + self._product(start, stop)
            total += rows.double().square().sum(0)
        return total.sqrt().float()


def _tensor(info: TensorInfo) -> torch.Tensor:
    return torch.from_numpy(read_matrix(info).copy())
