"""Characters beyond ASCII by the ASCII character that a byte-level pattern treats as it treats them.

The known patterns ask of a character whether it is a letter, a number, a blank or a sign. Libraries and versions of
Unicode differ in that, so the tokenizer itself is asked: it divides a short text with the character, and the same text
with one of each kind. Where both are divided alike, a rule for ASCII divides any text with the character as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from engines.data.words.byte_level import ByteLevel
from engines.data.words.word_cuts import Codes, characters

_KINDS = "x0\t!"
"""A letter, a number, a blank and a sign; no word with an apostrophe has this letter."""
_TRIED = (
    "{0}{0} {0}a{0}1{0}!{0}\n{0}\t{0} {0}  {0}\r{0}\n\n{0} \n {0}aa1{0}{0}!!{0}{0}{0}{0}11 {0} {0}{0} a"
    "'{0}a 'r{0}a 'v{0}a 'l{0}a '{0}ea '{0}la"
)
"""The character next to all that a pattern distinguishes, and in contractions: a pattern without case reads
U+017F as an s."""
_CHARACTERS = 0x110000
_NOT_ASKED, _UNKNOWN = 0xFF, 0xFE
_SEPARATORS = "\x1c\x1d\x1e\x1f"
"""ASCII's separators: libraries differ in whether they are blanks."""


class StandIns:
    """The stand-ins of characters, asked once each."""

    def __init__(self, tokenizer: ByteLevel) -> None:
        """Begin with ASCII, whose characters stand for themselves."""
        self._tokenizer = tokenizer
        self._table = np.full(_CHARACTERS, _NOT_ASKED, dtype=np.uint8)
        self._table[:128] = np.arange(128)
        self._table[list(map(ord, _SEPARATORS))] = _NOT_ASKED

    def know(self, text: str) -> bool:
        """Whether each character of the text has a stand-in, and the tokenizer does not normalize the text."""
        if text.isascii() and not any(one in text for one in _SEPARATORS):
            return True
        codes = characters(text)
        found = self._table[codes]
        if found.size and int(found.max()) >= _UNKNOWN:
            for character in {text[at] for at in np.flatnonzero(found == _NOT_ASKED).tolist()}:
                self._table[ord(character)] = self._ask(character)
            if int(self._table[codes].max()) == _UNKNOWN:
                return False
        return self._tokenizer.keeps(text)

    def read(self, texts: Sequence[str]) -> Codes:
        """One stand-in for each character of texts that are known, one text after another."""
        codes: Codes = self._table[characters("".join(texts))]
        return codes

    def _ask(self, character: str) -> int:
        if not self._tokenizer.keeps(character):
            return _UNKNOWN
        sizes = tuple(self._tokenizer.divide(_TRIED.format(character)))
        return self._kinds[len(character.encode())].get(sizes, _UNKNOWN)

    @cached_property
    def _kinds(self) -> dict[int, dict[tuple[int, ...], int]]:
        """By the bytes of a character: the sizes of the tried text's words with one of a kind, and the kind."""
        found: dict[int, dict[tuple[int, ...], int]] = {}
        for size in range(1, 5):
            before = [0, *accumulate(size if one == "{0}" else 1 for one in re.findall(r"\{0\}|[^{]", _TRIED))]
            ends = {kind: accumulate(self._tokenizer.divide(_TRIED.format(kind)), initial=0) for kind in _KINDS}
            found[size] = {
                tuple(before[end] - before[start] for start, end in pairwise(places)): ord(kind)
                for kind, places in ends.items()
            }
        return found
