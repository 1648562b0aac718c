"""Finds llama.cpp's pre-tokenizer for a tokenizer.json by its structure, not by a list of known models."""

from __future__ import annotations

import json
from typing import Any

from recipes.problems import OperatorError, printable, shown

_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
_WORDS = _SHORT + r"[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_UPPER_LOWER = _CASED + r"*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+", _CASED + r"+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
_SLASHES = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {
    (_WORDS + r"\p{N}" + _REST, False): "qwen2",
    (_WORDS + r"\p{N}{1,3}" + _REST, True): "llama-bpe",
    (_WORDS + r"\p{N}{1,3}" + _REST, False): "dbrx",
    (
        _SHORT + r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ): "qwen35",
    ("|".join(part + f"{_SHORT[:-1]}?" for part in _UPPER_LOWER) + r"|\p{N}{1,3}" + _SLASHES, False): "gpt-4o",
    ("|".join(_UPPER_LOWER) + r"|\p{N}" + _SLASHES, True): "tekken",
}
"""llama.cpp's name by the split's pattern and `ignore_merges`: only some of its pre-tokenizers look whole words up in
the vocabulary before they merge."""
_DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
"""DeepSeek-Coder's splits in order; single digits follow."""
_SPLIT_AT_MARKS = frozenset({"gpt-4o", "tekken"})
"""Pre-tokenizers that llama.cpp only approximates: it splits a word at its combining marks."""


def pre_tokenizer_name(tokenizer: dict[str, Any]) -> tuple[str, list[str]]:
    """llama.cpp's name for the pre-tokenizer of a byte-level BPE tokenizer.

    Returns:
        The name for `tokenizer.ggml.pre`, and warnings about what llama.cpp does differently.

    Raises:
        OperatorError: llama.cpp has no counterpart for the structure; the message shows it.
    """
    given = tokenizer.get("pre_tokenizer") or {}
    parts = given.get("pretokenizers", []) if given.get("type") == "Sequence" else [given]
    if any(part.get("type") == "ByteLevel" and part.get("add_prefix_space") for part in parts):
        raise OperatorError(
            "tokenizer.json: add_prefix_space — got true; llama.cpp has no counterpart for byte-level BPE"
        )
    whole_words = bool(tokenizer["model"].get("ignore_merges"))
    name = _name(parts, whole_words)
    if name is None:
        opposite = _name(parts, not whole_words)
        if opposite is not None:
            raise OperatorError(
                f"tokenizer.json: ignore_merges — got {shown(tokenizer['model'].get('ignore_merges', False))}; "
                f"llama.cpp's {opposite} does the opposite"
            )
        raise OperatorError(
            f"tokenizer.json: pre_tokenizer — llama.cpp has no counterpart; got {printable(json.dumps(given), 400)}"
        )
    normalizer = tokenizer.get("normalizer")
    warnings = []
    if normalizer:
        warnings.append(
            f"llama.cpp does not apply the tokenizer's normalizer ({printable(str(normalizer.get('type')))}): text "
            "that it would change gets different token ids"
        )
    if name in _SPLIT_AT_MARKS:
        warnings.append(
            f"llama.cpp's {name} splits a word at its combining marks: text in some scripts (Devanagari, Thai, …) gets "
            "different token ids"
        )
    return name, warnings


def _name(parts: list[dict[str, Any]], whole_words: bool) -> str | None:
    kinds = [part.get("type") for part in parts]
    if (
        kinds == ["Split", "ByteLevel"]
        and not parts[1].get("use_regex", True)
        and parts[0].get("behavior") == "Isolated"
        and not parts[0].get("invert")
    ):
        return _PATTERNS.get((str(parts[0].get("pattern", {}).get("Regex")), whole_words))
    if whole_words:
        return None
    if kinds == ["ByteLevel"] and parts[0].get("use_regex", True):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and parts[0].get("individual_digits") and parts[1].get("use_regex", True):
        return "starcoder"
    if kinds == [*["Split"] * 4, "Digits", "ByteLevel"] and _splits(parts[:4]) == _DEEPSEEK_CODER:
        single = parts[4].get("individual_digits") and not parts[5].get("use_regex", True)
        return "deepseek-coder" if single else None
    return None


def _splits(parts: list[dict[str, Any]]) -> tuple[str, ...] | None:
    """The patterns of splits that isolate their matches; None if a split behaves differently."""
    if any(part.get("behavior") != "Isolated" or part.get("invert") for part in parts):
        return None
    return tuple(str(part.get("pattern", {}).get("Regex")) for part in parts)
