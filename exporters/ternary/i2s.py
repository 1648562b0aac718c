"""i2_s, bitnet.cpp's format with two bits per weight: packs and unpacks tensors in a declared byte layout.

One type id stands for several byte orders, and the format does not say which. A file that is read in the wrong one
gives nonsense without an error. So the recipe names the layout, the file stores it as `cockpit.i2s.layout` (which other
readers ignore), and every file is unpacked again in that layout and compared with its source, value by value.

A code is value / scale + 1: 0, 1 or 2; 3 is never written. A tensor is its codes, four to a byte, then 32 bytes of
which the first four are the scale as float32. Layouts as in microsoft/BitNet (16da220), src/ggml-bitnet-mad.cpp and its
converter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engines.files import read_into
from engines.llama.gguf_file import STRING, GgufFile, Tensor
from recipes.problems import OperatorError, printable

TYPE_ID = 36
"""bitnet.cpp's number; llama.cpp removed the type that had it, and refuses it."""

FILE_TYPE_ID = 40
"""`general.file_type` in bitnet.cpp's converter; llama.cpp uses the number for another type."""

LAYOUT_KEY = "cockpit.i2s.layout"
TAIL_BYTES = 32
GROUPS = {"x86-128": 128, "arm-64": 64}
"""Values of a group; byte g of it holds values g, g + size/4, g + 2 size/4, g + 3 size/4, the first in the highest
bits."""

ROWS = 4
"""x86-rows4: a byte holds one column of four rows, the first in the highest bits."""

LAYOUTS = (*GROUPS, "x86-rows4")
_SHIFTS = np.array([6, 4, 2, 0], np.uint8)


def tensor_bytes(rows: int, columns: int) -> int:
    """Size of a tensor: two bits per value, and the tail."""
    return rows * columns // 4 + TAIL_BYTES


def fits(rows: int, columns: int, layout: str) -> str:
    """Why a tensor of this shape cannot be stored in a layout; empty when it can."""
    if layout in GROUPS:
        group = GROUPS[layout]
        return f"its rows have {columns} values; allowed a multiple of {group}" if columns % group else ""
    return f"it has {rows} rows; allowed a multiple of {ROWS}" if rows % ROWS else ""


def codes_of(rows: NDArray[np.float32], scale: float) -> NDArray[np.uint8]:
    """float32 [rows, columns] of -scale, 0 and scale → codes, uint8 [rows, columns]."""
    codes: NDArray[np.uint8] = (np.sign(rows) + 1).astype(np.uint8)
    return codes if scale else np.ones_like(codes)


def pack(codes: NDArray[np.uint8], layout: str) -> NDArray[np.uint8]:
    """Codes, uint8 [rows, columns] → uint8 [rows * columns / 4], four to a byte in the order of the layout."""
    rows, columns = codes.shape
    if layout in GROUPS:
        group = GROUPS[layout]
        quarters = codes.reshape(-1, 4, group // 4)
    else:
        quarters = codes.reshape(rows // ROWS, ROWS, columns)
    return np.bitwise_or.reduce(quarters << _SHIFTS[None, :, None], axis=1).ravel()


def unpack(data: NDArray[np.uint8], rows: int, columns: int, layout: str) -> NDArray[np.uint8]:
    """uint8 [rows * columns / 4] → the codes in a layout, uint8 [rows, columns]."""
    width = GROUPS[layout] // 4 if layout in GROUPS else columns
    quarters = (data.reshape(-1, 1, width) >> _SHIFTS[None, :, None]) & np.uint8(3)
    return np.ascontiguousarray(quarters).reshape(rows, columns)


def tail(scale: float) -> bytes:
    """The bytes after the codes."""
    return np.float32(scale).tobytes() + bytes(TAIL_BYTES - 4)


@dataclass(frozen=True)
class Decoded:
    """A tensor decoded in the declared layout. `codes`: uint8 [rows, columns]."""

    codes: NDArray[np.uint8]
    scale: float

    @property
    def values(self) -> NDArray[np.float32]:
        """(code - 1) * scale, float32 [rows, columns]."""
        return (self.codes.astype(np.float32) - 1) * np.float32(self.scale)


def declared_layout(file: GgufFile) -> str:
    """The layout that a file declares.

    Raises:
        OperatorError: the file declares no layout, or an unknown one.
    """
    value = file.keys.get(LAYOUT_KEY)
    if value is None or value.kind != STRING or value.scalar not in LAYOUTS:
        got = "nothing" if value is None else printable(str(value.scalar))
        raise OperatorError(
            f"{file.path}: {LAYOUT_KEY} — got {got}; allowed {', '.join(LAYOUTS)}",
            "without this key the byte layout of an i2_s file is unknown; export the model again",
        )
    return str(value.scalar)


def read_tensor(file: GgufFile, tensor: Tensor, layout: str) -> Decoded:
    """Read one i2_s tensor and check everything that can be checked without its source.

    Raises:
        OperatorError: size, codes, scale or tail violate the format; names the tensor.
    """

    def bad(what: str) -> OperatorError:
        return OperatorError(f"{file.path}: tensor {printable(tensor.name, 200)}: {what}")

    if tensor.type_id != TYPE_ID:
        raise bad(f"type {tensor.type_id} is not i2_s")
    reason = fits(tensor.rows, tensor.columns, layout)
    if reason:
        raise bad(reason)
    size = tensor_bytes(tensor.rows, tensor.columns)
    if tensor.room < size:
        raise bad(f"needs {size} bytes; the file has {tensor.room}")
    stored = bytearray(size)
    try:
        read_into(file.path, tensor.start, memoryview(stored))
    except EOFError as error:
        raise bad("the file is truncated") from error
    data = np.frombuffer(stored, np.uint8)
    body, rest = data[:-TAIL_BYTES], data[-TAIL_BYTES:]
    scale = float(rest[:4].view("<f4")[0])
    if not np.isfinite(scale) or scale <= 0:
        raise bad(f"scale — got {scale}; allowed a finite number > 0")
    if rest[4:].any():
        raise bad("bytes after the scale are not zero")
    codes = unpack(body, tensor.rows, tensor.columns, layout)
    if (codes == 3).any():
        raise bad("code — got 3; allowed 0, 1, 2")
    return Decoded(codes, scale)
