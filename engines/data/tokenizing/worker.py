"""A process that encodes parts: its job is the first line of standard input, then comes one part a line.

It answers `{"bytes": N}` for work done, `{"record": …}` for a finished part, or `{"error": …, "hint": …}`, one a line.
It ends when its input ends, or when the process that started it is gone.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from pathlib import Path
from typing import Any

import msgspec

from engines.data.encoders import Encoder, SentencePieceEncoder, WholeEncoder
from engines.data.tokenizer_settings import WHOLE_FILE
from engines.data.tokenizing.parts import Job, Part, PartEncoder
from engines.words import ExitCode
from recipes.problems import OperatorError


class ParentGoneError(Exception):
    """The process that started this one has ended."""


def encoder_of(job: Job) -> Encoder:
    """The encoder that the job names.

    Raises:
        OperatorError: it cannot be read.
    """
    folder = Path(job.tokenizer)
    if job.encoder == WHOLE_FILE:
        return WholeEncoder(folder, job.eos_token)
    return SentencePieceEncoder(folder, job.eos_token)


def full_disk(error: OSError, folder: str) -> OperatorError | None:
    """A full disk as an operator's error; None for another error."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return OperatorError(
        f"{folder} is full: tokens could not be written",
        "free some space, then resume the run: finished parts are kept, and no partial files were left behind",
    )


def main() -> ExitCode:
    """Encode parts until the input ends, or the parent does."""
    parent = os.getppid()
    out = sys.stdout.buffer

    def answer(content: Any) -> None:
        out.write(msgspec.json.encode(content) + b"\n")
        out.flush()

    def progress(size: int) -> None:
        if os.getppid() != parent:
            raise ParentGoneError
        answer({"bytes": size})

    gc.disable()  # nothing here refers to itself, and it would look at every list of ids
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=Job)
    try:
        parts = PartEncoder(job, encoder_of(job))
        for line in sys.stdin.buffer:
            answer({"record": parts.write(msgspec.json.decode(line, type=Part), progress)})
    except (ParentGoneError, BrokenPipeError):
        return ExitCode.FAILED
    except OperatorError as error:
        answer({"error": error.message, "hint": error.hint})
    except OSError as error:
        known = full_disk(error, job.folder)
        if known is None:
            raise
        answer({"error": known.message, "hint": known.hint})
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main())
