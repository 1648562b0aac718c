"""Functions that read a screen, or wait until it shows something."""

from __future__ import annotations

import time
from collections.abc import Callable

from textual.app import App
from textual.pilot import Pilot

from tests.patience import PATIENCE_S

SIZES = ((80, 24), (160, 48))

HOSTILE = (
    "[/bold]",
    "[@click=app.quit]x[/]",
    "[red",
    "\x1b]52;c;aGk=\x07",
    "\x1b[2J\x1b[H",
    "\u202eevil",
    "\x9b31m",
    "a\nb\tc",
    "[link=https://example.org]y[/link]",
    "\u200bz",
)


def picture(app: App[None]) -> str:
    """The whole screen as text."""
    return "\n".join(strip.text.rstrip() for strip in app.screen._compositor.render_strips(app.size))


async def until(pilot: Pilot[None], true: Callable[[], bool], what: str) -> None:
    """Let the application run until `true` returns True."""
    give_up_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up_s:
        await pilot.pause()
        if true():
            return
        await pilot.pause(0.02)
    raise AssertionError(f"never: {what}\n{picture(pilot.app)}")


async def until_seen(pilot: Pilot[None], words: str) -> None:
    """Let the application run until the screen shows `words`."""
    await until(pilot, lambda: words in picture(pilot.app), f"{words!r} on the screen")


def notices(app: App[None]) -> str:
    """The notifications over the screen, before they are wrapped."""
    return "\n".join(notification.message for notification in app._notifications)


def no_control_characters(app: App[None]) -> bool:
    """Whether every drawn character is printable and none reorders the line."""
    return all(char == "\n" or char.isprintable() for char in picture(app)) and "\u202e" not in picture(app)
