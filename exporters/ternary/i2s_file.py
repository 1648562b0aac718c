"""Writes the i2_s file of a ternary model, and compares it with the model value by value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engines.files import atomic_file
from engines.llama.ggml_types import TYPES
from engines.llama.gguf_file import padded, read_gguf
from engines.llama.gguf_write import text_value
from exporters.gguf.file_names import ModelName
from exporters.gguf.file_writer import Piece, Progress, new_tensor, ready, write_file
from exporters.gguf.metadata import model_keys
from exporters.gguf.quant_types import Choice, Shape
from exporters.gguf.vocab import vocabulary_keys
from exporters.gguf.write import Model, encode, read_rows
from exporters.hf_model.tensor_files import row_chunks
from exporters.ternary import i2s
from exporters.ternary.check import check_ternary_rows
from recipes.problems import OperatorError, printable


def is_packed(shape: Shape) -> bool:
    """Whether a tensor is stored as i2_s: the matrices inside the layers are; others are F16 or F32."""
    return shape.layer is not None and shape.dimensions == 2 and shape.name.endswith(".weight")


def ternary_scales(model: Model, layout: str) -> dict[str, float]:
    """The scale of every matrix; refuses models that i2_s does not support, before anything is written.

    Raises:
        OperatorError: a matrix contains values other than -s, 0 and s, contains only zeros, or does not fit the layout.
    """
    for shape in filter(is_packed, model.shapes):
        reason = i2s.fits(shape.rows, shape.columns, layout)
        if reason:
            raise OperatorError(f"i2s — {printable(shape.name, 200)}: {reason}", "choose another layout, or TQ2_0")
    scales = check_ternary_rows(model.shapes, lambda shape, a, b: read_rows(model, shape, a, b), "i2s — i2_s")
    empty = next((name for name, scale in scales.items() if not scale), None)
    if empty is not None:
        raise OperatorError(f"i2s — {printable(empty, 200)} contains only zeros, so it has no scale")
    return scales


def planned_bytes(model: Model) -> int:
    """Size of the file's tensors."""
    return sum(padded(_bytes(shape)) for shape in model.shapes)


def _bytes(shape: Shape) -> int:
    return i2s.tensor_bytes(shape.rows, shape.columns) if is_packed(shape) else _plain(shape).bytes


def _plain(shape: Shape) -> Choice:
    kind = "F16" if shape.dimensions == 2 and not shape.name.endswith("_norm.weight") else "F32"
    return Choice(shape, kind, kind)


def write_i2s(
    model: Model, scales: dict[str, float], layout: str, path: Path, progress: Progress = lambda _values: None
) -> None:
    """Write the file under a temporary name, make it durable, and rename it.

    Args:
        model: what to write.
        scales: from `ternary_scales`.
        layout: one of `i2s.LAYOUTS`; it is written into the file.
        path: the final name.
        progress: called with the number of values written since the last call.
    """
    keys = model_keys(
        model.architecture,
        model.config,
        title=model.title or ModelName(path.stem),
        file_type_id=i2s.FILE_TYPE_ID,
        parameters=model.parameters,
        takes_blanks=model.vocabulary.takes_blanks,
    )
    keys |= {i2s.LAYOUT_KEY: text_value(layout), **vocabulary_keys(model.vocabulary)}
    tensors = [
        (new_tensor(shape, _type_id(shape), _bytes(shape)), _pieces(model, shape, scales.get(shape.name), layout))
        for shape in model.shapes
    ]
    with atomic_file(path) as file:
        write_file(file, keys, tensors, progress)


def _type_id(shape: Shape) -> int:
    return i2s.TYPE_ID if is_packed(shape) else TYPES[_plain(shape).type].id


def _pieces(model: Model, shape: Shape, scale: float | None, layout: str) -> Iterator[Piece]:
    """A tensor's codes and their tail, or its plain values; `scale` is the scale of a packed tensor."""
    for start, stop in row_chunks(shape.rows, shape.columns):
        rows = read_rows(model, shape, start, stop)
        if is_packed(shape):
            assert scale is not None
            yield ready(i2s.pack(i2s.codes_of(rows, scale), layout), rows.size)
        else:
            yield ready(encode(_plain(shape), rows, None, None), rows.size)
    if is_packed(shape):
        assert scale is not None
        yield ready(np.frombuffer(i2s.tail(scale), np.uint8), 0)


def validate(path: Path, model: Model | None = None) -> dict[str, Any]:
    """Read a file in its declared layout, and compare it with a model if one is given.

    Returns:
        What was checked: layout, tensors, values, and whether they were compared.

    Raises:
        OperatorError: the file is damaged, declares no layout, or differs from the model; names the tensor.
    """
    file = read_gguf(path)
    layout = i2s.declared_layout(file)
    packed = [tensor for tensor in file.tensors.values() if tensor.type_id == i2s.TYPE_ID]
    if not packed:
        raise OperatorError(f"{path} has no i2_s tensor")
    values = 0
    for tensor in packed:
        decoded = i2s.read_tensor(file, tensor, layout)
        values += decoded.codes.size
        if model is not None:
            _compare(path, tensor.name, decoded, model)
    if model is not None:
        missing = {shape.name for shape in model.shapes} ^ set(file.tensors)
        missing |= {shape.name for shape in model.shapes if is_packed(shape)} ^ {tensor.name for tensor in packed}
        if missing:
            raise OperatorError(
                f"{path}: tensor {printable(min(missing), 200)} is missing in the file or in the model, or has the "
                "wrong type in the file"
            )
    return {"layout": layout, "tensors": len(packed), "values": values, "compared": model is not None}


def _compare(path: Path, name: str, decoded: i2s.Decoded, model: Model) -> None:
    shape = next((shape for shape in model.shapes if shape.name == name), None)
    if shape is None or (shape.rows, shape.columns) != decoded.codes.shape:
        raise OperatorError(f"{path}: tensor {printable(name, 200)} is missing in the model or has another shape there")
    values = decoded.values
    for start, stop in row_chunks(shape.rows, shape.columns):
        different = np.argwhere(values[start:stop] != read_rows(model, shape, start, stop))
        if len(different):
            row, column = different[0]
            raise OperatorError(
                f"{path}: tensor {printable(name, 200)}: row {start + row}, column {column} differs from the model"
            )
