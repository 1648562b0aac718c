"""Which texts can be encoded by their words, and where these begin, as bytes of UTF-8."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from engines.data.words.stand_ins import StandIns
from engines.data.words.word_cuts import Codes, Cuts, Flags, PartedCharacters, Places, characters, parted_pairs


class Words(Protocol):
    """A division into words: the ids of a text are those of its words, one after another."""

    def take(self, text: str) -> bool:
        """Whether that is proven for the text."""
        ...

    def begin(self, texts: Sequence[str], data: bytes, lasts: Places) -> Flags:
        """Whether a word begins at each byte.

        Args:
            texts: texts that are taken.
            data: their UTF-8, joined, at least one byte.
            lasts: where each text ends in it.
        """
        ...


class MergedWords:
    """Parts between which no merge of the vocabulary joins anything, in any text."""

    def __init__(self, pieces: Sequence[str]) -> None:
        """Take the vocabulary's pieces, with blanks as blanks."""
        self._parted = parted_pairs(piece.encode() for piece in pieces).reshape(-1)
        self._parted_characters = PartedCharacters(pieces)

    def take(self, text: str) -> bool:
        """Every text."""
        del text
        return True

    def begin(self, texts: Sequence[str], data: bytes, lasts: Places) -> Flags:
        """Where nothing merges, and at the first byte of each text."""
        codes = _codes(data)
        found = np.ones(len(codes), dtype=np.bool_)
        np.take(self._parted, codes[:-1].astype(np.uint16) << np.uint16(8) | codes[1:], out=found[1:])
        found[lasts[lasts < len(codes)]] = True
        if sum(map(len, texts)) < len(data):
            places, parted = self._parted_characters.cuts(characters("".join(texts)))
            found[np.flatnonzero((codes & 0xC0) != 0x80)[places[parted]]] = True
        return found


class PatternWords:
    """Words of a byte-level pattern, and within them the parts between which nothing merges.

    A language that has no blanks between its words has long words by the pattern, which are rarely seen again; its
    characters are."""

    def __init__(self, cuts: Cuts, parted: Flags, stand_ins: StandIns) -> None:
        """Begin without known characters.

        Args:
            cuts: the pattern; reads stand-ins.
            parted: `parted_pairs` of the vocabulary.
            stand_ins: the stand-ins of characters.
        """
        self._cuts = cuts
        self._parted = parted
        self._stand_ins = stand_ins

    def take(self, text: str) -> bool:
        """Texts of characters that the pattern treats as one of ASCII."""
        return self._stand_ins.know(text)

    def begin(self, texts: Sequence[str], data: bytes, lasts: Places) -> Flags:
        """Where the pattern divides, or nothing merges."""
        del lasts
        codes = _codes(data)
        sizes = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        divided = self._cuts(self._stand_ins.read(texts), np.cumsum(sizes) - sizes)
        if len(divided) == len(data):
            return divided
        found = np.zeros(len(data), dtype=np.bool_)
        found[np.flatnonzero((codes & 0xC0) != 0x80)] = divided  # where characters begin
        beyond = np.flatnonzero(codes >= 0x80)
        near = np.concatenate([beyond, beyond + 1])  # within ASCII, almost any two are neighbours in some piece
        near = near[(near > 0) & (near < len(codes))]
        found[near] |= self._parted[codes[near - 1], codes[near]]
        return found


def _codes(data: bytes) -> Codes:
    return np.frombuffer(data, dtype=np.uint8)
