"""What a process of several does for itself: it ends with torchrun, prints into a file of its own, and reports of
itself in a journal of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded, Phase, RankEnded, RankReport, RanksPlaced
from engines.events.event import Event
from engines.events.steps import GuardTripped, Step
from engines.events.writers import Gap, Warned, WriterOpened
from engines.files import open_append
from engines.run_dir.paths import RunDir
from engines.words import WriterRole

TORCHRUN_PID_ENV = "COCKPIT_TORCHRUN_PID"
REPORT_S = 1.0
_PR_SET_PDEATHSIG = 1
_OWN = (WriterOpened, GuardTripped, Gap, RankEnded, RankReport, RanksPlaced)
"""What is true of one process alone; every other fact is the same in all, and rank 0 writes it."""
_LOST = (
    "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "Socket Timeout",
    "Connect timeout", "Connection refused", "failed to recv", "NCCL communicator was aborted", "remote process exited",
)  # fmt: skip
"""What gloo, nccl and the store say when another process is not there any more."""


class RankLostError(Exception):
    """Another process has failed, so this one cannot finish its work."""


def end_with_parent() -> None:
    """Let the kernel end this process when torchrun, which started it, has ended: it would wait for the others."""
    parent = os.environ.get(TORCHRUN_PID_ENV)
    if parent is None:  # another program started it
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent != str(os.getppid()):
        os.kill(os.getpid(), signal.SIGKILL)  # it had ended before


def print_into(console: Path) -> None:
    """Send what this process and its libraries print into a file."""
    with suppress(OSError):
        fd = open_append(console)
        for number in (1, 2):
            os.dup2(fd, number)
        os.close(fd)


class RankWriter(EventWriter):
    """The writer of a process above rank 0: of the shared facts it keeps that this process lives.

    `leads`: it is the first of its host, which is not that of rank 0; its run says where the shared facts are.
    """

    def __init__(self, run: RunDir, *, stage: str, attempt: int, rank: int, launch: int, leads: bool = False) -> None:
        self._of = (stage, attempt, rank)
        self._leads = leads
        self._due_s = 0.0
        self._phase = ""
        super().__init__(
            run.rank_journal(stage, attempt, rank),
            None,
            role=WriterRole.ENGINE,
            stage=stage,
            attempt=attempt,
            rank=rank,
            launch=launch,
        )

    def emit(self, event: Event) -> int:
        """Write what is this process's own; report of the rest that it happened here too."""
        stage, attempt, rank = self._of
        match event:
            case Phase():
                self._phase = event.name
                return super().emit(RankReport(stage=stage, attempt=attempt, rank=rank, phase=event.name))
            case Step():
                if time.monotonic() < self._due_s:
                    return self.seq
                self._due_s = time.monotonic() + REPORT_S
                return super().emit(
                    RankReport(stage=stage, attempt=attempt, rank=rank, step=event.step, phase=self._phase)
                )
            case AttemptEnded():
                ended = RankEnded(stage=stage, attempt=attempt, rank=rank, reason=event.reason, detail=event.detail)
                seq = super().emit(ended)
                self.sync()
                return seq
            case Warned():
                sys.stderr.write(f"{event.message}\n")
                return self.seq
            case RanksPlaced() if not self._leads:
                return self.seq
            case _ if isinstance(event, _OWN):
                return super().emit(event)
        return self.seq


def is_of_another_rank(error: BaseException) -> bool:
    """Whether an error says that an exchange with another process failed, and nothing of this one."""
    if isinstance(error, RankLostError):
        return True
    names = {type(link).__name__ for link in _chain(error)}
    if names & {"DistBackendError", "DistNetworkError", "DistStoreError"}:
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST) and "gloo" in text.lower()


def _chain(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and len(found) < 8:
        found.append(link)
        link = link.__cause__ or link.__context__
    return found
