"""The text of an HTML page, without its markup, in time proportional to its length.

The rules of browsers, where they decide what a reader sees: comments, scripts and styles are no text, blanks collapse,
block elements begin a line, references such as `&amp;` are characters. Menus and footers are text like any other.
"""

from __future__ import annotations

import re
from html import unescape

_BLANKS = re.compile(r"[ \t\n\r\f]+")
_MARK = re.compile(r"[>\"']")
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]{0,30}")
_DROPPED = frozenset({"script", "style", "svg", "template", "noscript", "iframe", "noembed", "noframes"})
"""Elements whose content a reader does not see."""
_APART = frozenset(
    [
        "p",
        "h1",
        "h2",
        "h3",
        "h4",
        "h5",
        "h6",
        "blockquote",
        "pre",
        "ul",
        "ol",
        "dl",
        "table",
        "section",
        "article",
        "header",
        "footer",
        "main",
        "nav",
        "aside",
        "figure",
        "title",
    ]
)
"""Elements with an empty line before and after."""
_LINES = frozenset(
    [
        "div",
        "li",
        "tr",
        "dt",
        "dd",
        "hr",
        "form",
        "fieldset",
        "option",
        "caption",
        "figcaption",
        "address",
        "thead",
        "tbody",
        "tfoot",
        "body",
        "head",
        "html",
        "details",
        "summary",
    ]
)
"""Elements that begin a line."""
_CELLS = frozenset({"td", "th"})


def html_text(markup: str) -> str:
    """The text of a page: paragraphs with an empty line between them; empty if the page has no text."""
    page = _Page(markup)
    page.read()
    return page.text()


class _Page:
    def __init__(self, markup: str) -> None:
        self._markup = markup
        self._out: list[str] = []
        self._gap = 0
        self._line_begins = True
        self._blank = False
        self._pre = 0
        self._never_closed: set[str] = set()

    def text(self) -> str:
        return "".join(self._out).strip("\n") + "\n" if self._out else ""

    def read(self) -> None:
        markup, at = self._markup, 0
        while True:
            start = markup.find("<", at)
            self._characters(markup[at:] if start < 0 else markup[at:start])
            if start < 0:
                return
            after = markup[start + 1 : start + 2]
            if after in ("!", "?"):
                at = self._after_comment(start)
            elif after == "/" or (after.isascii() and after.isalpha()):
                end = self._tag_end(start)
                if end < 0:  # the page ends inside a tag: what is there is kept as it is
                    self._characters(markup[start:])
                    return
                at = self._tag(start, end)
            else:
                self._characters("<")
                at = start + 1

    def _after_comment(self, start: int) -> int:
        """The place after a comment, a declaration or an instruction; the end of the page if it is not closed."""
        end = "-->" if self._markup.startswith("<!--", start) else ">"
        found = self._markup.find(end, start + 2)
        return len(self._markup) if found < 0 else found + len(end)

    def _tag_end(self, start: int) -> int:
        """The place of the `>` that ends a tag; -1 without one. Only a quote after `=` begins a quoted value."""
        at = start + 1
        while (mark := _MARK.search(self._markup, at)) is not None:
            if mark.group() == ">":
                return mark.start()
            at = mark.end()
            if self._markup[max(start, at - 65) : at - 1].rstrip().endswith("="):
                closed = self._markup.find(mark.group(), at)
                if closed < 0:
                    return -1
                at = closed + 1
        return -1

    def _tag(self, start: int, end: int) -> int:
        """Apply a tag; returns the place where the page continues."""
        closes = self._markup[start + 1] == "/"
        name = _NAME.match(self._markup, start + (2 if closes else 1))
        element = name.group().lower() if name else ""
        if element == "br":
            self._gap = min(self._gap + 1, 2)
            self._blank = False
        elif element in _CELLS and not closes:
            if not self._line_begins and not self._gap:
                self._out.append("\t")
            self._line_begins = True
        elif element in _APART or element in _LINES:
            self._gap = max(self._gap, 2 if element in _APART else 1)
            self._blank = False
        if element == "pre":
            self._pre = max(0, self._pre + (-1 if closes else 1))
        if element in _DROPPED and not closes:
            return self._after_element(element, end + 1)
        return end + 1

    def _after_element(self, element: str, start: int) -> int:
        """The place of the closing tag of an element without text; right here if it is never closed."""
        if element in self._never_closed:
            return start
        found = _CLOSING[element].search(self._markup, start)
        if found is None:
            self._never_closed.add(element)
            return start
        return found.start()

    def _characters(self, source: str) -> None:
        if not source:
            return
        characters = _unescaped(source)
        if self._pre:
            self._begin()
            self._out.append(characters)
            self._line_begins, self._blank = characters.endswith("\n"), False
            return
        collapsed = _BLANKS.sub(" ", characters)
        words = collapsed.strip(" ")
        if not words:
            self._blank = True
            return
        self._begin()
        if not self._line_begins and (self._blank or collapsed.startswith(" ")):
            self._out.append(" ")
        self._out.append(words)
        self._line_begins, self._blank = False, collapsed.endswith(" ")

    def _begin(self) -> None:
        """Write the line ends that are due."""
        if self._gap:
            if self._out:
                written = len(self._out[-1]) - len(self._out[-1].rstrip("\n"))
                self._out.append("\n" * max(0, self._gap - written))
            self._gap, self._line_begins = 0, True


_CLOSING = {name: re.compile(f"</{name}", re.IGNORECASE | re.ASCII) for name in _DROPPED}


def _unescaped(source: str) -> str:
    try:
        return unescape(source)
    except ValueError:  # a number of thousands of digits is no character
        return source
