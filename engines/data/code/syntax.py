"""Syntax trees of tree-sitter, within a bound of work, and the texts of their nodes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from time import thread_time
from typing import Any

from engines.data.code.definition import first_paragraph, one_line

Node = Any
"""A node of tree-sitter, whose types this module alone imports."""

GRAMMARS = {
    "c": ("tree_sitter_c", "language"),
    "cpp": ("tree_sitter_cpp", "language"),
    "javascript": ("tree_sitter_javascript", "language"),
    "typescript": ("tree_sitter_typescript", "language_typescript"),
    "tsx": ("tree_sitter_typescript", "language_tsx"),
    "go": ("tree_sitter_go", "language"),
    "rust": ("tree_sitter_rust", "language"),
    "java": ("tree_sitter_java", "language"),
}
"""The module and the function of each grammar."""
_PIECE_BYTES = 65_536
_CALLS_PER_BYTE = 0.05
_LEAST_CALLS = 2000
"""Calls of the parser's progress in proportion to the text: five times those of ordinary sources."""
_LEAST_CPU_S = 10.0
_CPU_S_PER_BYTE = 3e-5
"""The last resort against texts whose parsing is quadratic: twenty times what ordinary sources take."""
_LEAST_GROWN_BYTES = 128 * 1024**2
_GROWN_BYTES_PER_BYTE = 512
"""How much memory a parser may take: several times what ordinary sources take. Some texts take its square: 16 KiB of
`a<` in a Java file are a gigabyte."""
_MOST_OPEN = 500
"""Brackets `<` that a statement may leave open. Each `<` may begin a comparison or a list of types, so the
parser keeps both ways of reading for all of them, without a call of its progress."""
_ENDS = re.compile(rb"[;{}]")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_DOC_TAG = re.compile(r"^[@\\](?!brief\b)[a-z]|^#{1,6} |^```|^\* ?@", re.IGNORECASE)
"""A line that begins the part of a documentation comment that is not its description."""
_INLINE_TAG = re.compile(r"\{@(?:code|link|linkplain|literal|value) ([^{}]{1,200})\}")
_BRIEF = re.compile(r"^[@\\]brief\b[ \t]*", re.IGNORECASE)


class ParseError(ValueError):
    """A text cannot be parsed within the bound of work."""


def is_installed(grammar: str) -> bool:
    """Whether tree-sitter and a grammar can be imported."""
    return all(find_spec(name) is not None for name in ("tree_sitter", GRAMMARS[grammar][0]))


@cache
def _parser(grammar: str) -> Any:
    tree_sitter = import_module("tree_sitter")
    module, function = GRAMMARS[grammar]
    return tree_sitter.Parser(tree_sitter.Language(getattr(import_module(module), function)()))


@dataclass(frozen=True)
class Source:
    """A parsed file: its UTF-8 bytes and the root of its tree. Positions in the tree are positions in the bytes."""

    path: str
    data: bytes
    root: Node

    def text(self, node: Node) -> str:
        """The text of a node."""
        return self.data[node.start_byte : node.end_byte].decode("utf-8", "replace")

    def name(self, node: Node | None) -> str:
        """The text of a node on one line, without white space around `::` and `.`; empty without a node."""
        return "" if node is None else re.sub(r" ?(::|\.) ?", r"\1", one_line(self.text(node)))

    def head(self, node: Node, end_byte: int, leave_out: Sequence[str] = ()) -> str:
        """A declaration on one line: from the start of a node to `end_byte`, without comments and the given types."""
        cut = [found for found in descendants(node, end_byte) if "comment" in found.type or found.type in leave_out]
        at, pieces = node.start_byte, []
        for found in cut:
            if found.start_byte >= at and found.start_byte < end_byte:
                pieces.append(self.data[at : found.start_byte])
                at = found.end_byte
        pieces.append(self.data[at : max(at, end_byte)])
        line = one_line(b" ".join(pieces).decode("utf-8", "replace"))
        return line.replace(" ,", ",").replace(" )", ")") if cut else line


