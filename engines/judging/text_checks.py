"""Checks of an answer's text: exact, normalized, contains."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Any

SHOWN = 80
"""Characters of an answer in a reason."""
_ARTICLES = frozenset({"a", "an", "the"})
_PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}]")


def exact(answer: str, expected: str, _settings: Mapping[str, Any]) -> str:
    """Every character is the expected one; only blanks around the answer do not count. Returns why not, else empty."""
    return "" if answer.strip() == expected.strip() else f"got {shown(answer)}; expected {shown(expected)}"


def normalized(answer: str, expected: str, _settings: Mapping[str, Any]) -> str:
    """As `exact`, without upper case, punctuation, articles (a, an, the) and repeated blanks: the form of SQuAD's
    evaluation."""
    return "" if plain(answer) == plain(expected) else f"got {shown(answer)}; expected {shown(expected)}"


def contains(answer: str, expected: str, settings: Mapping[str, Any]) -> str:
    """Every text of `texts` is in the answer, or the expected answer is; `ignore_case` for any case."""
    texts = settings.get("texts") or [expected]
    fold = str.casefold if settings.get("ignore_case") else str
    within = fold(answer)
    missing = [text for text in texts if fold(text) not in within]
    return f"{shown(missing[0])} is not in the answer" if missing else ""


def plain(text: str) -> str:
    """A text in the form that `normalized` compares."""
    folded = _PUNCTUATION.sub(" ", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(word for word in folded.split() if word not in _ARTICLES)


def shown(text: str) -> str:
    """A text in quotes, shortened, for a reason."""
    cut = " ".join(text[: 4 * SHOWN].split())
    return f'"{cut[:SHOWN]}…"' if len(cut) > SHOWN or len(text) > 4 * SHOWN else f'"{cut}"'
