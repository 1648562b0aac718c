"""Licences of source files: the SPDX line or the words of a file's head, else those of the nearest licence file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from engines.data.code.build_files import json_table, part, text_of, toml_table

UNKNOWN = "unknown"
HEAD_CHARS = 6000
_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]{0,8}([A-Za-z0-9.+() \t-]{2,160})")
_NOT_WORDS = re.compile(r"[^a-z0-9.]+")
_TOKEN = re.compile(r"[()]|[A-Za-z0-9.+-]{1,60}")
_SUFFIX = re.compile(r"(-only|-or-later|\+)$")
_WORDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("EPL-2.0", ("eclipse public license", "2.0")),
    ("AGPL-3.0", ("gnu affero general public license version 3",)),
    ("AGPL-3.0", ("gnu affero general public license as published", "version 3")),
    ("LGPL-3.0", ("gnu lesser general public license version 3",)),
    ("LGPL-3.0", ("gnu lesser general public license as published", "version 3")),
    ("LGPL-2.1", ("gnu lesser general public license", "version 2.1")),
    ("GPL-3.0", ("gnu general public license version 3",)),
    ("GPL-3.0", ("gnu general public license as published", "version 3")),
    ("GPL-2.0", ("gnu general public license version 2",)),
    ("GPL-2.0", ("gnu general public license as published", "version 2")),
    ("Artistic-2.0", ("the artistic license 2.0",)),
    ("Apache-2.0", ("apache license version 2.0",)),
    ("BSL-1.0", ("boost software license version 1.0",)),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("Zlib", ("this software is provided as is without any express or implied warranty", "must not be misrepresented")),
    ("ISC", ("permission to use copy modify and or distribute this software for any purpose",)),
    ("MIT", ("permission is hereby granted free of charge to any person obtaining a copy",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote products")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
)
"""A licence has all phrases of its row; the first row that fits counts. Phrases are compared in lower case, without
punctuation."""


def license_of_text(text: str) -> str:
    """The SPDX expression of a licence file or of the head of a source; empty when the text does not name a licence."""
    head = text[:HEAD_CHARS]
    if found := _SPDX.search(head):
        return _expression(found[1])
    words = _NOT_WORDS.sub(" ", head.lower()).replace(". ", " ")
    return next((name for name, phrases in _WORDS if all(phrase in words for phrase in phrases)), "")


def license_of_manifest(name: str, text: str) -> str:
    """The SPDX expression that a package's manifest names; empty for other files, and for words that are no name."""
    if name == "package.json":
        named = json_table(text).get("license")
    elif name == "Cargo.toml":
        named = part(toml_table(text), "package", "license")
    elif name == "pyproject.toml":
        named = part(toml_table(text), "project", "license")
    else:
        return ""
    found = text_of(named.get("text") if isinstance(named, dict) else named)
    return found if _expression(found) == found else ""


def _expression(text: str) -> str:
    """The part of a line that is an SPDX expression, with single spaces: names, joined by AND, OR and WITH."""
    kept: list[str] = []
    for word in _TOKEN.findall(text):
        joins = word in ("AND", "OR", "WITH", "(", ")")
        if kept and not joins and kept[-1] not in ("AND", "OR", "WITH", "("):
            break  # words behind the expression
        kept.append(word)
    return " ".join(kept).replace("( ", "(").replace(" )", ")")


def license_of(path: str, text: str, licenses: Mapping[str, str]) -> str:
    """The licence of a source file: its own, else that of the nearest folder with a licence file; else "unknown".

    Args:
        path: the file, relative to the source.
        text: its text.
        licenses: the licence of each folder that has a licence file; the top is "".
    """
    if own := license_of_text(text):
        return own
    folder = path
    while folder:
        folder = folder.rpartition("/")[0]
        if folder in licenses:
            return licenses[folder] or UNKNOWN
    return UNKNOWN


def is_allowed(expression: str, allowed: Sequence[str]) -> bool:
    """Whether an SPDX expression can be satisfied with the allowed licences: one side of OR, both sides of AND.

    The suffixes -only, -or-later and + do not count, and an exception (WITH) only adds permissions.
    """
    names = {_SUFFIX.sub("", one) for one in allowed}
    tokens = _TOKEN.findall(expression)

    def either(at: int, depth: int) -> tuple[bool, int]:
        value, at = both(at, depth)
        while at < len(tokens) and tokens[at] == "OR":
            other, at = both(at + 1, depth)
            value = value or other
        return value, at

    def both(at: int, depth: int) -> tuple[bool, int]:
        value, at = one(at, depth)
        while at < len(tokens) and tokens[at] == "AND":
            other, at = one(at + 1, depth)
            value = value and other
        return value, at

    def one(at: int, depth: int) -> tuple[bool, int]:
        if at >= len(tokens) or depth > 20:
            return False, len(tokens)
        if tokens[at] == "(":
            value, at = either(at + 1, depth + 1)
            return value, at + 1
        value = _SUFFIX.sub("", tokens[at]) in names
        return (value, at + 3) if tokens[at + 1 : at + 2] == ["WITH"] else (value, at + 1)

    return either(0, 0)[0]
