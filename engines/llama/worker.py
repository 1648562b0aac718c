"""The worker's side of a native process: answer frames on stdin and stdout until stdin ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from engines.llama.frames import read_frame, write_frame
from engines.llama.library import NativeError, die_with_parent

Handler = Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes | memoryview]]


def serve(handler: Handler) -> None:
    """Answer every request with the handler's frame, or with its error as text.

    Native code may print to stdout, so the protocol uses a private copy and descriptor 1 becomes stderr.
    """
    die_with_parent()
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            header, payload = read_frame(requests)
        except EOFError:
            # Not a return: the native library's destructors have nothing to save and may abort.
            os._exit(0)
        try:
            answer, data = handler(header, payload)
        except Exception as error:  # noqa: BLE001 - the boundary: the other side raises it again
            known = isinstance(error, NativeError)
            answer, data = {"error": str(error) if known else f"{type(error).__name__}: {error}", "known": known}, b""
        write_frame(answers, answer, data)
