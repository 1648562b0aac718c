"""The ids of a text from those of its words, which are remembered: most words of a text were there before.

A tokenizer merges neighbours until nothing merges. Where no token joins two characters, or where its pattern always
divides, the ids of a text are those of its parts one after another, and a part that is known is looked up. That is
proven from the tokenizer's own file for two forms (`of_pieces`, `of_bytes`); others encode every text as a whole.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np

from engines.data.special_pieces import SPACE_MARK
from engines.data.words.byte_level import ALPHABET, ByteLevel, bytes_of
from engines.data.words.division import MergedWords, PatternWords
from engines.data.words.stand_ins import StandIns
from engines.data.words.word_arrays import EncodeAll, Ids, WordArrays
from engines.data.words.word_cuts import cuts_of_gpt2, cuts_of_words, parted_pairs

MOST_WORDS = 1 << 18
"""Words that are remembered; then all are forgotten. With their ids they take about 50 MB."""
LONGEST_WORD = 64
"""Characters of a word that is remembered; longer ones are rarely seen again."""
_CUT = re.compile(r"(?<=\S\n)(?=\S)")
"""Between a line and the next one, without a blank on either side: every known pattern divides here, whatever follows
and precedes."""
_UNSURE = re.compile(r"[^\x00-\x1b\x20-\x7f]")
"""Characters whose class differs between libraries and versions of Unicode, and ASCII's four separators."""

_WORD, _END = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PATTERNS = {
    _WORD + r"\p{N}" + _SIGNS + _END: _WORD + r"\p{N}" + _SIGNS + _END,
    _WORD + r"\p{N}{1,3}" + _SIGNS + _END: _WORD + r"\p{N}{1,3}" + _SIGNS + _END,
    "gpt-2": _GPT2,
    "digits, gpt-2": r"\p{N}|" + _GPT2.replace(r"| ?\p{N}+", "").replace(r"|\s+(?!\S)", r"|\s+(?=\p{N})|\s+(?!\S)"),
}
"""By the structure of a pre-tokenizer, the pattern that divides a text of `_UNSURE` free characters as it does. The
last one isolates digits first, so blanks before a digit are a word."""


_CUTS = {
    _WORD + r"\p{N}" + _SIGNS + _END: cuts_of_words(digits=1),
    _WORD + r"\p{N}{1,3}" + _SIGNS + _END: cuts_of_words(digits=3),
    "gpt-2": cuts_of_gpt2(digits_alone=False),
    "digits, gpt-2": cuts_of_gpt2(digits_alone=True),
}
"""The same words, in arrays."""


class WordIds:
    """Encodes texts by their words."""

    def __init__(
        self,
        words: re.Pattern[str],
        encode_all: EncodeAll,
        *,
        unsure: re.Pattern[str],
        otherwise: re.Pattern[str] | None = None,
        blank: str | None = None,
        word_arrays: WordArrays | None = None,
    ) -> None:
        """Begin without known words.

        Args:
            words: divides a text into words, which join to the text.
            encode_all: the tokenizer.
            unsure: characters for which `words` is not proven.
            otherwise: divides a text with such characters; without it, lines with one are encoded by the tokenizer.
            blank: a character that the tokenizer reads as a space.
            word_arrays: encodes the texts that it takes, faster.
        """
        self._words = words
        self._encode_all = encode_all
        self._unsure = unsure
        self._otherwise = otherwise
        self._blank = blank
        self._arrays = word_arrays
        self._known: dict[str, bytes] = {}

    def encode_all(self, texts: Sequence[str]) -> list[Ids]:
        """The ids that the tokenizer has for each of several texts."""
        if self._arrays is None:
            return [self.encode(text) for text in texts]
        if self._blank is not None:
            texts = [text.replace(self._blank, " ") for text in texts]
        taken = [self._arrays.takes(text) for text in texts]
        found = iter(self._arrays.encode([text for text, is_taken in zip(texts, taken, strict=True) if is_taken]))
        return [next(found) if is_taken else self.encode(text) for text, is_taken in zip(texts, taken, strict=True)]

    def encode(self, text: str) -> Ids:
        """The ids that the tokenizer has for the text."""
        if self._blank is not None:
            text = text.replace(self._blank, " ")
        if self._unsure.search(text) is None:
            return self._of_words(self._words.findall(text))
        if self._otherwise is not None:
            return self._of_words(self._otherwise.findall(text))
        lines = groupby(_CUT.split(text), lambda line: self._unsure.search(line) is None)
        return np.concatenate([self._of_lines("".join(part), sure=sure) for sure, part in lines])

    def _of_lines(self, text: str, *, sure: bool) -> Ids:
        if sure:
            return self._of_words(self._words.findall(text))
        (ids,) = self._encode_all([text])
        return np.array(ids, dtype=np.uint32)

    def _of_words(self, words: list[str]) -> Ids:
        if len(self._known) > MOST_WORDS:
            self._known = {}
        known = self._known
        new = list(set(words).difference(known))
        if new:
            for word, ids in zip(new, self._encode_all(new), strict=True):
                known[word] = array("I", ids).tobytes()
        joined = b"".join(map(known.__getitem__, words))
        for word in new:
            if len(word) > LONGEST_WORD:
                del known[word]
        return np.frombuffer(joined, dtype=np.uint32)


