"""What an engine on a processor keeps: the memory that a step frees, in large pages, and a few of the kernels that are
made for each length of a sequence."""

from __future__ import annotations

from collections.abc import Mapping

VARIABLE = "GLIBC_TUNABLES"
"""glibc's settings; another C library ignores them, and so does a version without one of them."""
_LARGEST_KEPT = 512 << 20
"""Bytes up to which a buffer is kept: the largest of a step are logits, of 256 MiB at most. With large pages and
glibc's own limit of 32 MiB, a step is slower than without these settings: the system clears whole large pages."""
_NEVER = 1 << 40
_SETTINGS = {
    "glibc.malloc.mmap_threshold": _LARGEST_KEPT,
    "glibc.malloc.trim_threshold": _NEVER,
    "glibc.malloc.hugetlb": 1,  # ask for large pages where the system gives them on request
}


def keep_freed_memory(environment: Mapping[str, str]) -> dict[str, str]:
    """The variable for a process that frees in each step what the next one needs again; an operator's value of it has
    priority as a whole."""
    if VARIABLE in environment:
        return {}
    return {VARIABLE: ":".join(f"{name}={value}" for name, value in _SETTINGS.items())}


KERNELS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""The number of products that oneDNN and torch each keep compiled; both are 1,024 without these variables."""
_KERNELS_KEPT = 128
"""The layers of one sequence need about thirty. Each of the two copies takes a third of a MiB, and another length needs
others: with 1,024, a training on rows of many lengths grows by half a GiB in its first hundred steps."""


def keep_few_kernels(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables for a process that computes sequences of many lengths on a processor; an operator's value of one
    has priority."""
    return {name: str(_KERNELS_KEPT) for name in KERNELS if name not in environment}
