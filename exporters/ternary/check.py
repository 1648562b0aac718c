"""Is a model ternary: does each of its linear layers hold only -s, 0 and s?

TQ1_0, TQ2_0 and i2_s store three values. On a model trained so (BitNet b1.58, arXiv 2402.17764) nothing is lost; on any
other the file loads and answers, with a perplexity that is some forty per cent higher.
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
"""Rows of a tensor from a first to before a last, float32 [stop - start, columns]."""


def scale_of(rows: NDArray[np.float32], scale: float | None) -> float | None:
    """The one magnitude of all values that are not zero; None when there are several.

    Args:
        rows: float32 [rows, columns].
        scale: the magnitude that other values of the tensor have; None when none has been seen.
    """
    sizes = np.abs(rows[rows != 0])
    if not sizes.size:
        return 0.0 if scale is None else scale
    found = float(sizes.max())
    same = bool((sizes == np.float32(found)).all())
    return found if same and scale in (None, 0.0, found) else None


def check_ternary(model: Model, file_type: str) -> None:
    """Refuse a file type of three values for a model that has more.

    Raises:
        OperatorError: names the first tensor that is not ternary.
    """
    check_ternary_rows(
        model.shapes, lambda shape, start, stop: read_rows(model, shape, start, stop), f"file_types — {file_type}"
    )


def check_ternary_rows(shapes: list[Shape], read: ReadRows, what: str) -> dict[str, float]:
    """The same for any source of rows.

    Args:
        shapes: all tensors; the matrices inside the layers are looked at.
        read: rows of one of them, from a first to before a last.
        what: what is refused, for the message.

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
                    f"{what} stores -s, 0 and s, and {printable(shape.name, 200)} holds other values",
                    "it is for models trained with ternary weights; for this one choose Q2_K or IQ2_XXS",
                )
        scales[shape.name] = scale or 0.0
    return scales
