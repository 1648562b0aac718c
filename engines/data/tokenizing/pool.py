"""Encodes parts in this process, and in others where there is much to do.

A part with a large document is encoded by another process in any case: a call into the tokenizer's library takes
seconds then, in which this process could not obey a stop.
"""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import msgspec

from engines.data.encoders import Encoder
from engines.data.tokenizing.parts import Job, Part, PartEncoder, PartRecord, has_large_document, unfinished_files
from engines.data.tokenizing.worker import full_disk
from recipes.problems import OperatorError

LEAST_BYTES = 8 << 20
"""A text of fewer bytes is encoded in this process: others take a second to start."""
_POLL_S = 0.2
_ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
Advance = Callable[[int], None]
"""Called with the bytes of lines done since the last call, often 0; an exception from it ends the work."""


def encode_parts(job: Job, encoder: Encoder, parts: Sequence[Part], processes: int, advance: Advance) -> None:
    """Write all parts.

    Args:
        job: what they have in common.
        encoder: the job's encoder, for this process.
        parts: the parts, largest first or in order.
        processes: how many may work at once.
        advance: reports progress.

    Raises:
        OperatorError: a line is not a document, the disk is full, or a process was killed.
    """
    own = PartEncoder(job, encoder)
    left = _Left(Path(job.data), parts)
    with _Workers(job, left, advance) as workers:
        for _ in range(min(processes, len(parts)) - 1):
            workers.start()
        while (part := left.next_small()) is not None:  # this process is one of them: it has the tokenizer already
            own.write(part, workers.progress)
        if left:
            workers.start()  # in place of this process
        workers.finish()


class _Workers:
    """The other processes; with an error, all are ended.

    Args:
        job: what they work on.
        left: the parts that they take.
        advance: reports their progress.

    Raises:
        OperatorError: within its block: one of them cannot continue, or the disk is full.
    """

    def __init__(self, job: Job, left: _Left, advance: Advance) -> None:
        self._job, self._left, self._advance = job, left, advance
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _at: object) -> None:
        for worker in self._workers:
            worker.end()
        self._selector.close()
        if isinstance(error, OSError) and (known := full_disk(error, self._job.folder)) is not None:
            raise known from error

    def start(self) -> None:
        """Start one, with a part."""
        self._workers.append(worker := _Worker(self._job))
        self._selector.register(worker.output, selectors.EVENT_READ, worker)
        worker.take(self._left.next())

    def progress(self, size: int) -> None:
        """Report progress of this process, and take what the others have written since."""
        self._advance(size)
        self._hear(0)

    def finish(self) -> None:
        """Wait until no part is left."""
        while any(worker.part is not None for worker in self._workers):
            self._advance(0)
            self._hear(_POLL_S)

    def _hear(self, patience_s: float) -> None:
        for key, _ in self._selector.select(patience_s) if self._workers else ():
            _hear(key.data, self._left, self._advance)


class _Left:
    """The parts that no process has begun."""

    def __init__(self, data: Path, parts: Sequence[Part]) -> None:
        self._data = data
        self._waiting = list(reversed(parts))
        self._large: list[Part] = []

    def __bool__(self) -> bool:
        return bool(self._large or self._waiting)

    def next(self) -> Part:
        """One of them, for another process: a large one first."""
        return self._large.pop() if self._large else self._waiting.pop()

    def next_small(self) -> Part | None:
        """The next one without a large document, for this process; None if every other one has one."""
        while self._waiting:
            part = self._waiting.pop()
            if not has_large_document(self._data, part):
                return part
            self._large.append(part)
        return None


def _hear(worker: _Worker, left: _Left, advance: Advance) -> None:
    """Take what a process has written."""
    for answer in worker.answers():
        if "bytes" in answer:
            advance(answer["bytes"])
        elif "error" in answer:
            raise OperatorError(answer["error"], answer["hint"] or "")
        else:
            msgspec.convert(answer["record"], PartRecord)
            worker.part = None
            if left:
                worker.take(left.next())


class _Worker:
    """One process; `part` is the one it works on."""

    def __init__(self, job: Job) -> None:
        self.part: Part | None = None
        self._folder = Path(job.folder)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "engines.data.tokenizing.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self._process.stdin is not None, "both are pipes"
        assert self._process.stdout is not None, "both are pipes"
        self.output = self._process.stdout
        self._rest = b""
        self._send(job)

    def take(self, part: Part) -> None:
        """Begin a part."""
        self.part = part
        self._send(part)

    def answers(self) -> list[dict[str, Any]]:
        """What the process has written since the last call.

        Raises:
            OperatorError: the process has ended without an answer.
        """
        read = os.read(self.output.fileno(), 1 << 16)
        if not read:
            code = self._process.wait()
            name = self.part.name if self.part is not None else "no part"
            cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise OperatorError(
                f"a process that encodes {name} {cause}",
                "console.log has its last words; finished parts are kept for the next attempt",
            )
        *lines, self._rest = (self._rest + read).split(b"\n")
        return [msgspec.json.decode(line) for line in lines if line]

    def end(self) -> None:
        """End the process, in the middle of a part too; what it had written of that part is removed."""
        with suppress(OSError):
            self._process.kill()
        self._process.wait()
        for file in unfinished_files(self._folder, self.part).values() if self.part is not None else ():
            with suppress(OSError):  # it could not remove them itself
                file.unlink(missing_ok=True)
        with suppress(OSError):
            self.output.close()
        assert self._process.stdin is not None, "it is a pipe"
        with suppress(OSError):
            self._process.stdin.close()

    def _send(self, content: Job | Part) -> None:
        assert self._process.stdin is not None, "it is a pipe"
        with suppress(BrokenPipeError):  # the end of its output says why
            self._process.stdin.write(msgspec.json.encode(content) + b"\n")
            self._process.stdin.flush()
