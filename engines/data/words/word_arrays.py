"""The ids of texts from those of their words, with all words of many texts looked up at once.

What `word_ids` does word by word, in arrays: where words begin, whether they are known, and their ids. A word is known
by its bytes, not by a hash of them, so the ids are those of the tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt

from engines.data.words.division import Words
from engines.data.words.word_cuts import Flags, Places

Ids = npt.NDArray[np.uint32]
EncodeAll = Callable[[Sequence[str]], list[list[int]]]
"""The tokenizer itself: the ids of each of several texts."""
EncodeWords = Callable[[Sequence[bytes]], list[list[int]]]
"""The ids of each of several words."""
Keys = tuple[npt.NDArray[np.uint64], ...]
MOST_WORDS = 1 << 18
"""Words that are remembered; then all are forgotten. With their ids they take about 20 MB."""
_SLOTS_BITS = 19
_KEYS = 3
_KEY_BYTES = 8 * _KEYS
LONGEST_WORD = _KEY_BYTES - 1
"""Characters of a word that is remembered: its last key ends with its length."""
_BLOCK_WORDS, _FIRST_WORDS = 1 << 18, 1 << 13
"""Words that are looked up at a time, at most and in the beginning."""
_MASKS = [
    np.array([(1 << 8 * min(max(size - 8 * number, 0), 8)) - 1 for size in range(_KEY_BYTES + 1)], dtype="<u8")
    for number in range(_KEYS)
]
_MASKS[-1] &= np.uint64((1 << 56) - 1)
"""By the bytes of a word, which bits of its numbers it has; the last byte of the last one is its length."""
_FACTORS = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype="<u8")


class WordArrays:
    """Encodes texts."""

    def __init__(self, words: Words, encode_words: EncodeWords) -> None:
        """Begin without known words.

        Args:
            words: where words begin: the ids of a text are those of its words, one after another.
            encode_words: the ids of words, by the tokenizer.
        """
        self._words = words
        self._encode_words = encode_words
        self._table = _Table()

    def takes(self, text: str) -> bool:
        """Whether words of the text can be found here."""
        return self._words.take(text)

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids that the tokenizer has for each of several texts that are taken."""
        encoded = [text.encode() for text in texts]
        data = b"".join(encoded)
        lasts = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        if not data:
            return [np.zeros(0, dtype=np.uint32) for _ in texts]
        starts = np.flatnonzero(self._words.begin(texts, data, lasts))
        sizes = np.diff(starts, append=len(data))
        padded = data + bytes(_KEY_BYTES)
        parts, at = [], 0
        while at < len(starts):
            # Words of a block that are not known are handled one by one, repeated ones too: begin with few.
            block = slice(at, at + min(_BLOCK_WORDS, _FIRST_WORDS + self._table.known))
            parts.append(self._of_words(padded, starts[block], sizes[block]))
            at = block.stop
        ids = np.concatenate([part for part, _ in parts])
        before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(np.concatenate([count for _, count in parts]))])
        return np.split(ids, before[np.searchsorted(starts, lasts[:-1])])

    def _of_words(self, data: bytes, starts: Places, sizes: Places) -> tuple[Ids, Places]:
        """The ids of words one after another, and the number of each word's ids."""
        table = self._table
        if table.known >= MOST_WORDS:
            table = self._table = _Table()
        keys = _keys(data, starts, sizes)
        rows = table.find(keys)
        rows[sizes > LONGEST_WORD] = -1
        missing = np.flatnonzero(rows < 0)
        if missing.size:
            places = zip(starts[missing].tolist(), (starts + sizes)[missing].tolist(), strict=True)
            words = [data[start:end] for start, end in places]
            new = list(dict.fromkeys(words))
            first = table.add(self._encode_words(new))
            numbers = dict(zip(new, range(first, first + len(new)), strict=True))
            rows[missing] = list(map(numbers.__getitem__, words))
        ids, counts = table.ids_of(rows)
        if missing.size:
            short = missing[sizes[missing] <= LONGEST_WORD]
            table.remember(tuple(key[short] for key in keys), rows[short])
        return ids, counts


