"""Quantize a GGUF file with a complete libllama: LIBRARIES IN OUT FTYPE [IMPORTANCE.npz] [THREADS] [TYPES.json].

LIBRARIES is the folder of the build's libraries, such as build/bin, or the lib folder of llama-cpp-python. TYPES.json
has pairs of a tensor name's pattern and the number of a tensor type. Prints the seconds of the work, and exits with
libllama's status.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np


class _Weights(ctypes.Structure):
    """`llama_model_imatrix_data`."""

    _fields_: ClassVar[Any] = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


class _TensorType(ctypes.Structure):
    """`llama_model_tensor_override`."""

    _fields_: ClassVar[Any] = [("pattern", ctypes.c_char_p), ("type", ctypes.c_int)]


class _Parameters(ctypes.Structure):
    """`llama_model_quantize_params`, with room for later fields."""

    _fields_: ClassVar[Any] = [
        *((name, ctypes.c_int32) for name in ("nthread", "ftype", "output_tensor_type", "token_embedding_type")),
        *((name, ctypes.c_bool) for name in ("requantize", "output", "only_copy", "pure", "keep_split", "dry_run")),
        ("imatrix", ctypes.POINTER(_Weights)),
        ("kv_overrides", ctypes.c_void_p),
        ("tensor_types", ctypes.POINTER(_TensorType)),
        ("prune_layers", ctypes.c_void_p),
        ("max_buf_size", ctypes.c_size_t),
        ("room", ctypes.c_uint8 * 256),
    ]


def open_libllama(folder: Path) -> ctypes.CDLL:
    """The library, after those that it needs.

    Raises:
        OSError: the folder does not contain a complete build.
    """
    names = [*sorted(folder.glob("libggml-base*.so")), *sorted(folder.glob("libggml.*so"))]
    loaded = [ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL) for path in names]
    found = [path for path in sorted(folder.glob("libllama*.so")) if "common" not in path.name]
    if not found:
        raise OSError(f"{folder} has no libllama*.so")
    for library in loaded:
        if hasattr(library, "ggml_backend_load_all_from_path"):
            library.ggml_backend_load_all_from_path(str(folder).encode())
    native = ctypes.CDLL(str(found[0]))
    native.llama_model_quantize_default_params.restype = _Parameters
    native.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(_Parameters)]
    native.llama_model_quantize.restype = ctypes.c_uint32
    native.llama_backend_init()
    return native


def _weights(values: Mapping[str, Any]) -> Any:
    table = (_Weights * (len(values) + 1))()
    for entry, (name, row) in zip(table, values.items(), strict=False):
        entry.name, entry.size = name.encode(), row.size
        entry.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return table


def _tensor_types(pairs: list[tuple[str, int]]) -> Any:
    table = (_TensorType * (len(pairs) + 1))()
    for entry, (pattern, number) in zip(table, pairs, strict=False):
        entry.pattern, entry.type = pattern.encode(), number
    return table


def main() -> int:
    """Quantize one file; returns libllama's status."""
    folder, source, target, file_type, weights, threads, types = [*sys.argv[1:], "", "", ""][:7]
    native = open_libllama(Path(folder))
    parameters = native.llama_model_quantize_default_params()
    parameters.ftype, parameters.nthread = int(file_type), int(threads or 2)
    values = {name: np.ascontiguousarray(row, np.float32) for name, row in np.load(weights).items()} if weights else {}
    if values:
        parameters.imatrix = _weights(values)
    if types:
        parameters.tensor_types = _tensor_types(json.loads(Path(types).read_text()))
    started_s = time.perf_counter()
    status = int(native.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters)))
    sys.stdout.write(f"{time.perf_counter() - started_s}\n")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
