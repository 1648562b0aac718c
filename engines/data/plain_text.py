"""Reads plain text files, so that a comparison or a quantization needs no prepared corpus."""

from __future__ import annotations

import codecs
import io
import os
from collections.abc import Iterator
from pathlib import Path

from engines.files import open_regular

BLOCK_CHARACTERS = 4096
"""Files are read in blocks of complete lines of about this size, so that one large file has texts for every use."""
LONGEST_LINE = 64 * 1024
SNIFFED_BYTES = 8192


def plain_blocks(place: Path) -> Iterator[str]:
    """Blocks of a text file, or of every text file in a folder and below it, by name; hidden ones are skipped."""
    for file in [place] if place.is_file() else _files(place):
        if is_text(file):
            yield from _blocks(file)


def is_text(file: Path) -> bool:
    """Whether the beginning of a file is UTF-8 text."""
    try:
        with open_regular(file) as opened:
            start = opened.read(SNIFFED_BYTES)
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except (OSError, UnicodeDecodeError):
        return False
    return bool(start) and b"\0" not in start


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths = (Path(root, name) for name in sorted(names) if not name.startswith("."))
        yield from (path for path in paths if path.is_file())  # not a pipe, which would block


def _blocks(file: Path) -> Iterator[str]:
    lines: list[str] = []
    size = 0
    with io.TextIOWrapper(open_regular(file), encoding="utf-8", errors="replace", newline="") as opened:
        while line := opened.readline(LONGEST_LINE):
            lines.append(line)
            size += len(line)
            if size >= BLOCK_CHARACTERS:
                yield "".join(lines)
                lines, size = [], 0
    if "".join(lines).strip():
        yield "".join(lines)
