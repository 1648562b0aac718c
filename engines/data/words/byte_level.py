"""What a byte-level tokenizer.json does with a text, step by step: normalize it, divide it, and encode a word.

A piece of such a vocabulary spells a byte as one character: printable ones of Latin-1 as themselves, the others from
U+0100 on (Radford et al. 2019, GPT-2, `bytes_to_unicode` of its encoder).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(0x100) if byte not in _PRINTABLE)
_SPELLED = {byte: byte for byte in _PRINTABLE} | {byte: 0x100 + number for number, byte in enumerate(_OTHERS)}
_BYTES = {character: byte for byte, character in _SPELLED.items()}
ALPHABET = frozenset(map(chr, _BYTES))
"""The characters that stand for the 256 bytes."""


def bytes_of(pieces: Iterable[str]) -> Iterator[bytes]:
    """The bytes that pieces stand for; a piece with another character is left out: no text has it."""
    for piece in pieces:
        if ALPHABET.issuperset(piece):
            yield piece.translate(_BYTES).encode("latin-1")


class ByteLevel:
    """The steps of a loaded tokenizer whose pre-tokenizer ends with ByteLevel."""

    def __init__(self, tokenizer: Any) -> None:
        """Take the steps of a `tokenizers.Tokenizer`."""
        self._normalizer, self._pre_tokenizer, self._model = (
            tokenizer.normalizer,
            tokenizer.pre_tokenizer,
            tokenizer.model,
        )

    def keeps(self, text: str) -> bool:
        """Whether the text is encoded as it is, and not normalized to another one."""
        return self._normalizer is None or self._normalizer.normalize_str(text) == text

    def divide(self, text: str) -> list[int]:
        """The bytes of each word of a text."""
        return [len(word) for word, _ in self._pre_tokenizer.pre_tokenize_str(text)]

    def encode_words(self, words: Sequence[bytes]) -> list[list[int]]:
        """The ids of words, each by itself: two to three times as fast as texts, which are normalized and divided."""
        tokenize = self._model.tokenize
        return [[token.id for token in tokenize(word.decode("latin-1").translate(_SPELLED))] for word in words]
