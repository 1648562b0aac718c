"""Whether a screen is out of sight: under a dialog it is still seen, and continues; under another screen it rests."""

from __future__ import annotations

from typing import Any

from textual.screen import ModalScreen, Screen


def is_covered(screen: Screen[Any]) -> bool:
    """Whether a screen that is not a dialog is above this one."""
    stack = screen.app.screen_stack
    if screen not in stack:
        return True
    return any(not isinstance(above, ModalScreen) for above in stack[stack.index(screen) + 1 :])
