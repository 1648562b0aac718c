"""Tokens as text while they come: a piece is whole characters, and the pieces together are the text of all tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
_MOST_WAITING = 12
"""Tokens after which a text that ends in the middle of a character is shown nevertheless: it may have none."""


class TextStream:
    """Decodes tokens with those before them, because the text of a token depends on its neighbours.

    Args:
        decode: the text of ids, without control tokens.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._context = 0
        self._shown = 0

    def add(self, token: int) -> str:
        """More text after one more token; empty while a character is not complete."""
        self._ids.append(token)
        known = self._decode(self._ids[self._context : self._shown]) if self._shown > self._context else ""
        text = self._decode(self._ids[self._context :])
        waiting = len(self._ids) - self._shown
        if len(text) <= len(known) or (text.endswith(_BROKEN) and waiting < _MOST_WAITING):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return text[len(known) :]
