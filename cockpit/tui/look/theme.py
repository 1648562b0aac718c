"""Colours that are exact entries of the xterm 256-colour palette.

OpenSSH does not forward COLORTERM, so a program sees 256 colours in most terminals over SSH. A colour between two
entries is rounded to one of them, and neighbouring surfaces look the same. Each hex value below is a palette entry.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from textual.theme import Theme

from engines.words import RunStatus, StageStatus

DARK_VARIABLES = {
    "text-muted": "#9e9e9e",
    "text-disabled": "#767676",
    "foreground-muted": "#9e9e9e",
    "foreground-disabled": "#767676",
    "border": "#5f87af",
    "border-blurred": "#444444",
    "frame": "#444444",
    "block-cursor-background": "#5fafff",
    "block-cursor-foreground": "#121212",
    "block-cursor-blurred-background": "#303030",
    "block-cursor-blurred-foreground": "#d0d0d0",
    "input-cursor-background": "#d0d0d0",
    "input-cursor-foreground": "#121212",
    "scrollbar": "#444444",
    "scrollbar-hover": "#585858",
    "scrollbar-active": "#5fafff",
    "scrollbar-background": "#1c1c1c",
    "scrollbar-background-hover": "#1c1c1c",
    "scrollbar-background-active": "#1c1c1c",
    "scrollbar-corner-color": "#1c1c1c",
    "footer-background": "#1c1c1c",
    "chart-axis": "#767676",
    "chart-title": "#d0d0d0",
    "chart-line": "#5fd7ff",
    "chart-raw": "#5f87af",
    "chart-old": "#585858",
    "chart-eval": "#ffd75f",
    "chart-bad": "#ff5f5f",
    "chart-guard": "#d75f5f",
    "chart-mark": "#87d787",
    "chart-control": "#ffaf5f",
}

LIGHT_VARIABLES = {
    **DARK_VARIABLES,
    "text-muted": "#626262",
    "text-disabled": "#8a8a8a",
    "foreground-muted": "#626262",
    "foreground-disabled": "#8a8a8a",
    "border": "#5f87af",
    "border-blurred": "#bcbcbc",
    "frame": "#bcbcbc",
    "block-cursor-background": "#005faf",
    "block-cursor-foreground": "#ffffff",
    "block-cursor-blurred-background": "#dadada",
    "block-cursor-blurred-foreground": "#262626",
    "input-cursor-background": "#262626",
    "input-cursor-foreground": "#ffffff",
    "scrollbar": "#bcbcbc",
    "scrollbar-hover": "#a8a8a8",
    "scrollbar-active": "#005faf",
    "scrollbar-background": "#eeeeee",
    "scrollbar-background-hover": "#eeeeee",
    "scrollbar-background-active": "#eeeeee",
    "scrollbar-corner-color": "#eeeeee",
    "footer-background": "#eeeeee",
    "chart-axis": "#8a8a8a",
    "chart-title": "#262626",
    "chart-line": "#005faf",
    "chart-raw": "#87afd7",
    "chart-old": "#bcbcbc",
    "chart-eval": "#af5f00",
    "chart-bad": "#d70000",
    "chart-guard": "#d75f5f",
    "chart-mark": "#008700",
    "chart-control": "#af5f00",
}

ANSI_VARIABLES = {
    "frame": "ansi_bright_black",
    "chart-axis": "ansi_bright_black",
    "chart-title": "ansi_default",
    "chart-line": "ansi_bright_cyan",
    "chart-raw": "ansi_blue",
    "chart-old": "ansi_bright_black",
    "chart-eval": "ansi_bright_yellow",
    "chart-bad": "ansi_bright_red",
    "chart-guard": "ansi_red",
    "chart-mark": "ansi_bright_green",
    "chart-control": "ansi_bright_magenta",
}
"""Added to Textual's ansi themes, for terminals with sixteen colours."""

