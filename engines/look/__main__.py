"""`python -m engines.look`: examine the data of stages. A request on stdin, one line of JSON for each stage on stdout.

`python -m engines.look steps`: what the steps of trainings read. A request on stdin, one line of JSON on stdout.

`python -m engines.look rows`: show single rows. Each line on stdin asks for rows, each line on stdout answers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from engines.chat.rendering import start_renderer
from engines.chat.worker import limit_memory
from engines.look.answer import Request
from engines.words import ExitCode

MEMORY_BYTES = 4 * 1024**3
"""Memory that an examination may take beyond the interpreter's own."""


def main(arguments: list[str]) -> ExitCode:
    """Answer on the standard streams."""
    limit_memory(MEMORY_BYTES)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    if arguments == ["rows"]:
        from engines.look.rows import serve_rows

        start_renderer()
        serve_rows(sys.stdin.buffer, answers)
        return ExitCode.DONE
    if arguments == ["steps"]:
        from engines.look.steps import serve_steps

        start_renderer()
        serve_steps(sys.stdin.buffer, answers)
        return ExitCode.DONE
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    if any(job.model is not None for job in request.jobs):
        start_renderer()  # it imports its modules while this process imports its own
    from engines.look.stage_look import look_at

    for job in request.jobs:
        look = look_at(job, label_s=request.label_s, read_s=request.read_s, scratch=Path(request.scratch))
        answers.write(msgspec.json.encode(look) + b"\n")
        answers.flush()
    return ExitCode.DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
