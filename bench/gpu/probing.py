"""What the machine is, and its two ceilings: products of matrices and copies of memory."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_SHOWN = [
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "pyarrow",
    "pydantic",
    "msgspec",
    "gguf",
    "xllamacpp",
    "numpy",
    "safetensors",
    "sentencepiece",
    "protobuf",
    "psutil",
    "nvidia-ml-py",
    "bitsandbytes",
    "triton",
    "liger-kernel",
]


def probe(_out: Path) -> dict[str, Any]:
    import torch

    cuda = torch.cuda.is_available()
    memory = Path("/proc/meminfo").read_text().splitlines()[0].split()
    found: dict[str, Any] = {
        "python": sys.version.split()[0],
        "cpus": os.cpu_count(),
        "memory_gib": round(int(memory[1]) / 2**20, 1),
        "free_gib": {
            one: round(shutil.disk_usage(one).free / 2**30, 1) for one in ("/tmp", "/dev/shm") if Path(one).is_dir()
        },
        "versions": {one: _version(one) for one in _SHOWN},
        "card": _card(),
        "compilers": {one: shutil.which(one) for one in ("g++", "gcc", "c++", "nvcc")},
    }
    if cuda:
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "gib": round(properties.total_memory / 2**30, 1),
            "uuid": str(getattr(properties, "uuid", "")),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "flash": torch.backends.cuda.flash_sdp_enabled(),
            "cudnn_attention": torch.backends.cuda.cudnn_sdp_enabled(),
        }
    return found | _products(cuda) | _copies(cuda)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _card() -> str:
    wanted = "--query-gpu=name,driver_version,memory.total,memory.used,temperature.gpu,clocks.sm,power.limit"
    try:
        done = subprocess.run(
            ["nvidia-smi", wanted, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        return repr(error)
    return done.stdout.strip()


def _products(cuda: bool) -> dict[str, Any]:
    import torch

    size, device = (8192, "cuda") if cuda else (256, "cpu")
    found = {}
    for label, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("fp32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
        rounds = 10 if label == "bf16" else 4
        took_s = _timed(lambda one=one, other=other: one @ other, rounds)
        found[f"product_{label}_tflops"] = round(rounds * 2 * size**3 / took_s / 1e12, 1)
    return found


def _copies(cuda: bool) -> dict[str, Any]:
    import torch

    count, device = (2**32, "cuda") if cuda else (2**24, "cpu")
    source = torch.empty(count, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    found: dict[str, Any] = {"copy_gb_per_s": round(5 * 2 * count / _timed(lambda: target.copy_(source), 5) / 1e9, 1)}
    if cuda:
        one = torch.randn(2, device=device, dtype=torch.float64)
        found["fetch_us"] = round(_timed(one.tolist, 200) / 200 * 1e6, 1)
        found["launch_us"] = round(_timed(lambda: one.add_(0), 2000) / 2000 * 1e6, 2)
    return found


def _timed(work: Any, rounds: int) -> float:
    """Seconds of so many rounds, after three that do not count."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    for _ in range(3):
        work()
    wait()
    began = time.monotonic()
    for _ in range(rounds):
        work()
    wait()
    return time.monotonic() - began
