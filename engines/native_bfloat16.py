"""Whether this machine's processor computes in bfloat16 natively; without such instructions it emulates it, slowly."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "bf16": "Arm BF16"}
"""Flags of the kernel's list by the instructions' names, the fastest first."""


def bfloat16_instructions(cpuinfo: str) -> str:
    """The name of the fastest instructions for bfloat16 in a processor's description, as /proc/cpuinfo has it; "" for
    none."""
    line = next((line for line in cpuinfo.splitlines() if line.lower().startswith(("flags", "features"))), "")
    flags = set(line.partition(":")[2].split())
    return next((name for flag, name in _INSTRUCTIONS.items() if flag in flags), "")


@cache
def native_bfloat16() -> str:
    """The instructions for bfloat16 of this machine's processor; "" if it has no such ones, or does not list them."""
    try:
        return bfloat16_instructions(_CPUINFO.read_text(errors="replace"))
    except OSError:
        return ""
