"""Values and keys as TOML on one line, for edits of recipes, generated recipes and messages."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date, time
from typing import Any

from recipes.quantities import exact

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def spell(value: Any) -> str:
    """A value as TOML on one line; numbers are short (2e-4), and a float reads back as a float (32.0).

    Raises:
        TypeError: TOML cannot express the value.
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return exact(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, str):
        return spell_text(value)
    if isinstance(value, Mapping):
        inner = ", ".join(f"{spell_key(str(key))} = {spell(item)}" for key, item in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(spell(item) for item in value) + "]"
    raise TypeError(f"a recipe cannot contain a value of type {type(value).__name__}")


def spell_text(text: str) -> str:
    """Text as a basic string; quotes, control characters and other characters that do not print are escaped."""
    return '"' + "".join(_character(char) for char in text) + '"'


def spell_key(*parts: str | int) -> str:
    """A key, dotted if it has several parts; a part that is not a bare key is quoted."""
    words = [str(part) for part in parts]
    return ".".join(word if _BARE_KEY.fullmatch(word) else spell_text(word) for word in words)


def _float(value: float) -> str:
    text = exact(value)
    return f"{text}.0" if math.isfinite(value) and "." not in text and "e" not in text else text


def _character(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    code = ord(char)
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"