DARK = Theme(
    name="cockpit",
    primary="#5fafff",
    secondary="#87afd7",
    accent="#ffaf5f",
    foreground="#d0d0d0",
    background="#121212",
    surface="#1c1c1c",
    panel="#303030",
    success="#87d787",
    warning="#ffd75f",
    error="#ff5f5f",
    dark=True,
    variables=DARK_VARIABLES,
)
LIGHT = Theme(
    name="cockpit-light",
    primary="#005faf",
    secondary="#5f87af",
    accent="#af5f00",
    foreground="#262626",
    background="#ffffff",
    surface="#eeeeee",
    panel="#dadada",
    success="#008700",
    warning="#af5f00",
    error="#d70000",
    dark=False,
    variables=LIGHT_VARIABLES,
)
THEMES = (DARK, LIGHT)

_RICH_NAMES = {
    f"{bright}{name}"
    for bright in ("", "bright_")
    for name in ("black", "red", "green", "yellow", "blue", "magenta", "cyan", "white")
} | {"default"}
_DRAWN = ("foreground", "primary", "accent", "success", "warning", "error", "text-muted", "text-disabled")
_DIM = {"text-muted": "dim", "text-disabled": "dim"}
_SIXTEEN_COLOURS = ("linux", "xterm", "vt100", "vt220", "ansi", "screen")

GLYPHS = {
    RunStatus.QUEUED: "○",
    StageStatus.PENDING: "○",
    RunStatus.RUNNING: "●",
    RunStatus.PAUSED: "‖",
    RunStatus.SUCCEEDED: "✓",
    RunStatus.FAILED: "✗",
    RunStatus.STOPPED: "■",
    RunStatus.REFUSED: "!",
    StageStatus.SKIPPED: "-",
    RunStatus.LOST: "?",
}
"""Every state has a glyph as well as a colour, so that it is readable without colours."""

ASCII_GLYPHS = {
    **dict.fromkeys((RunStatus.QUEUED, StageStatus.PENDING), "o"),
    RunStatus.RUNNING: "*",
    RunStatus.PAUSED: "=",
    RunStatus.SUCCEEDED: "+",
    RunStatus.FAILED: "x",
    RunStatus.STOPPED: "#",
    RunStatus.REFUSED: "!",
    StageStatus.SKIPPED: "-",
    RunStatus.LOST: "?",
}

CROSS = "\u00d7"
"""Marks a value that is not a number."""

STATE_COLOURS = {
    RunStatus.QUEUED: "text-muted",
    StageStatus.PENDING: "text-muted",
    RunStatus.RUNNING: "primary",
    RunStatus.PAUSED: "warning",
    RunStatus.SUCCEEDED: "success",
    RunStatus.FAILED: "error",
    RunStatus.STOPPED: "warning",
    RunStatus.REFUSED: "error",
    StageStatus.SKIPPED: "text-muted",
    RunStatus.LOST: "error",
}
"""Names of theme variables, for `App.theme_variables`."""


def palette(variables: Mapping[str, str]) -> dict[str, str]:
    """Rich styles of the theme variables that widgets draw with: hex values, or names of the sixteen colours.

    A variable that is not a plain colour ("ansi_default 50%") gives dim for muted text; other text keeps the widget's
    colour.
    """
    return {name: _plain_colour(variables.get(name, "")) or _DIM.get(name, "") for name in _DRAWN}


def _plain_colour(value: str) -> str:
    colour = value.removeprefix("ansi_")
    return colour if colour.startswith("#") or colour in _RICH_NAMES else ""


def ascii_only() -> bool:
    """Whether COCKPIT_GLYPHS=ascii requests screens without braille and other symbols."""
    return os.environ.get("COCKPIT_GLYPHS", "braille").lower() == "ascii"


def state_glyph(state: RunStatus | StageStatus) -> str:
    """The character for a run's or stage's state."""
    return (ASCII_GLYPHS if ascii_only() else GLYPHS).get(state, "?")


def chosen_theme() -> str:
    """The theme's name: COCKPIT_THEME, else `ansi-dark` on a terminal with sixteen colours, else `cockpit`."""
    requested = os.environ.get("COCKPIT_THEME", "")
    if requested in {"cockpit", "cockpit-light", "ansi-dark", "ansi-light"}:
        return requested
    term = os.environ.get("TERM", "")
    return "ansi-dark" if term in _SIXTEEN_COLOURS and not os.environ.get("COLORTERM") else "cockpit"
