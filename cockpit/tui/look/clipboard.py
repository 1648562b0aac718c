"""Copying text out of the terminal, and what may be said about it: "copied" only where something accepted the text.

A terminal does not answer the sequence that sets its clipboard (OSC 52). tmux does: its `load-buffer` fails, or has
the text. GNU screen and the Linux console pass nothing on.
"""

from __future__ import annotations

import os
import subprocess
from typing import Any

from textual.app import App

from cockpit.text.safe_text import safe_text

TIMEOUT_S = 2.0
_DEAF_TERMS = ("linux", "vt100", "vt220", "dumb")


def copy(app: App[Any], text: str) -> str:
    """Copy a text; returns the sentence about it, with the text, so that it can be selected where copying fails."""
    shown = safe_text(text, None)
    if os.environ.get("TMUX"):
        why_not = _to_tmux(text)
        return f"not copied: tmux: {safe_text(why_not, 200)}\n{shown}" if why_not else f"copied to tmux: {shown}"
    if os.environ.get("STY"):
        return f"not copied: GNU screen does not pass the text on\n{shown}"
    if os.environ.get("TERM", "") in _DEAF_TERMS:
        return f"not copied: this terminal has no clipboard\n{shown}"
    app.copy_to_clipboard(text)
    return f"sent to the terminal's clipboard: {shown}"


def _to_tmux(text: str) -> str:
    """Give tmux the text, for its buffer and for the clipboard of its terminal; returns why it refused, or nothing."""
    try:
        done = subprocess.run(
            ["tmux", "load-buffer", "-w", "-"],
            check=False,
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=TIMEOUT_S,
        )
    except FileNotFoundError:
        return "the program is not there"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
