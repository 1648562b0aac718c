"""One definition in a source file: the common form of all languages, from which questions are made."""

from __future__ import annotations

import re
from dataclasses import dataclass

INHERITS = "inherits from"
IMPLEMENTS = "implements"
EMBEDS = "embeds"
REQUIRES = "requires"


@dataclass(frozen=True)
class Definition:
    """A function or a type.

    Attributes:
        noun: what the language calls it, such as class, struct or method.
        name: the qualified name, in the notation of the language; a name that needs its file too is completed by
            `scope`.
        path: the file, relative to the source.
        lines: first and last line, counted from 1, from its first token to its last.
        is_type: whether it is a type and not a function.
        scope: the file, where the language's names do not differ between files; empty otherwise.
        signature: the declaration without its body, on one line; empty for a type.
        bases: the types that a type builds on, each with its relation.
        methods: names of the methods of a type, in order, each once.
        all_methods: whether `methods` are all methods that the type's own definition can have; otherwise they are those
            of one file.
        doc: the first paragraph of its documentation, on one line.
    """

    noun: str
    name: str
    path: str
    lines: tuple[int, int]
    is_type: bool
    scope: str = ""
    signature: str = ""
    bases: tuple[tuple[str, str], ...] = ()
    methods: tuple[str, ...] = ()
    all_methods: bool = True
    doc: str = ""

    @property
    def title(self) -> str:
        """The name in questions: with the file, where the name needs it."""
        return f"`{self.name}` in `{self.scope}`" if self.scope else f"`{self.name}`"


def one_line(text: str) -> str:
    """A text with every run of white space as one space."""
    return " ".join(text.split())


def first_paragraph(text: str) -> str:
    """The first paragraph of a documentation text on one line; empty when it contains no word."""
    paragraph = re.split(r"\n[ \t]*\n", text.strip(), maxsplit=1)[0]
    return one_line(paragraph) if re.search(r"\w", paragraph) else ""
