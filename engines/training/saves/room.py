"""Whether a checkpoint has room: on the disk, and for its copy in host memory."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError

from engines.processor import available_memory_bytes
from recipes.quantities import size

DISK_MARGIN = 1.02
"""Factor on the size of the last checkpoint: what its counters, its manifest and the journal may grow by."""
DISK_RESERVE_BYTES = 1 << 20
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
MEMORY_MARGIN = 1.1
MEMORY_RESERVE_BYTES = 256 << 20
"""What stays available for the rest of the training: its own peaks come after the copy is made."""


def require_disk(folder: Path, expected_bytes: int) -> None:
    """Refuse a save that the disk cannot hold, before anything is written. A quota is not seen here.

    Args:
        folder: the folder that the checkpoint goes into.
        expected_bytes: the size of the checkpoint.

    Raises:
        OSError: too little space is free, or the folder is missing.
    """
    found = os.statvfs(folder)
    needed = int(expected_bytes * DISK_MARGIN) + DISK_RESERVE_BYTES
    if found.f_blocks and found.f_bavail * found.f_frsize < needed:  # some file systems count nothing
        words = f"{os.strerror(errno.ENOSPC)}: the checkpoint needs about {size(needed)}, and nothing was written"
        raise OSError(errno.ENOSPC, words)


def why_no_copy(more_bytes: int) -> str:
    """Why host memory should not take a copy of so many bytes more; empty if it should, or if it is not known."""
    available = available_memory_bytes()
    needed = int(more_bytes * MEMORY_MARGIN) + MEMORY_RESERVE_BYTES
    if more_bytes <= 0 or available is None or available >= needed:
        return ""
    return f"its copy in memory needs {size(more_bytes)}, and {size(available)} are available"


def room_in(folder: Path) -> str:
    """How much space a folder has, or that the run was moved while it runs."""
    try:
        return f"{size(shutil.disk_usage(folder).free)} are free"
    except FileNotFoundError:
        return "the run directory was moved or removed; move it back"


def is_disk_error(error: Exception) -> bool:
    """Whether training can continue after a failed save. torch and safetensors report the system's error as text."""
    if isinstance(error, OSError | SafetensorError):
        return True
    if isinstance(error, torch.OutOfMemoryError):
        return False
    text = str(error).lower()
    signs = [os.strerror(code).lower() for code in _NO_SPACE] + ["unexpected pos", "pytorchstreamwriter failed"]
    return any(sign in text for sign in signs)
