"""Reads a recipe file as TOML data; a file that cannot be read is one problem with its position."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipes.problems import OperatorError, Problem, RecipeError
from recipes.quantities import size
from recipes.toml_scan import Positions, ScanError, TomlIndex, scan

MAX_BYTES = 256 * 1024


def read_text(path: Path) -> str:
    """The text of a recipe file.

    Raises:
        OperatorError: the file does not exist or cannot be read.
        RecipeError: the file is too large or not UTF-8.
    """
    try:
        if path.is_dir():
            raise OperatorError(f"{path}: this is a folder, not a recipe", "name a .toml file in this folder")
        if path.exists() and not path.is_file():
            raise OperatorError(f"{path}: this is not a regular file", "name a .toml file")
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise OperatorError(f"{path}: there is no such file", "`cockpit` lists the shipped recipes") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise OperatorError(f"{str(path)!r}: cannot be read: {reason}") from None
    return decode(raw, path)


def decode(raw: bytes, path: Path | str) -> str:
    """Bytes of a recipe as text.

    Raises:
        RecipeError: the text is too large, or not UTF-8 (with the line of the first wrong byte).
    """
    if len(raw) > MAX_BYTES:
        raise RecipeError([Problem(path, 1, "", "too large for a recipe", "", f"at most {size(MAX_BYTES)}")])
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise RecipeError(
            [Problem(path, 1, "", "this file is UTF-16", "", "UTF-8 without a byte-order mark", column=1)]
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        column = error.start - (before.rfind(b"\n") + 1) + 1
        byte = f"byte 0x{raw[error.start]:02x}"
        problem = Problem(path, before.count(b"\n") + 1, "", "not UTF-8 text", byte, "UTF-8", column=column)
        raise RecipeError([problem]) from None


def parse(text: str, path: Path | str) -> tuple[dict[str, Any], TomlIndex]:
    """TOML data and the position of every key.

    Raises:
        RecipeError: one problem with its position: the text is not TOML or exceeds a limit.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise RecipeError([Problem(path, 1, "", "too large for a recipe", "", f"at most {size(MAX_BYTES)}")])
    positions = Positions(text)

    def refuse(offset: int, message: str, allowed: str = "") -> RecipeError:
        line, column = positions.line(offset), positions.column(offset)
        return RecipeError([Problem(path, line, "", message, "", allowed, column=column)])

    if text.startswith("\ufeff"):
        raise refuse(0, "the file starts with a byte-order mark", "UTF-8 without a byte-order mark")
    if "\0" in text:
        raise refuse(text.index("\0"), "a NUL character: this is not a text file")
    try:
        index = scan(text)
    except ScanError as error:
        if error.hostile:
            raise refuse(error.position, f"limit exceeded: {error.message}") from None
        end = text.find("\n", error.position)
        # The text that was scanned is within the limits, so the parser may read it: its messages are better.
        _decoded(text if end < 0 else text[: end + 1], refuse, error.position)
        raise refuse(error.position, f"not TOML: {error.message}") from None
    return _decoded(text, refuse), index


def _decoded(text: str, refuse: Callable[[int, str], RecipeError], stopped: int | None = None) -> dict[str, Any]:
    """Parse text. `stopped` is where the scanner stopped, which is more exact than "at end of document"."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", str(error), re.DOTALL)
        message = found.group(1) if found else str(error)
        if found and found.group(2):
            line, column = int(found.group(2)), int(found.group(3))
            offset = _offset(text, line, column)
        else:
            end = len(text.rstrip("\r\n"))
            offset = end if stopped is None else min(stopped, end)
        raise refuse(min(offset, len(text)), f"not TOML: {message[0].lower()}{message[1:]}") from None
    except (ValueError, RecursionError):
        raise refuse(0, "not TOML: a value cannot be parsed") from None


def _offset(text: str, line: int, column: int) -> int:
    start = 0
    for _ in range(line - 1):
        start = text.find("\n", start) + 1
    return start + column - 1
