"""The text of one file that is a document: plain text in a stream, Python sources and pages as a whole."""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from engines.data.readers.lines import encoding_of
from engines.data.sources.html import html_text
from engines.data.sources.man import man_text
from engines.files import open_regular
from engines.inputs.source_tree import LeftOutError, decode_source, is_manual_page, kind_of_file

CHUNK_BYTES = 1 << 20
WHOLE_BYTES = 64 << 20
"""A Python source, an HTML page and a manual page are read as a whole; a longer one is left out."""
_HTML = frozenset({".html", ".htm", ".xhtml"})
_PYTHON = frozenset({".py", ".pyi"})
_CHARSET = re.compile(rb"""charset\s{0,8}=\s{0,8}["']?([a-zA-Z0-9_-]{1,40})""")
_SNIFFED_BYTES = 4096
_DECLARED = (
    "iso-8859-", "iso8859-", "latin", "windows-12", "cp12", "shift_jis", "shift-jis", "sjis", "euc-", "iso-2022-", "gb",
    "big5", "koi8-", "macintosh", "us-ascii",
)  # fmt: skip
"""Encodings that a page may declare: those of browsers. Others of Python's codecs are no encodings of text, or take
time that grows with the square of the length."""


def text_chunks(
    file: Path, max_bytes: int | None, encoding: str | None = None, *, form: str = "auto", follow: bool = False
) -> Iterator[bytes]:
    """The text of a file in UTF-8, in parts, with unchanged line ends; of an HTML page and of a manual page, the text
    without its markup.

    Args:
        file: a regular file; what a name that ends in .gz contains is unpacked.
        max_bytes: a longer file is left out, measured unpacked.
        encoding: of the file, unless a byte-order mark says another; None for UTF-8, or what the file declares.
        form: what the file is: auto by its name, raw for a text, html, or man.
        follow: the file may be a link.

    Raises:
        LeftOutError: with the reason: unreadable, damaged_gzip, too_large, binary or not_utf8. It may come after some
            parts.
    """
    kind = kind_of_file(file.name)
    html = form == "html" or (kind in _HTML and form == "auto")
    man = form == "man" or (form == "auto" and is_manual_page(file))
    if html or man or kind in _PYTHON:
        limit = WHOLE_BYTES if max_bytes is None else min(max_bytes, WHOLE_BYTES)
        data = b"".join(_bytes_of(file, limit, follow))
        if html:
            text = html_text(_decode_html(data, encoding))
        elif man:
            text = man_text(_decode(data, encoding, python=False))
        else:
            text = _decode(data, encoding, python=True)
        yield text.encode()
        return
    yield from _as_utf8(_bytes_of(file, max_bytes, follow), encoding)


def _bytes_of(file: Path, max_bytes: int | None, follow: bool) -> Iterator[bytes]:
    """The bytes of a file in parts, unpacked.

    Raises:
        LeftOutError: unreadable, damaged_gzip or too_large.
    """
    done = 0
    try:
        with open_regular(file, follow=follow) as content:  # since the walk it may have become a link or a pipe
            packed = file.name.lower().endswith(".gz")
            source: gzip.GzipFile | BufferedReader = gzip.GzipFile(fileobj=content) if packed else content
            while chunk := source.read(CHUNK_BYTES):
                done += len(chunk)
                if max_bytes is not None and done > max_bytes:
                    raise LeftOutError("too_large")
                yield chunk
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LeftOutError("damaged_gzip") from error
    except OSError as error:
        raise LeftOutError("unreadable") from error


def _as_utf8(chunks: Iterator[bytes], given: str | None) -> Iterator[bytes]:
    """The same text in UTF-8 without a byte-order mark.

    Raises:
        LeftOutError: binary or not_utf8.
    """
    first = next(chunks, b"")
    encoding, mark = encoding_of(first[:_SNIFFED_BYTES], given)
    first = first[mark:]
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        while first:
            following = next(chunks, b"")
            text = decoder.decode(first, final=not following)
            if "\0" in text:
                raise LeftOutError("binary")
            yield text.encode()
            first = following
    except UnicodeError as error:
        raise LeftOutError("not_utf8") from error


def _decode(data: bytes, given: str | None, *, python: bool) -> str:
    """A text that was read as a whole, in the given encoding or as `decode_source` finds it.

    Raises:
        LeftOutError: binary or not_utf8.
    """
    if given is None:
        return decode_source(data, python=python)
    return b"".join(_as_utf8(iter([data]), given)).decode()


def _decode_html(data: bytes, given: str | None) -> str:
    """A page in the given encoding, by its byte-order mark, as UTF-8, or in the encoding that it declares.

    Raises:
        LeftOutError: binary or not_utf8.
    """
    try:
        return _decode(data, given, python=False)
    except LeftOutError as reason:
        declared = _CHARSET.search(data[:_SNIFFED_BYTES])
        if str(reason) != "not_utf8" or declared is None or given is not None:
            raise
    encoding = declared.group(1).decode("ascii").lower()
    if not encoding.startswith(_DECLARED):
        raise LeftOutError("not_utf8")
    try:
        text = data.decode(encoding)
        text.encode("utf-8")  # some codecs produce lone surrogates, which JSON cannot encode
    except (LookupError, ValueError) as error:
        raise LeftOutError("not_utf8") from error
    return text
