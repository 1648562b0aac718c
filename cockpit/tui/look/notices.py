"""Short messages over a screen, as safe text without markup."""

from __future__ import annotations

from typing import Any, Literal

from textual.app import App
from textual.screen import Screen

from cockpit.text.safe_text import safe_lines
from recipes.problems import OperatorError


def say(
    over: App[Any] | Screen[Any],
    message: str,
    severity: Literal["information", "warning", "error"] = "information",
) -> None:
    """Show a message for 5 s; an error for 10 s."""
    text = "\n".join(safe_lines(message, 8))
    over.notify(text, severity=severity, timeout=10.0 if severity == "error" else 5.0, markup=False)


def say_error(over: App[Any] | Screen[Any], error: OperatorError) -> None:
    """Show an error's message and its hint."""
    say(over, f"{error.message}\n{error.hint}" if error.hint else error.message, "error")
