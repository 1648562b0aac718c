"""Checks that a model is ternary: that each of its linear layers contains only -s, 0 and s.

TQ1_0, TQ2_0 and i2_s store three values. A model that was trained with them (BitNet b1.58, arXiv 2402.17764) loses
nothing. The file of any other model loads and answers, but its perplexity is about 40 % higher.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.quant_types import Shape
from exporters.gguf.write import Model, read_rows
from exporters.hf_model.tensor_files import row_chunks
from recipes.problems import OperatorError, printable

CHUNK_BYTES = 4 * 1024 * 1024

ReadRows = Callable[[Shape, int, int], NDArray[np.float32]]
"""Reads rows of a tensor from start to before stop, float32 [stop - start, columns]."""


def scale_of(rows: NDArray[np.float32], scale: float | None) -> float | None:
    """The one magnitude of all values that are not zero; None when there are several.

    Args:
        rows: float32 [rows, columns].
        scale: the magnitude of the tensor's earlier values; None for its first rows.
    """
    sizes = np.abs(rows[rows != 0])
    if not sizes.size:
        return 0.0 if scale is None else scale
    found = float(sizes.max())
    same = bool((sizes == np.float32(found)).all())
    return found if same and scale in (None, 0.0, found) else None


def check_ternary(model: Model, file_type: str) -> None:
    """Refuse a ternary file type for a model that is not ternary.

    Raises:
        OperatorError: names the first tensor that is not ternary.
    """
    check_ternary_rows(
        model.shapes, lambda shape, start, stop: read_rows(model, shape, start, stop), f"file_types — {file_type}"
    )


def check_ternary_rows(shapes: list[Shape], read: ReadRows, what: str) -> dict[str, float]:
    """Refuse tensors that are not ternary, from any source of rows.

    Args:
        shapes: all tensors; only the matrices inside the layers are checked.
        read: reads rows of one of them.
        what: the option and its value, for the message.

    Returns:
        The scale of each: the magnitude of its values that are not zero; 0 for a matrix of zeros.

    Raises:
        OperatorError: names the first tensor that is not ternary.
    """
    scales = {}
    for shape in shapes:
        if shape.layer is None or shape.dimensions < 2:
            continue
        scale: float | None = None
        for start, stop in row_chunks(shape.rows, shape.columns, CHUNK_BYTES):
            scale = scale_of(read(shape, start, stop), scale)
            if scale is None:
                raise OperatorError(
                    f"{what} stores only -s, 0 and s, but {printable(shape.name, 200)} contains other values",
                    "use it for models trained with ternary weights; for this one choose Q2_K or IQ2_XXS",
                )
        scales[shape.name] = scale or 0.0
    return scales