def of_pieces(model: Any, encode_all: EncodeAll) -> WordIds | None:
    """For a SentencePiece BPE model whose pieces have blanks only at their beginning; None for another.

    A word is blanks and what follows them up to the next blank, or up to the end of a line where no piece joins the
    line end to the next character.

    Args:
        model: the parsed `ModelProto`.
        encode_all: the tokenizer.
    """
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    plain = not (
        normalizer.add_dummy_prefix or normalizer.remove_extra_whitespaces or normalizer.precompiled_charsmap
        or trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces
    )  # fmt: skip
    if trainer.model_type != 2 or not trainer.byte_fallback or not plain:
        return None
    if any(piece.type == piece.USER_DEFINED for piece in model.pieces):
        return None
    pieces = [piece.piece for piece in model.pieces if piece.type == piece.NORMAL]
    if any(SPACE_MARK in piece.lstrip(SPACE_MARK) for piece in pieces):
        return None
    lines = [piece for piece in pieces if "\n" in piece]
    after = {piece[at + 1] for piece in lines for at in range(len(piece) - 1) if piece[at] == "\n"}
    joined = "".join(re.escape(one) for one in sorted(after | {"\n"}))
    coarse = _words_of_lines("[^ \\n]", joined)
    spelled = [piece.replace(SPACE_MARK, " ") for piece in pieces]
    whole = WordArrays(MergedWords(spelled), lambda words: encode_all([word.decode() for word in words]))
    together = SPACE_MARK.join(pieces)  # neither pattern matches beside it
    if _LETTER_BESIDE_SIGN.search(together):
        return WordIds(coarse, encode_all, unsure=_NEVER, blank=SPACE_MARK, word_arrays=whole)
    alone = not _DIGIT_BESIDE.search(together)
    signs = _words_of_lines(f"[^ \\na-zA-Z{'0-9' if alone else ''}]", joined)
    fine = re.compile(f" *[a-zA-Z]+|{' *[0-9]|' if alone else ''}{signs.pattern}")
    return WordIds(fine, encode_all, unsure=_NOT_ASCII, otherwise=coarse, blank=SPACE_MARK, word_arrays=whole)


_LETTER_BESIDE_SIGN = re.compile(r"[a-zA-Z][\x00-@\[-`{-\x7f]|[\x00-@\[-`{-\x7f][a-zA-Z]")
_DIGIT_BESIDE = re.compile(rf"[0-9][^{SPACE_MARK}]|[^{SPACE_MARK}][0-9]")
_NOT_ASCII, _NEVER = re.compile(r"[^\x00-\x7f]"), re.compile(r"(?!)")


