"""Encodes parts in this process, and in others where there is much to do."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engines.data.encoders import Encoder
from engines.data.tokenizing.parts import Job, Part, PartEncoder, PartRecord, unfinished_files
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
    waiting = list(reversed(parts))
    with selectors.DefaultSelector() as selector:
        workers: list[_Worker] = []

        def hear(patience_s: float) -> None:
            for key, _ in selector.select(patience_s) if workers else ():
                _hear(key.data, waiting, advance)

        def progress(size: int) -> None:
            advance(size)
            hear(0)

        try:
            for _ in range(min(processes, len(parts)) - 1):
                workers.append(worker := _Worker(job))
                selector.register(worker.output, selectors.EVENT_READ, worker)
                worker.take(waiting.pop())
            while waiting:  # this process is one of them: it has the tokenizer already
                own.write(waiting.pop(), progress)
            while any(worker.part is not None for worker in workers):
                advance(0)
                hear(_POLL_S)
        except OSError as error:
            if (known := full_disk(error, job.folder)) is not None:
                raise known from error
            raise
        finally:
            for worker in workers:
                worker.end()


def _hear(worker: _Worker, waiting: list[Part], advance: Advance) -> None:
    """Take what a process has written."""
    for answer in worker.answers():
        if "bytes" in answer:
            advance(answer["bytes"])
        elif "error" in answer:
            raise OperatorError(answer["error"], answer["hint"] or "")
        else:
            msgspec.convert(answer["record"], PartRecord)
            worker.part = None
            if waiting:
                worker.take(waiting.pop())


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
