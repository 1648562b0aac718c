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
from engines.identity import Identity
from engines.run_dir import RunDir

RUN_ENV = "COCKPIT_RUN_ROOT"
MARK_ENV = "COCKPIT_RUN_MARK"
SUPERVISOR_MODULE = "cockpit.supervision.supervisor"
SAMPLER_MODULE = "cockpit.supervision.sampler"


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
            pairs = (pair.partition(b"=") for pair in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
            found = {name: value for name, _, value in pairs}
        except OSError:
            return False
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


def serves(run: RunDir, named: Identity, module: str) -> bool:
    """Whether a process that the run's files name is alive and executes this module for this run; for showing.

    Supervisors and samplers have no mark, because what has one is ended with the run's engines. Their command line is
    set by the one who starts them, too, and read from the kernel: it has the module and the run's path.
    """
    try:
        words = Path(f"/proc/{named.pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(module) in words and os.fsencode(str(run.root)) in words and named.is_alive()
