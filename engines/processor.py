"""What this machine's processor offers to this process: instructions, cores that it may use, nodes of memory, and a
compiler for it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
AVX512_BF16 = "AVX-512 BF16"
_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": AVX512_BF16, "bf16": "Arm BF16"}
"""Flags of the kernel's list by the instructions' names, the fastest first."""
_SCHEDULED = 2
"""The clock of a process's CPU time in a clock's number (CPUCLOCK_SCHED, as clock_getcpuclockid(3) makes it)."""
_COMPILERS = ("g++", "clang++", "c++")


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


def machine_class(devices: Iterable[str] = (), cpuinfo: Path = _CPUINFO) -> str:
    """What times depend on: the processor's name, the cores that may be used, and accelerators. Times of machines with
    the same name can be compared.

    Args:
        devices: accelerators that compute.
        cpuinfo: the kernel's description of the processor.
    """
    named = (line.partition(":") for line in _text(cpuinfo).splitlines())
    names = {key.strip().lower(): value.strip() for key, _, value in named if value.strip()}
    name = names.get("model name") or " ".join(
        filter(None, [os.uname().machine, names.get("cpu implementer"), names.get("cpu part")])
    )
    return ", ".join([name, f"{usable_cores()} cores", *devices])


def usable_cores(root: Path = Path("/")) -> int:
    """Physical cores that this process may use: by its affinity, and by the quota of its control groups.

    Threads of one core count once: two of them are no faster for matrix products. More threads than a quota allows are
    stopped by the kernel in the middle of each product.

    Args:
        root: the file system with /sys and /proc.
    """
    cores = len(_by_core(os.sched_getaffinity(0), root))
    quota = _quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def nodes(root: Path = Path("/")) -> dict[int, frozenset[int]]:
    """The processors of each memory node (NUMA) that this process may use; one node, or none, where there is no
    choice."""
    allowed = os.sched_getaffinity(0)
    found: dict[int, frozenset[int]] = {}
    with suppress(OSError):
        for folder in sorted((root / "sys/devices/system/node").glob("node[0-9]*")):
            number = folder.name.removeprefix("node")
            text = _line(folder / "cpulist")
            if number.isdecimal() and (here := frozenset(_numbers(text)) & allowed):
                found[int(number)] = here
    return found


def node_for(threads: int, root: Path = Path("/"), bound: Collection[Iterable[int]] = ()) -> int | None:
    """The memory node whose cores are enough for this many threads; None where they need several, or there is one.

    Args:
        threads: of this process.
        root: the file system with /sys.
        bound: the processors that other engines may use; the node that the fewest of them are bound to is chosen.
    """
    there = nodes(root)
    if len(there) < 2:
        return None
    fits = [number for number, cpus in there.items() if len(_by_core(cpus, root)) >= threads]
    busy = {number: sum(set(cpus) <= there[number] for cpus in bound) for number in fits}
    return min(fits, key=lambda number: (busy[number], number), default=None)


def engines_here(*, ranks: bool = False) -> list[int]:
    """The process ids of the other engines on this machine, of every user.

    Args:
        ranks: also the processes that torchrun starts for an engine of several (`python -u -m`).
    """
    found = []
    for entry in os.scandir("/proc"):
        with suppress(OSError):
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0")
            if ranks and words[1:2] == [b"-u"]:
                del words[1]
            if words[1:2] == [b"-m"] and words[2:3] and words[2] in {b"engines.run", b"exporters.run"}:
                found.append(int(entry.name))
    return found


def engine_affinities() -> list[set[int]]:
    """The processors that each other engine of this user may use."""
    found = []
    for pid in engines_here():
        with suppress(OSError):
            if Path("/proc", str(pid)).stat().st_uid == os.getuid():
                found.append(os.sched_getaffinity(pid))
    return found


def spent_s(pid: int) -> float:
    """CPU seconds of all threads of a process so far, of its ended ones too.

    Raises:
        OSError: the process is gone.
    """
    return time.clock_gettime(~pid << 3 | _SCHEDULED)


def cpp_compiler() -> str:
    """The C++ compiler that torch.compile finds here: the one of CXX, else the first of the usual ones; "" without."""
    chosen = os.environ.get("CXX", "")
    return next((found for name in ((chosen,) if chosen else _COMPILERS) if (found := shutil.which(name))), "")


NO_COMPILER = (
    "needs a C++ compiler, and this machine has no such program",
    "install g++, or set torch_compile = false",
)
"""Why `torch_compile` is not possible without one, and what to do."""
NO_GPU_FOR_LIGER = (
    "Liger's kernels run on an NVIDIA GPU, and this machine has no such device",
    "set use_liger_kernel = false",
)
"""The same of `use_liger_kernel`."""


def _by_core(cpus: Iterable[int], root: Path) -> set[frozenset[int]]:
    """The groups of processors that are threads of one core; each alone where the kernel does not say."""
    folder = root / "sys/devices/system/cpu"
    groups = set()
    for cpu in cpus:
        texts = (_line(folder / f"cpu{cpu}/topology/{name}") for name in ("core_cpus_list", "thread_siblings_list"))
        groups.add(frozenset(_numbers(next(filter(None, texts), str(cpu)))))
    return groups


def _quota(root: Path) -> float | None:
    """Cores' worth of time that the control groups of this process allow; None without a limit."""
    limits = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, names, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not names:
            limits += [_of_v2(folder) for folder in _up(root / "sys/fs/cgroup", path)]
        elif "cpu" in names.split(","):
            places = (root / "sys/fs/cgroup" / name for name in dict.fromkeys((names, "cpu", "cpu,cpuacct")))
            place = next((place for place in places if place.is_dir()), None)
            limits += [] if place is None else [_of_v1(folder) for folder in _up(place, path)]
    return min((limit for limit in limits if limit is not None), default=None)


