"""Text files of data as lines: packed or not, in the encoding that their first bytes or the recipe name.

A line has a bounded size, so a file without line ends does not fill the memory.
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from engines.data.readers.bad_row import BadRowError
from engines.files import open_regular
from recipes import quantities
from recipes.problems import OperatorError, printable

MAX_ROW_BYTES = 64 * 1024 * 1024
"""The longest line, row or cell. Longer ones are refused by their line."""
GZ = ".gz"
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HEAD_BYTES = 4096
CONVERT = "convert the file from its encoding, such as LATIN1 or WINDOWS-1252: iconv -f LATIN1 -t UTF-8 FILE > NEW"
"""What to do about text whose encoding its bytes do not show."""
_OTHER = {
    b"version https://git-lfs.github.com/spec/": (
        "is a pointer of Git LFS, not the data",
        "fetch the data: git lfs pull, in the checkout",
    ),
    b"\x1f\x8b": ("is packed with gzip", "end its name with .gz, once for each time that it is packed"),
    b"PK\x03\x04": ("is a zip archive", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("is packed with zstd", "unpack it"),
    b"BZh91AY&SY": ("is packed with bzip2", "unpack it"),
}
"""First bytes of files that are no data under any name."""


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked if its name ends with .gz.

    Raises:
        OperatorError: it cannot be read, its packed bytes are damaged, or it changes while it is read.
    """
    try:
        with open_regular(file) as raw:
            before = _identity(raw)
            content = gzip.GzipFile(fileobj=raw) if file.name.endswith(GZ) else raw
            _refuse_other(file, content.peek(_HEAD_BYTES)[:_HEAD_BYTES])
            yield cast("BinaryIO", content)
            if _identity(raw) != before:
                raise OperatorError(f"{file} changed while it was read", "wait until it is written, then start again")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OperatorError(f"{file}: its packed bytes are damaged: {error}", "write the file again") from error
    except OSError as error:
        raise OperatorError(f"{file} cannot be read: {error.strerror or error}") from error


def _refuse_other(file: Path, head: bytes) -> None:
    """Refuse a file that another program has packed, or that only points to the data."""
    found = next((words for mark, words in _OTHER.items() if head.startswith(mark)), None)
    if found is not None:
        raise OperatorError(f"{file} {found[0]}", found[1])


def _identity(raw: io.BufferedReader) -> tuple[int, int]:
    status = os.fstat(raw.fileno())
    return status.st_size, status.st_mtime_ns


def encoding_of(head: bytes, given: str | None) -> tuple[str, int]:
    """The encoding of a file and the number of bytes of its byte-order mark.

    Args:
        head: the file's first bytes.
        given: the recipe's `encoding`; a mark that contradicts it wins, because no text begins with one.
    """
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name, len(mark)
    if given is not None:
        name = codecs.lookup(given).name
        return {"utf-16": "utf-16-le", "utf-32": "utf-32-le", "utf-8-sig": "utf-8"}.get(name, name), 0
    if len(head) >= 4 and head[1] == 0 == head[3] and head[0] and head[2]:
        return "utf-16-le", 0
    if len(head) >= 4 and head[0] == 0 == head[2] and head[1] and head[3]:
        return "utf-16-be", 0
    return "utf-8", 0


@dataclass
class FileNote:
    """What was found out about a file while it was read.

    Attributes:
        container: the kind of file, such as JSON Lines.
        encoding: how its text is encoded, with the mark and the line ends that are unusual; empty for UTF-8.
        quick: reads a line's row at once, if it is of the usual form; the container may use it for lines of UTF-8.
    """

    container: str
    encoding: str = ""
    quick: Callable[[bytes], Any] | None = None


class TextLines:
    """The lines of an open file, with their numbers from 1.

    Attributes:
        encoding: how the file is read.
    """

    def __init__(self, file: BinaryIO, given: str | None, note: FileNote) -> None:
        reader = cast("io.BufferedReader", file)
        head = reader.peek(_HEAD_BYTES)[:_HEAD_BYTES]
        self.encoding, mark = encoding_of(head, given)
        reader.read(mark)
        self._reader = reader
        first, end, _ = head[mark:].decode(self.encoding, "ignore").partition("\n")
        unusual = self.encoding not in {"utf-8", "ascii"} or mark
        words = [self.encoding.upper() + (" with a byte-order mark" if mark else "")] if unusual else []
        note.encoding = ", ".join([*words, *(["CRLF line ends"] if end and first.endswith("\r") else [])])

    def chunks(self, size: int) -> Iterator[str]:
        """The text in pieces of about this many bytes, with its line ends unchanged.

        Raises:
            UnicodeDecodeError: the bytes are not in the encoding.
        """
        decoder = codecs.getincrementaldecoder(self.encoding)()
        while part := self._reader.read(size):
            yield decoder.decode(part)
        yield decoder.decode(b"", final=True)

    def __iter__(self) -> Iterator[tuple[int, str | BadRowError]]:
        """Each line with its number; a `BadRowError` in place of one that cannot be decoded or is too long."""
        if self.encoding.startswith(("utf-16", "utf-32")):
            return self._wide()
        return self._narrow()

    def _narrow(self) -> Iterator[tuple[int, str | BadRowError]]:
        for number, line in self.as_bytes():
            yield number, line if isinstance(line, BadRowError) else self.decoded(line)

    def as_bytes(self) -> Iterator[tuple[int, bytes | BadRowError]]:
        """Each line as bytes, in an encoding in which a line end is one byte."""
        number = 0
        read = self._reader.readline
        while line := read(MAX_ROW_BYTES + 1):
            number += 1
            if len(line) > MAX_ROW_BYTES and not line.endswith(b"\n"):
                self._skip_line()
                yield number, too_long()
            else:
                yield number, line

    def decoded(self, line: bytes) -> str | BadRowError:
        """The text of a line."""
        try:
            return line.decode(self.encoding)
        except UnicodeDecodeError as error:
            return not_text(error, self.encoding)

    def _skip_line(self) -> None:
        while (part := self._reader.readline(1 << 20)) and not part.endswith(b"\n"):
            pass

    def _wide(self) -> Iterator[tuple[int, str | BadRowError]]:
        text = io.TextIOWrapper(self._reader, encoding=self.encoding, newline="\n")
        number = 0
        try:
            while line := text.readline(MAX_ROW_BYTES // 2 + 1):
                number += 1
                if len(line) > MAX_ROW_BYTES // 2 and not line.endswith("\n"):
                    while (part := text.readline(1 << 20)) and not part.endswith("\n"):
                        pass
                    yield number, too_long()
                    continue
                yield number, line
        except UnicodeDecodeError as error:
            yield number + 1, not_text(error, self.encoding)
        finally:
            text.detach()


def too_long() -> BadRowError:
    """The problem of a line or row above `MAX_ROW_BYTES`."""
    size = quantities.size(MAX_ROW_BYTES)
    return BadRowError(f"the row is longer than {size}", "a row is too long", "split the row")


def not_text(error: UnicodeDecodeError, encoding: str) -> BadRowError:
    """The problem of bytes that are not in the encoding."""
    byte = error.object[error.start]
    return BadRowError(
        f"not {printable(encoding, 40).upper()}: byte 0x{byte:02x} at byte {error.start + 1} of the line",
        f"not {printable(encoding, 40).upper()}",
        f'set encoding, such as encoding = "latin-1", or {CONVERT}',
    )