def parse(grammar: str, path: str, text: str, shown: str | None = None) -> Source:
    """The syntax tree of a text.

    Args:
        grammar: a key of `GRAMMARS`.
        path: the file, for definitions.
        text: the text of the file.
        shown: the text to take names and declarations from, with the same length in bytes, where the parsed one was
            changed for the parser.

    Raises:
        ParseError: the parser needs more work than ordinary files of this size.
    """
    data = text.encode()
    if any(part.count(b"<") - part.count(b">") > _MOST_OPEN for part in _ENDS.split(data)):
        raise ParseError(f"a statement leaves more than {_MOST_OPEN} brackets open")
    bound = _LEAST_CALLS + int(len(data) * _CALLS_PER_BYTE)
    end = thread_time() + _LEAST_CPU_S + len(data) * _CPU_S_PER_BYTE
    most_bytes = _resident_bytes() + _LEAST_GROWN_BYTES + len(data) * _GROWN_BYTES_PER_BYTE
    calls = 0

    def stops(_offset: int, _has_error: bool) -> bool:
        nonlocal calls
        calls += 1
        return calls > bound or thread_time() > end or _resident_bytes() > most_bytes

    parser = _parser(grammar)
    try:
        tree = parser.parse(lambda at, _point: data[at : at + _PIECE_BYTES], progress_callback=stops)
    except ValueError as error:
        raise ParseError(str(error)) from error
    finally:
        parser.reset()
    return Source(path, data if shown is None else shown.encode(), tree.root_node)


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def descendants(node: Node, end_byte: int) -> Iterator[Node]:
    """The nodes below a node that begin before `end_byte`, in text order."""
    waiting = list(reversed(node.children))
    while waiting:
        found = waiting.pop()
        if found.start_byte >= end_byte:
            continue
        yield found
        waiting.extend(reversed(found.children))


def lines_of(node: Node) -> tuple[int, int]:
    """The first and the last line of a node, counted from 1; a line that it only ends at does not count."""
    end = node.end_point[0] + (1 if node.end_point[1] else 0)
    return node.start_point[0] + 1, max(end, node.start_point[0] + 1)


def comments_above(node: Node, skip: Sequence[str] = ()) -> list[Node]:
    """The comments directly above a node, in order, without an empty line between them.

    Args:
        node: the definition, with whatever wraps it.
        skip: types of nodes that may stand between, such as attributes.
    """
    found: list[Node] = []
    top = node.start_point[0]
    above = node.prev_sibling
    while above is not None and ("comment" in above.type or above.type in skip):
        if lines_of(above)[1] < top or (above.prev_sibling is not None and _shares_line(above)):
            break
        if "comment" in above.type:
            found.append(above)
        top = above.start_point[0]
        above = above.prev_sibling
    return found[::-1]


def _shares_line(comment: Node) -> bool:
    """Whether a comment stands behind something else on its line."""
    before = comment.prev_sibling
    return "comment" not in before.type and before.end_point[0] == comment.start_point[0] and before.end_point[1] > 0


def described(source: Source, comments: Sequence[Node], marks: Sequence[str]) -> str:
    """The first paragraph of a documentation comment on one line; empty when no comment is one.

    Args:
        source: the file.
        comments: comments in order; a block comment is one, of line comments all together are.
        marks: what a documentation comment begins with, such as `/**` and `///`; longer marks first.
    """
    chosen = [(self, mark) for self in comments for mark in [_mark(source.text(self), marks)] if mark]
    if not chosen:
        return ""
    last_node, last_mark = chosen[-1]
    if last_mark.startswith("/*"):
        text = source.text(last_node).strip()[len(last_mark) :].removesuffix("*/")
        lines = [line.strip().removeprefix("*").strip() for line in text.splitlines()]
    else:
        block = []
        for node, mark in reversed(chosen):
            if mark.startswith("/*"):
                break
            block.append(source.text(node).strip()[len(mark) :].strip())
        lines = block[::-1]
    return _description(lines)


def _mark(comment: str, marks: Sequence[str]) -> str:
    stripped = comment.strip()
    if stripped.startswith(("/**/", "////", "/***")):
        return ""  # a separator, not a documentation comment
    return next((mark for mark in marks if stripped.startswith(mark)), "")


def _description(lines: Sequence[str]) -> str:
    kept: list[str] = []
    for line in lines:
        brief = _BRIEF.sub("", line)
        if brief == line and _DOC_TAG.match(line):
            if kept:
                break
            return ""
        if brief.lower().startswith(("<p>", "<ul>", "<pre>", "</")):
            brief = ""
        if not brief and kept:
            break
        if brief:
            kept.append(_INLINE_TAG.sub(r"\1", brief))
    return first_paragraph("\n".join(kept))
