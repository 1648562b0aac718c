"""The only place where commands write to stdout and stderr; everything is made safe here, once.

Data (ids, paths, names, reasons, model output) may contain terminal commands. Whatever a command prints, no control or
invisible character but the line end and the tab reaches the terminal, beside Cockpit's own `CLEAR_LINE`. JSON keeps its
data: such characters are escaped.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any

from cockpit.text.safe_text import UNSAFE, safe_characters

CLEAR_LINE = "\r\x1b[K"
"""Back to the beginning of the line, and clear it: for a line that is drawn again."""


def print_out(text: str = "", *, end: str = "\n", clear: bool = False, flush: bool = False) -> None:
    """Write text to stdout.

    Args:
        text: one line or several; it need not be safe.
        end: what follows it.
        clear: first clear the terminal's present line.
        flush: write immediately.
    """
    sys.stdout.write((CLEAR_LINE if clear else "") + safe_output(text) + end)
    if flush:
        sys.stdout.flush()


def print_json(value: Any, *, indent: int | None = 1, flush: bool = False) -> None:
    """Write a value to stdout as JSON, in ASCII without DEL."""
    sys.stdout.write(safe_json(json.dumps(value, indent=indent)) + "\n")
    if flush:
        sys.stdout.flush()


def print_json_lines(text: str, *, flush: bool = False) -> None:
    """Write lines that are JSON already to stdout; unsafe characters in them are escaped."""
    sys.stdout.write(safe_json(text))
    if flush:
        sys.stdout.flush()


def say(text: str, *, end: str = "\n", clear: bool = False) -> None:
    """Write a diagnostic to stderr immediately; a closed stderr is ignored.

    Args:
        text: one line or several; it need not be safe.
        end: what follows it.
        clear: first clear the terminal's present line.
    """
    with suppress(OSError, ValueError):
        sys.stderr.write((CLEAR_LINE if clear else "") + safe_output(text) + end)
        sys.stderr.flush()


def safe_output(text: str) -> str:
    """The text with every unsafe character but line ends and tabs replaced by a visible one."""
    if UNSAFE.search(text) is None:
        return text
    return "\n".join("\t".join(map(safe_characters, line.split("\t"))) for line in text.split("\n"))


def safe_json(text: str) -> str:
    """JSON in which every unsafe character of a string is escaped; the line ends between values stay."""
    if UNSAFE.search(text) is None:
        return text
    return UNSAFE.sub(lambda match: match[0] if match[0] == "\n" else json.dumps(match[0])[1:-1], text).replace(
        "\x7f", "\\u007f"
    )