def _up(mount: Path, path: str) -> list[Path]:
    """A control group's folder and those above it. A container may see its own group as the root."""
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    return [mount.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _of_v2(folder: Path) -> float | None:
    quota, _, period = _line(folder / "cpu.max").partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _of_v1(folder: Path) -> float | None:
    quota, period = (_line(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _numbers(text: str) -> set[int]:
    """The numbers of a kernel's list (`0-3,8`); what is not one is left out."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first.isdecimal() and (last or first).isdecimal():
            found |= set(range(int(first), min(int(last or first), int(first) + 65_536) + 1))
    return found


def _line(path: Path) -> str:
    return _text(path).strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def memory_bytes(file: Path = Path("/proc/meminfo")) -> tuple[int, int] | None:
    """The machine's memory and what is available of it without swapping, in bytes; None if the kernel does not say."""
    try:
        lines = dict(line.split(":", 1) for line in file.read_text(encoding="ascii").splitlines() if ":" in line)
        total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, LookupError):
        return None
    return total, available


def available_memory_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process can still have without swapping: what the machine has available, within the limits of
    the process's control groups; None if the kernel does not say. What a group's cache of files holds counts as
    available.

    Args:
        root: the file system with /sys and /proc.
    """
    machine = memory_bytes(root / "proc/meminfo")
    limits = [] if machine is None else [machine[1]]
    limits += filter(None, (_left_in_group(folder, *files) for folder, files in _memory_groups(root)))
    return min(limits, default=None)


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """The lowest limit of the control groups of this process on memory; None without one."""
    limits = (_line(folder / files[0]) for folder, files in _memory_groups(root))
    return min((int(limit) for limit in limits if limit.isdecimal()), default=None)


_V2_MEMORY = ("memory.max", "memory.current", "")
_V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
"""Files of a group with its limit and what it uses, and the beginning of the names in its memory.stat that count the
groups below it too, as the first two do."""


def _memory_groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The control groups that may limit the memory of this process, innermost first, and the names of their files."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, names, path = [*line.split(":", 2), "", ""][:3]
        if number == "0" and not names:
            yield from ((folder, _V2_MEMORY) for folder in _up(root / "sys/fs/cgroup", path))
        elif "memory" in names.split(","):
            yield from ((folder, _V1_MEMORY) for folder in _up(root / "sys/fs/cgroup/memory", path))


def _left_in_group(folder: Path, limit: str, usage: str, prefix: str) -> int | None:
    """Bytes that a control group may still take; None without a limit."""
    most, used = _line(folder / limit), _line(folder / usage)
    if not (most.isdecimal() and used.isdecimal()):
        return None
    counts = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
    cached = sum(int(counts.get(f"{prefix}{name}", "0")) for name in ("inactive_file", "active_file"))
    return max(1, int(most) - max(0, int(used) - cached))
