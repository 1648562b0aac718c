"""Checks the disk and the memory for an export before it starts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from recipes import quantities
from recipes.problems import OperatorError

_SPARE_BYTES = 64 * 1024 * 1024
"""Headers, vocabulary, parity.json and the journal."""


def check_disk(folder: Path, *, files: int, scratch: int) -> None:
    """Refuse an export that does not fit on the disk.

    Args:
        folder: where the files will be written.
        files: bytes of all files.
        scratch: bytes of temporary files.

    Raises:
        OperatorError: too little space; names the needed and the free size.
    """
    need, have = files + scratch + _SPARE_BYTES, shutil.disk_usage(folder).free
    if need > have:
        raise OperatorError(
            f"the export needs {quantities.size(need)} of disk (files {quantities.size(files)}, comparison "
            f"{quantities.size(scratch)}); {folder} has {quantities.size(have)} free",
            "free space, choose fewer file_types or fewer parity_positions, or another --runs-dir",
        )


def check_memory(reference_bytes: int) -> None:
    """Refuse a comparison whose float32 reference does not fit into memory.

    Raises:
        OperatorError: it does not fit. Nothing is checked if the system does not report its memory.
    """
    have = available_bytes()
    if have is not None and reference_bytes > have:
        raise OperatorError(
            f"the comparison needs {quantities.size(reference_bytes)} of memory for the model in float32; "
            f"{quantities.size(have)} are available",
            "compare on a larger machine, or set parity_positions = 0 to skip the comparison",
        )


def default_threads() -> int:
    """OMP_NUM_THREADS if it is set, else the number of physical cores that this process may use."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    usable = os.sched_getaffinity(0)
    cores = set()
    for cpu in usable:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
        except OSError:
            return len(usable)
        cores.add(siblings)
    return max(1, len(cores))


def available_bytes() -> int | None:
    """Memory that is available without swapping; None if the system does not report it."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
