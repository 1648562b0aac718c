"""Reads a model's card (README.md): the licence and the base model in its front matter. Other lines are not read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from engines.files import read_regular_text
from recipes.problems import printable

CARD = "README.md"
LICENSE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md")
"""Files with terms that stay with a model."""
_MAX_BYTES = 4 * 1024 * 1024
_MAX_LINES = 2000
_KEY = re.compile(r"([A-Za-z_]+):[ \t]*(.*)")
_ITEM = re.compile(r"[ \t]*-[ \t]+(.*)")


@dataclass(frozen=True)
class ModelCard:
    """What a card says; empty where it says nothing. Texts are printable, of at most 200 characters."""

    license: str = ""
    license_name: str = ""
    license_link: str = ""
    base_models: tuple[str, ...] = ()


def read_card(folder: Path) -> ModelCard:
    """The card of a model folder; an empty one if the folder has none, or none that can be read."""
    try:
        text = read_regular_text(folder / CARD, _MAX_BYTES, errors="replace")
    except (OSError, ValueError):
        return ModelCard()
    found = _front_matter(text)

    def one(key: str) -> str:
        return (found.get(key) or ("",))[0]

    licence = one("license")
    return ModelCard(licence, one("license_name"), one("license_link"), tuple(found.get("base_model", ())))


def _front_matter(text: str) -> dict[str, list[str]]:
    """The keys at the top of a YAML block between lines of `---`, each with its text or its list of texts."""
    lines = text.splitlines()[:_MAX_LINES]
    if not lines or lines[0].strip() != "---":
        return {}
    found: dict[str, list[str]] = {}
    key = ""
    for line in lines[1:]:
        if line.strip() == "---":
            return found
        if named := _KEY.fullmatch(line):
            key = named[1]
            found[key] = _values(named[2])
        elif key and (item := _ITEM.fullmatch(line)):
            found[key].append(_plain(item[1]))
    return {}  # the block has no end


def _values(text: str) -> list[str]:
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        return [_plain(part) for part in text[1:-1].split(",") if part.strip()]
    return [_plain(text)] if text else []


def _plain(text: str) -> str:
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return printable(text, 200)
