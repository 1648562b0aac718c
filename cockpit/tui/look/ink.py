"""Theme colours by name as Rich styles, for text that widgets draw themselves."""

from __future__ import annotations

from rich.color import Color, ColorParseError
from textual.app import App

NAMES = (
    "foreground",
    "primary",
    "secondary",
    "accent",
    "success",
    "warning",
    "error",
    "text-muted",
    "text-disabled",
    "border",
)
PLAIN = {"text-muted": "dim", "text-disabled": "dim"}


def ink(app: App[object]) -> dict[str, str]:
    """Rich styles by theme name; a colour that Rich cannot parse is left to the terminal."""
    variables = app.theme_variables
    return {name: _style(name, variables.get(name, "")) for name in NAMES}


def _style(name: str, value: str) -> str:
    if value.startswith("ansi_"):
        value = value.removeprefix("ansi_")
    try:
        Color.parse(value)
    except ColorParseError:
        return PLAIN.get(name, "")
    return value
