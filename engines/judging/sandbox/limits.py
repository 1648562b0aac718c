"""What one confined program may use, and how its run can end."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True)
class Limits:
    """Limits of one program and its tests, together unless a line says otherwise.

    Attributes:
        cpu_s: processor seconds of each process.
        wall_s: seconds until everything is ended.
        memory_bytes: address space of each process; resident memory of all of them.
        disk_bytes: files in the private folder, which are memory; also the size of one file.
        inodes: files and folders in it.
        files: open files of each process.
        processes: processes and threads.
        output_bytes: everything printed.
    """

    cpu_s: int = 10
    wall_s: float = 30.0
    memory_bytes: int = 1024 * MIB
    disk_bytes: int = 32 * MIB
    inodes: int = 1024
    files: int = 64
    processes: int = 24
    output_bytes: int = MIB


class Verdicts:
    """How a run can end. `CANNOT` says that the program could not be confined, so that it did not run."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT = "output too large"
    CANNOT = "cannot confine"
