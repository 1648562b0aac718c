"""The mark that every process of a run carries in its environment. Nothing is signalled without it.

What a folder says about processes (pids, start times, boot ids) may be forged. The environment of a process is set by
the one who starts it and read from the kernel, so only a process that Cockpit started for this run carries its mark:
the run's path, and a hash of its token and of the folder's device and inode, which survives a renamed folder and is
not valid for a copy of it.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cockpit.provenance.trust import token_of
from engines.identity import Identity, boot_id, start_time
from engines.json_text import read_json
from engines.run_dir.locks import lock_holder, lock_is_held
from engines.run_dir.paths import RunDir

RUN_ENV = "COCKPIT_RUN_ROOT"
MARK_ENV = "COCKPIT_RUN_MARK"
SUPERVISOR_MODULE = "cockpit.supervision.supervisor"
SAMPLER_MODULE = "cockpit.supervision.sampler"
MAX_IDENTITY_BYTES = 4096


@dataclass(frozen=True)
class RunMark:
    """The mark of one run; `secret` is empty for a run without a token."""

    root: str
    secret: str

    @classmethod
    def of(cls, run: RunDir) -> RunMark:
        """The run's mark."""
        token = token_of(run)
        if token is None:
            return cls(str(run.root), "")
        try:
            status = run.root.stat()
        except OSError:
            return cls(str(run.root), "")
        secret = hashlib.sha256(f"{token} {status.st_dev} {status.st_ino}".encode()).hexdigest()
        return cls(str(run.root), secret)

    def environment(self) -> dict[str, str]:
        """The variables that a process of the run is started with."""
        return {RUN_ENV: self.root} | ({MARK_ENV: self.secret} if self.secret else {})

    def is_carried_by(self, pid: int) -> bool:
        """Whether the process is this user's and has the run's mark; False if its environment cannot be read.

        Engines that an older Cockpit started have only the path.
        """
        try:
            if Path(f"/proc/{pid}").stat().st_uid != os.getuid():
                return False
        except OSError:
            return False
        found = _environment(pid)
        secret = found.get(os.fsencode(MARK_ENV))
        if secret is not None:
            return bool(self.secret) and secret == os.fsencode(self.secret)
        return found.get(os.fsencode(RUN_ENV)) == os.fsencode(self.root)


def lives(run: RunDir, engine: Identity) -> bool:
    """Whether an engine that the run's files name is alive and of this run; for showing, not for signals.

    The environment of another user's process cannot be read: it counts if that user owns the run's folder.
    """
    if not engine.is_alive():
        return False
    try:
        owner = Path(f"/proc/{engine.pid}").stat().st_uid
        if owner != os.getuid():
            return owner == run.root.stat().st_uid
    except OSError:
        return False
    return RunMark.of(run).is_carried_by(engine.pid) and engine.is_alive()


def as_numbered_here(run: RunDir, stage: str | None, attempt: int | None, named: Identity) -> Identity:
    """An engine's process that names itself, under its number in this namespace of processes.

    In a container a process has another number than outside. It is looked for only if the attempt's engine was started
    by a launcher: among the processes with the run's mark, the one with the same start time and that inner number.
    """
    if stage is None or attempt is None or named.boot_id != boot_id() or named.is_alive():
        return named
    if not launcher_of(run.engine_json(stage, attempt)):
        return named
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        if start_time(pid) == named.start_time and inner_pid(pid) == named.pid and RunMark.of(run).is_carried_by(pid):
            return Identity(pid, named.start_time, named.boot_id)
    return named


def started_process(engine_json: Path) -> Identity | None:
    """The process that the supervisor started for an attempt, the engine or torchrun; None if the file is unusable."""
    try:
        value = read_json(engine_json, MAX_IDENTITY_BYTES)
        return Identity(int(value["pid"]), int(value["start_time"]), str(value["boot_id"]))
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


def launcher_of(engine_json: Path) -> str:
    """The launcher of an engine, by the file that the supervisor wrote; empty without one."""
    try:
        return str(read_json(engine_json, MAX_IDENTITY_BYTES).get("launcher") or "")
    except (OSError, ValueError, AttributeError):
        return ""


def inner_pid(pid: int) -> int | None:
    """The number of a process in the innermost namespace of processes that it is in (proc(5), NSpid)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return None
    numbers = next((line.split()[1:] for line in lines if line.startswith("NSpid:")), [])
    return int(numbers[-1]) if numbers else None


def serves(run: RunDir, named: Identity, module: str) -> bool:
    """Whether a process that the run's files name is alive and executes this module for this run; for showing.

    Supervisors and samplers have no mark, because what has one is ended with the run's engines. Their command line is
    set by the one who starts them, too, and read from the kernel: it has the module and a path of the run's folder.
    """
    path = _path_after(named.pid, module)
    if path is None or not (path == os.fsencode(run.root) or _is_folder_of(run, named.pid, path)):
        return False
    return named.is_alive()


def works_elsewhere(run: RunDir, engine: Identity | None = None) -> Path | None:
    """The folder in which the run's processes work, if it is not the run's: the run was moved while it ran, or it is
    a copy that shares its files with the run (hard links).

    Such processes write no checkpoint into the run's folder and take no request from it. None if they work in the
    run's folder, or if that cannot be seen from here.

    Args:
        run: the run.
        engine: its living engine, if there is one.
    """
    supervisor = _lock_holder(run)
    found = [] if supervisor is None else [(supervisor, _path_after(supervisor.pid, SUPERVISOR_MODULE))]
    found += [] if engine is None else [(engine, _environment(engine.pid).get(os.fsencode(RUN_ENV)))]
    for process, path in found:
        if path and process.is_alive() and _is_folder_of(run, process.pid, path) is False and process.is_alive():
            return Path(os.fsdecode(path))
    return None


def _lock_holder(run: RunDir) -> Identity | None:
    """The process that holds the supervisor's lock, as it recorded itself."""
    if not lock_is_held(run.supervisor_lock):
        return None
    holder = lock_holder(run.supervisor_lock)
    try:
        return Identity(int(holder["pid"]), int(holder["start_time"]), str(holder["boot_id"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _path_after(pid: int, module: str) -> bytes | None:
    """The argument that follows a module in the command line of a process; None without it."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    place = words.index(os.fsencode(module)) + 1 if os.fsencode(module) in words else len(words)
    return words[place] if place < len(words) else None


def _environment(pid: int) -> dict[bytes, bytes]:
    """The environment that a process was started with; empty if it cannot be read."""
    try:
        pairs = (pair.partition(b"=") for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        return {name: value for name, _, value in pairs}
    except OSError:
        return {}


def _is_folder_of(run: RunDir, pid: int, path: bytes) -> bool | None:
    """Whether a path of a process leads to the run's folder; None if that cannot be seen from here."""
    try:
        own = run.root.stat()
    except OSError:
        return None
    try:
        # As the process sees it: it may have other mounts.
        found = Path(f"/proc/{pid}/root", os.fsdecode(path).lstrip("/")).stat()
    except FileNotFoundError:
        return False if Path(f"/proc/{pid}/root").exists() else None
    except (OSError, ValueError):
        return None
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)
