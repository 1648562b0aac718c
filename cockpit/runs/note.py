"""The operator's note about a run, as lists show it."""

from __future__ import annotations

from engines.files import read_regular_text
from engines.run_dir import RunDir

MAX_BYTES = 4096


def note_of(run: RunDir) -> str:
    """The note; empty without one, or if it cannot be read. Not safe to print before `safe_text`."""
    try:
        text = read_regular_text(run.note, MAX_BYTES, errors="replace")
    except (OSError, ValueError):
        return ""
    return " ".join(text.split())[:500]
