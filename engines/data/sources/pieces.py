"""Divide a long text at the ends of its paragraphs and lines, in a stream: no more than one piece is in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

MAX_DOCUMENT_BYTES = 1_048_576
"""Longer texts are divided, unless the recipe says another length."""


def pieces_of(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """The pieces of a text; joined, they are the text.

    A piece ends after the last empty line of its second half, else after the last line end there, else after the last
    space there, else between two characters.

    Args:
        chunks: the text in UTF-8; a chunk may end inside a character.
        limit: most bytes of a piece, at least 4.
    """
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        start = 0
        while len(rest) - start > limit:
            end = _cut(rest, start, start + limit)
            yield bytes(rest[start:end])
            start = end
        del rest[:start]
    if rest:
        yield bytes(rest)


def _cut(text: bytearray, start: int, end: int) -> int:
    middle = (start + end) // 2
    paragraph = max(text.rfind(b"\n\n", middle, end) + 2, text.rfind(b"\n\r\n", middle, end) + 3)
    if paragraph > middle:
        return paragraph
    for mark in (b"\n", b" "):
        if (found := text.rfind(mark, middle, end)) >= 0:
            return found + 1
    while text[end] & 0xC0 == 0x80:
        end -= 1
    return end
