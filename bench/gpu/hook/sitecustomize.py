"""What a trial adds to an engine from outside: a turn at the gate, a profile of some steps, a smaller card.

Python imports a module of this name at its start if its folder is on the path. It acts only where the trial's variables
are set, and changes nothing of the product's files.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

WATCHED = "engines.training.session"
GATE, GATE_FOLDER = "TRIAL_GATE", "TRIAL_GATE_FOLDER"
PROFILE, FIRST_STEP = "TRIAL_PROFILE", "TRIAL_PROFILE_AFTER"
MEMORY = "TRIAL_MEMORY_GIB"
_STEPS = 2
_COUNTED = (
    "cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpyAsync", "cudaLaunchKernel",
    "cudaMalloc", "cudaFree", "aten::_local_scalar_dense", "aten::nonzero", "aten::copy_", "aten::to", "aten::mm",
    "aten::_scaled_dot_product_flash_attention", "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_efficient_attention", "aten::_scaled_dot_product_fused_attention_overrideable",
)  # fmt: skip


class _Finder:
    """Changes the watched module when it has been imported."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _change(module.Session)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _change(session: Any) -> None:
    begins, steps = session.train_begins, session.after_optimizer_step
    profiler = _Profile() if os.environ.get(PROFILE) else None

    def train_begins(self: Any) -> None:
        _limit_memory()
        begins(self)
        name = os.environ.get(GATE)
        if name:
            folder = Path(os.environ[GATE_FOLDER])
            (folder / f"{name}.ready").touch()
            while not (folder / f"{name}.go").exists():
                time.sleep(0.02)

    def after_optimizer_step(self: Any) -> None:
        steps(self)
        if profiler is not None:
            profiler.after(self.step)

    session.train_begins, session.after_optimizer_step = train_begins, after_optimizer_step


def _limit_memory() -> None:
    import torch

    limit = float(os.environ.get(MEMORY, "0"))
    if limit and torch.cuda.is_available():
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit * 2**30 / whole))


class _Profile:
    """Two steps under torch's profiler, then one in which torch warns of each wait for the card, by line."""

    def __init__(self) -> None:
        self.first = int(os.environ.get(FIRST_STEP, "5"))
        self.profiler: Any = None
        self.warned: Any = None
        self.list: Any = None
        self.began_s = 0.0
        self.found: dict[str, Any] = {}

    def after(self, step: int) -> None:
        import torch

        cuda = torch.cuda.is_available()
        if step == self.first:
            kinds = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] if cuda else [])]
            if cuda:
                torch.cuda.synchronize()
            self.profiler = torch.profiler.profile(activities=kinds)
            self.profiler.__enter__()
            self.began_s = time.monotonic()
        elif step == self.first + _STEPS:
            if cuda:
                torch.cuda.synchronize()
            self.found["profiled_s"] = time.monotonic() - self.began_s
            self.profiler.__exit__(None, None, None)
            self._write(cuda=cuda)
            self.warned = warnings.catch_warnings(record=True)
            self.list = self.warned.__enter__()
            warnings.simplefilter("always")
            if cuda:
                torch.cuda.set_sync_debug_mode("warn")
        elif step == self.first + _STEPS + 1:
            if cuda:
                torch.cuda.set_sync_debug_mode("default")
            self.warned.__exit__(None, None, None)
            lines = Counter(f"{Path(w.filename).name}:{w.lineno} {str(w.message)[:80]}" for w in self.list)
            self.found["waits_of_a_step"] = dict(lines.most_common(40))
            Path(os.environ[PROFILE] + ".json").write_text(json.dumps(self.found, indent=1))

    def _write(self, *, cuda: bool) -> None:
        averages = self.profiler.key_averages()
        self.found["steps"] = _STEPS
        self.found["counts"] = {one.key: one.count for one in averages if one.key in _COUNTED}
        device = "self_device_time_total" if cuda else "self_cpu_time_total"
        self.found["device_s"] = sum(getattr(one, "self_device_time_total", 0) for one in averages) / 1e6
        kernels = sorted(averages, key=lambda one: -getattr(one, device, 0))[:60]
        self.found["top"] = [[one.key[:160], one.count, getattr(one, device, 0)] for one in kernels]
        text = averages.table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=80)
        Path(os.environ[PROFILE] + ".cpu.txt").write_text(text)


if any(os.environ.get(name) for name in (GATE, PROFILE, MEMORY)):
    sys.meta_path.insert(0, _Finder())