class _Table:
    """The ids of words by number, and the numbers of those that are remembered by their keys."""

    def __init__(self) -> None:
        self.known = 0
        self._slot_keys = [np.zeros(1 << _SLOTS_BITS, dtype="<u8") for _ in range(_KEYS)]
        self._slot_rows = np.full(1 << _SLOTS_BITS, -1, dtype=np.int32)
        self._begins = np.zeros(0, dtype=np.int64)
        self._counts = np.zeros(0, dtype=np.int64)
        self._ids = np.zeros(0, dtype=np.uint32)

    def find(self, keys: Keys) -> Places:
        """The numbers of words; -1 for one that is not known."""
        slots = _slots(keys)
        rows = self._slot_rows[slots].astype(np.int64)
        open_ones = np.flatnonzero((rows >= 0) & ~self._has(slots, keys))
        while open_ones.size:  # another word's slot: look at the next one
            slots[open_ones] = (slots[open_ones] + 1) & ((1 << _SLOTS_BITS) - 1)
            there, own = slots[open_ones], tuple(key[open_ones] for key in keys)
            rows[open_ones] = self._slot_rows[there]
            open_ones = open_ones[(rows[open_ones] >= 0) & ~self._has(there, own)]
        return rows

    def _has(self, slots: Places, keys: Keys) -> Flags:
        same: Flags = self._slot_keys[0][slots] == keys[0]
        same &= self._slot_keys[-1][slots] == keys[-1]
        for number in range(1, _KEYS - 1):  # a word of the same length has 0 there too, unless it is so long
            longer = np.flatnonzero(keys[-1] > np.uint64(8 * number + 1 << 56) - np.uint64(1))
            same[longer] &= self._slot_keys[number][slots[longer]] == keys[number][longer]
        return same

    def add(self, ids: list[list[int]]) -> int:
        """Take the ids of new words; the number of the first. The last ones may not be remembered."""
        first = self.known
        counts = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        flat = np.fromiter(chain.from_iterable(ids), dtype=np.uint32, count=int(counts.sum()))
        used = int(self._begins[first - 1] + self._counts[first - 1]) if first else 0
        self._ids = np.concatenate([self._ids[:used], flat])
        self._begins = np.concatenate([self._begins[:first], used + np.cumsum(counts) - counts])
        self._counts = np.concatenate([self._counts[:first], counts])
        return first

    def ids_of(self, rows: Places) -> tuple[Ids, Places]:
        """The ids of numbered words one after another, and how many each has."""
        counts = self._counts[rows]
        ends = np.cumsum(counts)
        places = np.arange(ends[-1] if ends.size else 0)
        places += np.repeat(self._begins[rows] - ends + counts, counts)
        return self._ids[places], counts

    def remember(self, keys: Keys, rows: Places) -> None:
        """Find these words from now on; `rows` may name a word more than once."""
        rows, firsts = np.unique(rows, return_index=True)
        rows, firsts = rows[rows < MOST_WORDS], firsts[rows < MOST_WORDS]
        own = tuple(key[firsts] for key in keys)
        slots, left = _slots(own), np.arange(len(rows))
        while left.size:
            free = left[self._slot_rows[slots[left]] < 0]
            _, winners = np.unique(slots[free], return_index=True)
            placed = free[winners]
            self._slot_rows[slots[placed]] = rows[placed]
            for place, key in zip(self._slot_keys, own, strict=True):
                place[slots[placed]] = key[placed]
            left = np.setdiff1d(left, placed, assume_unique=True)
            slots[left] = (slots[left] + 1) & ((1 << _SLOTS_BITS) - 1)
        self.known = min(MOST_WORDS, len(self._counts))


def _keys(data: bytes, starts: Places, sizes: Places) -> Keys:
    """The bytes of words as numbers of 8 bytes each, the last with the word's length; of longer words, something."""
    windows = np.ndarray((len(data) - 7,), dtype="<u8", buffer=data, strides=(1,))
    short = np.minimum(sizes, _KEY_BYTES)
    keys = [windows[starts] & _MASKS[0][short]]
    for number, masks in enumerate(_MASKS[1:], start=1):  # few words are so long
        key = np.zeros(len(starts), dtype="<u8")
        longer = np.flatnonzero(sizes > 8 * number)
        key[longer] = windows[starts[longer] + 8 * number] & masks[short[longer]]
        keys.append(key)
    keys[-1] |= short.astype("<u8") << np.uint64(56)
    return tuple(keys)


def _slots(keys: Keys) -> Places:
    mixed = keys[0] * _FACTORS[0]
    for key, factor in zip(keys[1:], _FACTORS[1:], strict=True):
        mixed ^= key * factor
    mixed ^= mixed >> np.uint64(29)
    return (mixed * _FACTORS[0] >> np.uint64(64 - _SLOTS_BITS)).astype(np.int64)
