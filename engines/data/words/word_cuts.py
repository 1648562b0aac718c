"""Where words begin in texts, as bytes of UTF-8, for tokenizers whose ids of a text are those of its words.

For byte-level BPE these are the words of its pattern, for SentencePiece the parts between which nothing merges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.uint8]
Characters = npt.NDArray[np.uint32]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Cuts = Callable[[Codes, Places], Flags]
"""Whether a word begins at each byte of several texts; the places are those of the texts' first bytes."""


_NO_BYTE = b"\xff"
"""A byte that UTF-8 does not have."""
_CONTINUES = slice(0x80, 0xC0)
"""Bytes of UTF-8 that do not begin a character."""


def parted_pairs(pieces: Iterable[bytes], unspelled: bytes = b"") -> Flags:
    """By two bytes side by side in a text, whether no merge of the vocabulary joins over the place between them.

    Tokens come from merges of neighbours, so nothing merges where no piece has two characters side by side. Pairs of
    bytes stand for characters, which joins more than there is, never less.

    Args:
        pieces: the vocabulary's pieces, as bytes of the text that they stand for.
        unspelled: bytes that the tokenizer leaves out or replaces, so that their neighbours may meet.
    """
    spelled = np.frombuffer(_NO_BYTE.join(pieces), dtype=np.uint8)
    pairs = np.ones((256, 256), dtype=np.bool_)
    pairs[spelled[:-1], spelled[1:]] = False
    pairs[:, _CONTINUES] = False  # within a character
    left_out = np.frombuffer(unspelled, dtype=np.uint8)
    pairs[left_out] = pairs[:, left_out] = False
    return pairs


_PAIRS_BITS = 18


class PartedCharacters:
    """`parted_pairs` of characters, for vocabularies whose pieces are whole characters: a language without blanks has
    thousands, which share their bytes. Pairs with one hash stand for each other, which joins more, never less."""

    def __init__(self, pieces: Iterable[str]) -> None:
        """Take the vocabulary's pieces."""
        self._parted = np.ones(1 << _PAIRS_BITS, dtype=np.bool_)
        codes = characters("\n".join(pieces))
        self._parted[_hashes(codes[:-1], codes[1:])] = False

    def cuts(self, codes: Characters) -> tuple[Places, Flags]:
        """The places before or after characters beyond ASCII, and whether nothing merges over each."""
        beyond = codes >= 0x80
        places = np.flatnonzero(beyond[1:] | beyond[:-1]) + 1
        return places, self._parted[_hashes(codes[places - 1], codes[places])]


