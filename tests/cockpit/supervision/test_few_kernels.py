"""The kernels that an engine on a processor keeps: few, whatever the number of lengths, and the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cockpit.supervision import engine_process
from cockpit.supervision.engine_process import engine_environment
from cockpit.supervision.freed_memory import KERNELS, keep_few_kernels
from engines.run_dir.paths import RunDir
from recipes.stages.registry import STAGE_TYPES

_EVALUATION = {"name": "held-out", "kind": "evaluate", "model": "base", "data": "tokens"}
_PRODUCTS = """
import ctypes, hashlib, json, torch

class Heap(ctypes.Structure):
    _fields_ = [(f"field{i}", ctypes.c_size_t) for i in range(10)]

libc = ctypes.CDLL(None)
libc.mallinfo2.restype = Heap
torch.manual_seed(0)
torch.set_num_threads(1)
weights = torch.randn(64, 64).bfloat16()
rows = torch.randn(450, 64).bfloat16()
digest, product = hashlib.sha256(), torch.nn.functional.linear(rows, weights)
before = libc.mallinfo2().field7
for length in (*range(100, 450), *range(100, 110)):
    product = torch.nn.functional.linear(rows[:length], weights)
    digest.update(product.float().numpy().tobytes())
print(json.dumps({"kept": libc.mallinfo2().field7 - before, "bits": digest.hexdigest()}))
"""


def _products(environment: dict[str, str]) -> dict[str, Any]:
    command = [sys.executable, "-c", _PRODUCTS]
    answer: dict[str, Any] = json.loads(
        subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    )
    return answer


@pytest.mark.torch
@pytest.mark.skipif(sys.platform != "linux", reason="counts with glibc")
def test_kernels_of_many_lengths_do_not_stay_in_memory_and_products_have_the_same_bits() -> None:
    plain = {name: value for name, value in os.environ.items() if name not in KERNELS}
    all_kept, few_kept = _products(plain), _products(plain | keep_few_kernels(plain))
    assert few_kept["bits"] == all_kept["bits"]
    if all_kept["kept"] < 20 << 20:
        pytest.skip("torch makes no kernels for each length on this processor")
    assert few_kept["kept"] < 0.5 * all_kept["kept"]


def test_every_engine_on_a_processor_keeps_few_kernels_and_the_operator_s_setting_has_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, run = STAGE_TYPES["evaluate"].model_validate(_EVALUATION), RunDir(tmp_path)
    monkeypatch.setattr(engine_process, "DRIVER", tmp_path / "no-driver")
    for name in KERNELS:
        monkeypatch.delenv(name, raising=False)
    assert {engine_environment(run, stage)[name] for name in KERNELS} == {"128"}
    monkeypatch.setenv(KERNELS[0], "1024")
    assert [engine_environment(run, stage)[name] for name in KERNELS] == ["1024", "128"]
    monkeypatch.setattr(engine_process, "DRIVER", tmp_path)
    assert KERNELS[1] not in engine_environment(run, stage)
