"""The recipes that Cockpit ships."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent
_FIRST = "demo"


def shipped_recipes() -> list[Path]:
    """The shipped recipe files of a checkout or an installed wheel: the demonstration first, then by name."""
    return sorted(_FOLDER.glob("*.toml"), key=lambda path: (path.stem != _FIRST, path.stem))


def shipped_recipe(name: str) -> Path | None:
    """The shipped recipe of that name (`demo`), or None."""
    return next((path for path in shipped_recipes() if path.stem == name), None)
