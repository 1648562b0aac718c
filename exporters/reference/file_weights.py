"""A GGUF file's values under the names and in the order of the model's folder: what the file makes of the model.

The order of rows is undone with the writer's own rule. If the writer were wrong, the values would still be the model's,
and llama.cpp, which reads the file by its own rule, would answer differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from engines.llama.gguf_file import Tensor, read_gguf
from exporters.gguf.write import Model, row_order
from exporters.hf_model.family import Packed
from exporters.hf_model.tensor_files import TensorInfo, Weights, row_chunks


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the folder is in the file: part `number` of `parts` of a tensor, with rows in the order of
    `heads` and an offset; see `exporters.gguf.write.Source`."""

    name: str
    number: int
    parts: int
    heads: int
    offset: float


class FileWeights:
    """The decoded tensors of a file. Implements `exporters.hf_model.tensor_files.Weights`."""

    def __init__(self, path: Path, model: Model) -> None:
        """Map the file's tensors to the folder's.

        Args:
            path: a complete GGUF file.
            model: the model that the file claims to be.

        Raises:
            KeyError: the file lacks a tensor of the model or has it in another shape, or the model's tensors have no
                known names in GGUF.
        """
        if not model.sources:
            raise KeyError(model.architecture.name)
        self._file = read_gguf(path)
        self._model = model
        self._places = {
            source: _Place(name, number, len(found.names), found.heads, found.offset)
            for name, found in model.sources.items()
            for number, source in enumerate(found.names)
        }
        self._packed: dict[str, list[tuple[str, Packed]]] = {}
        for name, found in model.sources.items():
            if found.packed is not None:
                self._packed.setdefault(found.names[0], []).append((name, found.packed))
        self.folder = model.folder
        self.files = [path]
        self.tensors: dict[str, TensorInfo] = {
            name: info for name, info in model.weights.tensors.items() if name in self._places
        }
        self._inverse: tuple[str, NDArray[np.int64]] = ("", np.empty(0, np.int64))
        for name, info in self.tensors.items():
            if name in self._packed:
                self._check_packed(name)
                continue
            place = self._places[name]
            tensor = self._file.tensors[place.name]
            if tensor.kind is None or (tensor.rows, tensor.columns) != (info.rows * place.parts, info.columns):
                raise KeyError(tensor.name)

    def type_of(self, name: str) -> str:
        """The tensor type of a tensor of the folder."""
        kind = self._tensor(name).kind
        assert kind is not None
        return kind.name

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows, float32 [stop - start, columns]."""
        if name in self._packed:
            return self._packed_rows(name, start, stop)
        place, info = self._places[name], self.tensors[name]
        tensor, first = self._tensor(name), place.number * info.rows
        if not place.heads:
            return self._decoded(tensor, first + start, first + stop) - np.float32(place.offset)
        rows = first + self._order(name, info.rows)[start:stop]
        low, high = int(rows.min()), int(rows.max()) + 1
        return self._decoded(tensor, low, high)[rows - low] - np.float32(place.offset)

    def read(self, name: str) -> NDArray[np.float32]:
        """A whole tensor in its shape, float32 [rows, columns] or [length]."""
        info, place = self.tensors[name], self._places[name]
        if len(info.shape) > 1:
            return self.read_rows(name, 0, info.rows).reshape(info.shape)
        values = self._decoded(self._tensor(name), place.number, place.number + 1).reshape(-1)
        values = values - np.float32(place.offset)
        return values[self._order(name, info.values)] if place.heads else values

    def _check_packed(self, name: str) -> None:
        shapes = {shape.name: shape for shape in self._model.shapes}
        for part, _ in self._packed[name]:
            tensor, shape = self._file.tensors[part], shapes[part]
            if tensor.kind is None or (tensor.rows, tensor.columns) != (shape.rows, shape.columns):
                raise KeyError(tensor.name)

    def _packed_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of a tensor that has all experts column by column, float32 [stop - start, columns]."""
        shape = self.tensors[name].shape
        rows = np.empty((stop - start, *shape[1:]), np.float32)
        for part, packed in self._packed[name]:
            tensor = self._file.tensors[part]
            each = tensor.rows // shape[0]
            values = self._decoded(tensor, start * each, stop * each).reshape(stop - start, each, -1)
            if len(shape) == 2:
                rows[:, packed.first :: packed.step] = values.reshape(stop - start, -1)
            else:
                rows[:, :, packed.first :: packed.step] = values.swapaxes(1, 2)
        return rows.reshape(stop - start, -1)

    def _tensor(self, name: str) -> Tensor:
        return self._file.tensors[self._places[name].name]

    def _order(self, name: str, rows: int) -> NDArray[np.int64]:
        """For each row of the folder's tensor, its row in the file's part, int64 [rows]."""
        if self._inverse[0] != name:
            self._inverse = (name, np.argsort(row_order(self._model, self._places[name].name, rows)))
        return self._inverse[1]

    def _decoded(self, tensor: Tensor, start: int, stop: int) -> NDArray[np.float32]:
        """Rows of the file, float32 [stop - start, columns]."""
        assert tensor.kind is not None
        raw = np.frombuffer(self._file.read(tensor, start, stop - start), np.uint8)
        if tensor.kind.name == "F32":
            return raw.view("<f4").reshape(stop - start, -1).copy()
        if tensor.kind.name == "F16":
            return raw.view("<f2").astype(np.float32).reshape(stop - start, -1)
        if tensor.kind.name == "BF16":
            return (raw.view("<u2").astype("<u4") << np.uint32(16)).view("<f4").reshape(stop - start, -1)
        decoded: NDArray[np.float32] = gguf.quants.dequantize(
            raw.reshape(stop - start, -1), gguf.GGMLQuantizationType(tensor.type_id)
        )
        return decoded.reshape(stop - start, tensor.columns)


def equal_values(file: FileWeights, weights: Weights) -> bool:
    """Whether a file stores exactly the model's values, as F32 does, and F16 and BF16 may."""
    if any(file.type_of(name) not in ("F32", "F16", "BF16") for name in file.tensors):
        return False
    return all(
        np.array_equal(file.read_rows(name, start, stop), weights.read_rows(name, start, stop))
        if len(info.shape) > 1
        else np.array_equal(file.read(name), weights.read(name))
        for name, info in file.tensors.items()
        for start, stop in row_chunks(info.rows, info.columns)
    )
