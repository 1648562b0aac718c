"""Quantize a GGUF file with libllama, under a Python that has llama-cpp-python: IN OUT FTYPE [IMPORTANCE.npz]
[THREADS]."""

from __future__ import annotations

import ctypes
import sys
import time

import llama_cpp
import numpy as np

source, target, file_type = sys.argv[1:4]
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.ftype = int(file_type)
parameters.nthread = int(sys.argv[5]) if len(sys.argv) > 5 else 2
kept = []
if len(sys.argv) > 4 and sys.argv[4]:
    values = {name: np.ascontiguousarray(row, np.float32) for name, row in np.load(sys.argv[4]).items()}
    table = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
    for entry, (name, row) in zip(table, values.items(), strict=False):
        entry.name = name.encode()
        entry.data = row.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = row.size
        kept.append(row)
    parameters.imatrix = table
started_s = time.perf_counter()
status = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(parameters))
print(time.perf_counter() - started_s)
sys.exit(status)