def characters(text: str) -> Characters:
    """The code points of a text."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def _hashes(first: Characters, second: Characters) -> Characters:
    mixed = first * np.uint32(0x9E3779B1) + second * np.uint32(0x85EBCA6B)
    return mixed >> np.uint32(32 - _PAIRS_BITS)


_LETTER, _DIGIT, _SIGN, _SPACE, _BLANK, _LINE_END = range(6)
_KINDS = np.array(
    [
        _SPACE if one == " "
        else _LINE_END if one in "\r\n"
        else _BLANK if one in "\t\v\f"
        else _DIGIT if one.isascii() and one.isdigit()
        else _LETTER if one.isascii() and one.isalpha()
        else _SIGN
        for one in map(chr, range(256))
    ],
    dtype=np.uint8,
)  # fmt: skip
_APOSTROPHE = ord("'")


def cuts_of_gpt2(*, digits_alone: bool) -> Cuts:
    """For GPT-2's pattern: 's|'t|'re|'ve|'m|'ll|'d| ?letters| ?digits| ?signs|blanks not before others|blanks.

    Args:
        digits_alone: each digit is isolated first, so no blank is joined to one.
    """

    def cuts(codes: Codes, firsts: Places) -> Flags:
        first = _marked(len(codes), firsts)
        kinds = _KINDS[codes]
        blank = kinds >= _SPACE
        before, here = kinds[:-1], kinds[1:]
        joined = ((before == here) | (before == _SPACE)) & ~blank[1:]
        if digits_alone:
            joined &= here != _DIGIT
        last = _last_blanks(blank, first)
        if digits_alone:
            last[:-1] &= here != _DIGIT
        joined |= blank[:-1] & blank[1:] & ~last[1:]
        return _words(codes, joined, first, any_case=False)

    return cuts


def cuts_of_words(*, digits: int) -> Cuts:
    """For the pattern of Llama 3, Qwen2 and others: 's|…|(a sign or blank)?letters|digits| ?signs and line
    ends|blanks up to a line end|blanks not before others|blanks, where 's and its like have any case.

    Args:
        digits: the most digits of a word.
    """

    def cuts(codes: Codes, firsts: Places) -> Flags:
        size, first = len(codes), _marked(len(codes), firsts)
        kinds = _KINDS[codes]
        blank, line_end, sign = kinds >= _SPACE, kinds == _LINE_END, kinds == _SIGN
        before, here = kinds[:-1], kinds[1:]
        # A sign joins letters if no sign and no space is before it: then a word begins with it.
        alone = sign.copy()
        alone[1:] &= first[1:size] | ((before != _SIGN) & (before != _SPACE))
        joined = (here == _LETTER) & ((before == _LETTER) | (before == _SPACE) | (before == _BLANK) | alone[:-1])
        joined |= sign[1:] & (sign[:-1] | (before == _SPACE))
        if digits > 1:
            joined |= _same_number(kinds == _DIGIT, first, digits)
        # Line ends right after signs belong to them.
        starts = line_end.copy()
        starts[1:] &= ~line_end[:-1] | first[1:size]
        of_signs = np.zeros(size, dtype=np.bool_)
        of_signs[1:] = starts[1:] & sign[:-1] & ~first[1:size]
        of_signs = line_end & of_signs[np.maximum.accumulate(np.where(starts, np.arange(size), 0))]
        joined |= of_signs[1:]
        # Other blanks: up to the last line end, then all but the last one before something that is no blank.
        more = _line_end_follows(blank, line_end, first)
        same = blank[:-1] & blank[1:] & ~of_signs[:-1] & ~of_signs[1:]
        joined |= same & (more[1:] | (~line_end[:-1] & ~_last_blanks(blank, first)[1:]))
        return _words(codes, joined, first, any_case=True)

    return cuts


def _marked(size: int, firsts: Places) -> Flags:
    """The first characters of texts, with room for three behind the last text."""
    first = np.zeros(size + 3, dtype=np.bool_)
    first[firsts] = True
    first[size] = True
    return first


def _last_blanks(blank: Flags, first: Flags) -> Flags:
    """Blanks before something in the same text that is no blank."""
    last = np.zeros(len(blank), dtype=np.bool_)
    last[:-1] = blank[:-1] & ~blank[1:] & ~first[1 : len(blank)]
    return last


def _line_end_follows(blank: Flags, line_end: Flags, first: Flags) -> Flags:
    """Blanks that are a line end, or have one behind them with blanks between."""
    size = len(blank)
    places = np.arange(size)
    next_line_end = np.minimum.accumulate(np.where(line_end, places, size)[::-1])[::-1]
    ends = ~blank | first[1 : size + 1]  # nothing, or the last character of its text
    next_end = np.minimum.accumulate(np.where(ends, places, size)[::-1])[::-1]
    found: Flags = blank & (next_line_end <= next_end)
    return found


def _same_number(digit: Flags, first: Flags, most: int) -> Flags:
    """Digits that continue a word of at most so many, without the first character."""
    size = len(digit)
    starts = digit.copy()
    starts[1:] &= ~digit[:-1] | first[1:size]
    begins = np.maximum.accumulate(np.where(starts, np.arange(size), 0))
    continues: Flags = (digit & ((np.arange(size) - begins) % most != 0))[1:]
    return continues


def _words(codes: Codes, joined: Flags, first: Flags, *, any_case: bool) -> Flags:
    """Where words begin: where nothing is joined, at first characters, and as words with an apostrophe say."""
    size = len(codes)
    found = np.ones(size, dtype=np.bool_)
    found[1:] = ~joined
    found |= first[:size]
    at = np.flatnonzero((codes == _APOSTROPHE) & found)
    padded = np.concatenate([codes, np.zeros(3, dtype=np.uint8)])
    if any_case:
        padded |= 32  # a capital letter as its small one; signs that this changes are no letters before either
    one, two = padded[at + 1], padded[at + 2]
    single = at[np.isin(one, _bytes("stmd")) & ~first[at + 1]]
    pairs = np.zeros(len(at), dtype=np.bool_)
    for letters in ("re", "ve", "ll"):
        pairs |= (one == ord(letters[0])) & (two == ord(letters[1]))
    double = at[pairs & ~first[at + 1] & ~first[at + 2]]
    found[single + 1] = False
    found[double + 1] = found[double + 2] = False
    for ends in (single + 2, double + 3):
        found[ends[ends < size]] = True
    return found


def _bytes(letters: str) -> Codes:
    return np.frombuffer(letters.encode(), dtype=np.uint8)
