"""`python -m engines.judging.helper`: searches patterns and compiles Python, with limits on memory and processor time.

Requests and their answers:

- `{"search": pattern, "text"}` → `{"found"}`
- `{"pattern": pattern}` → `{"problem"}`: why it cannot be used, or empty
- `{"python": code}` → `{"problem"}`: why it does not compile, or empty. Nothing of the code runs.

What computes for longer than `"cpu_seconds"` ends the process with SIGPROF.
"""

from __future__ import annotations

import re
import resource
import signal
import sys
import warnings
from typing import Any

from engines.llama.worker import serve

MEMORY_BYTES = 1024**3
FILE = "<answer>"


def handle(request: dict[str, Any], _payload: bytes) -> tuple[dict[str, Any], bytes]:
    """Answer one request."""
    signal.setitimer(signal.ITIMER_PROF, request["cpu_seconds"])
    try:
        if "search" in request:
            return {"found": re.search(request["search"], request["text"]) is not None}, b""
        if "pattern" in request:
            return {"problem": _pattern_problem(request["pattern"])}, b""
        return {"problem": _python_problem(request["python"])}, b""
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _pattern_problem(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError, MemoryError) as error:
        return str(error) or type(error).__name__
    return ""


def _python_problem(code: str) -> str:
    try:
        compile(code, FILE, "exec", dont_inherit=True)
    except SyntaxError as error:
        return f"line {error.lineno}: {error.msg}"
    except (ValueError, OverflowError, RecursionError, MemoryError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    warnings.simplefilter("ignore")
    sys.set_int_max_str_digits(4300)
    serve(handle)