def _words_of_lines(one: str, joined: str) -> re.Pattern[str]:
    """Blanks and the characters of a class `one` after them; a line end with its neighbours as far as a piece may join
    it to one of the characters `joined` behind it."""
    return re.compile(rf" *{one}+(?:\n(?=[{joined}]){one}*)*\n?| *\n(?:(?=[{joined}]){one}*\n?)*| +")


def of_bytes(content: dict[str, Any], encode_all: EncodeAll, steps: ByteLevel) -> WordIds | None:
    """For byte-level BPE with a known pattern; None for another tokenizer.json.

    Args:
        content: the file's content.
        encode_all: the tokenizer, for which names of special tokens are text.
        steps: its steps.
    """
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or "merges" not in model or any(model.get(name) for name in _OTHER_MERGES):
        return None
    if (content.get("normalizer") or {"type": "NFC"}).get("type") != "NFC":  # it does not change ASCII
        return None
    if any(not token.get("special") for token in content.get("added_tokens") or []):  # found in text before the pattern
        return None
    structure = _structure(content.get("pre_tokenizer") or {})
    pattern = _PATTERNS.get(structure)
    if pattern is None:
        return None
    unspelled = b"".join(bytes_of(ALPHABET - model["vocab"].keys()))
    parted = parted_pairs(bytes_of(model["vocab"]), unspelled)
    words = PatternWords(_CUTS[structure], parted, StandIns(steps))
    whole = WordArrays(words, steps.encode_words)
    return WordIds(re.compile(_of_ascii(pattern)), encode_all, unsure=_UNSURE, word_arrays=whole)


_OTHER_MERGES = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback")


def _structure(given: dict[str, Any]) -> str:
    """The key in `_PATTERNS` of a pre-tokenizer, if it has one."""
    parts = given.get("pretokenizers", []) if given.get("type") == "Sequence" else [given]
    kinds = [part.get("type") for part in parts]
    if not kinds or kinds[-1] != "ByteLevel" or parts[-1].get("add_prefix_space"):
        return ""
    of_its_own = bool(parts[-1].get("use_regex", True))
    if kinds == ["Split", "ByteLevel"] and not of_its_own:
        isolated = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
        return str(parts[0].get("pattern", {}).get("Regex")) if isolated else ""
    if kinds == ["ByteLevel"] and of_its_own:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and of_its_own and parts[0].get("individual_digits"):
        return "digits, gpt-2"
    return ""


def _of_ascii(pattern: str) -> str:
    r"""A pattern with ASCII's classes in the place of `\p{L}`, `\p{N}`, `\s` and `\S`."""
    blanks = r" \t\n\v\f\r"
    inside = {r"\p{L}": "a-zA-Z", r"\p{N}": "0-9", r"\s": blanks}
    pattern = re.sub(r"\[\^?[^]]*\]", lambda found: _replaced(found[0], inside), pattern)
    return _replaced(pattern, {name: f"[{letters}]" for name, letters in inside.items()} | {r"\S": f"[^{blanks}]"})


def _replaced(text: str, by: dict[str, str]) -> str:
    for name, letters in by.items():
        text = text.replace(name, letters)
    return text


class Arrays:
    """The ids of texts as arrays, by their words where that gives the same ids."""

    def __init__(self, words: WordIds | None, encode_all: EncodeAll, tried: Sequence[str]) -> None:
        """Take the words' encoder if it gives some texts the tokenizer's ids, as it must.

        Args:
            words: the encoder by words; None without one.
            encode_all: the tokenizer.
            tried: texts that both encode first.
        """
        self._encode_all = encode_all
        self._words = words
        if words is not None:
            alike = zip(words.encode_all(tried), map(words.encode, tried), encode_all(tried), strict=True)
            self._words = words if all(one.tolist() == two.tolist() == ids for one, two, ids in alike) else None

    def __call__(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text."""
        if self._words is not None:
            return self._words.encode_all(texts)
        return [np.array(ids, dtype=np.uint32) for ids in self._encode_all(texts)]
