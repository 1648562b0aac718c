"""Text from data, made safe to print or draw.

Data (log lines, model output, paths, names, exceptions) may contain terminal commands, characters that reorder a line,
or invisible characters. A visible substitute replaces each of them. The text then cannot control the terminal or
imitate the screen, and the reader sees where a character was replaced.
"""

from __future__ import annotations

import re
import unicodedata

_CONTROL = {code: chr(0x2400 + code) for code in range(0x20)} | {0x7F: "\u2421"}
_C1 = dict.fromkeys(range(0x80, 0xA0), "\u2426")
_INVISIBLE_CODES = (
    *(0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x3164, 0xFEFF, 0xFFA0),
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xFFF0, 0xFFFC),
    *range(0xE0000, 0xE0080),
)
_INVISIBLE = dict.fromkeys(_INVISIBLE_CODES, "\ufffd")
_TABLE = _CONTROL | _C1 | _INVISIBLE
UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff"
    "\uffa0\ufff0-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
"""One character that must not reach a terminal."""
MAX_COMBINING = 3


def safe_characters(text: str) -> str:
    """The text with every unsafe character replaced by one visible character; the length stays the same."""
    if UNSAFE.search(text) is None:
        return text
    return UNSAFE.sub(lambda match: _TABLE.get(ord(match[0]), "\ufffd"), text)


def safe_text(text: object, limit: int | None = 2000) -> str:
    """One line of safe text.

    A line end becomes a visible arrow, a tab becomes a space, and a visible substitute replaces every other control or
    invisible character. Stacks of combining marks are cut after `MAX_COMBINING`.

    Args:
        text: anything; it is converted with `str`.
        limit: maximum length of the result in characters; a longer text ends with an ellipsis. None for no limit.
    """
    line = str(text)
    if limit is not None and len(line) > limit:
        line = line[: max(0, limit - 1)] + "…"
    if line.isascii() and line.isprintable():
        return line
    line = line.replace("\r\n", "⏎").replace("\n", "⏎").replace("\t", " ")
    line = safe_characters(line)
    return line if line.isascii() else _without_towers(line)


def safe_lines(text: object, limit: int = 200) -> list[str]:
    """The text's lines, each made safe; at most `limit` of them."""
    lines = str(text).replace("\r\n", "\n").split("\n")
    kept = [safe_text(line.rstrip("\r")) for line in lines[:limit]]
    return kept if len(lines) <= limit else [*kept, f"… {len(lines) - limit} more lines"]


def error_text(error: object, hint: object = "") -> str:
    """An error and its hint as they are printed; both may quote names and paths, and have several lines."""
    return "\n".join([*safe_lines(f"cockpit: {error}"), *(f"  {line}" for line in safe_lines(hint) if line)])


def _without_towers(line: str) -> str:
    kept, marks = [], 0
    for character in line:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks <= MAX_COMBINING:
            kept.append(character)
    return "".join(kept)
