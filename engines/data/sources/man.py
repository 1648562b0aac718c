"""The text of a manual page, without its markup: man(7) and mdoc(7) pages, and the escapes of troff that they use.

The rules of a terminal's `man`, where they decide what a reader sees: fonts, sizes and spacing are no text, headings
and tagged paragraphs begin a line, the lines of a paragraph are one line. Macros that a page defines for itself,
equations and pictures are not rendered: their lines are left out.
"""

# ruff: noqa: RUF001 - the characters that a page names are meant

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

_ESCAPE = re.compile(
    r"\\(?:"
    r"(?P<comment>[\"#].*)"
    r"|(?P<drop>[&^|%:/,)~0{}acdprtuz]|f\[[^\]\n]{0,20}\]|f\(..|f.|F\[[^\]\n]{0,20}\]|F\(..|F.|m\[[^\]\n]{0,20}\]"
    r"|s[-+]?\d\d?|s\[[^\]\n]{0,20}\]|s\([-+]?\d\d|k.|h'[^'\n]{0,80}'|v'[^'\n]{0,80}'|w'[^'\n]{0,80}'"
    r"|[lLDoXxZ]'[^'\n]{0,200}'|n\[[^\]\n]{0,40}\]|n\(..|n[-+]?.|Y\[[^\]\n]{0,40}\])"
    r"|(?P<name>\((?P<two>..)|\[(?P<long>[^\]\n]{1,40})\]|C'(?P<quoted>[^'\n]{1,40})')"
    r"|(?P<string>\*\((?P<string_two>..)|\*\[(?P<string_long>[^\]\n]{1,40})\]|\*(?P<string_one>.))"
    r"|(?P<other>.|$)"
    r")"
)
_NAMED = {
    "aq": "'", "dq": '"', "lq": "“", "rq": "”", "oq": "‘", "cq": "’", "Bq": "„", "bq": "‚", "Fo": "«", "Fc": "»",
    "em": "—", "en": "–", "hy": "-", "mi": "-", "pl": "+", "eq": "=", "mu": "×", "di": "÷", "+-": "±", "**": "*",
    "bu": "•", "co": "©", "rg": "®", "tm": "™", "sc": "§", "ps": "¶", "de": "°", "ct": "¢", "Eu": "€", "Po": "£",
    "ha": "^", "ti": "~", "ga": "`", "rs": "\\", "sl": "/", "ul": "_", "or": "|", "ba": "|", "lB": "[", "rB": "]",
    "lC": "{", "rC": "}", "la": "⟨", "ra": "⟩", "at": "@", "sh": "#", "Do": "$", "->": "→", "<-": "←", "<>": "↔",
    "ua": "↑", "da": "↓", ">=": "≥", "<=": "≤", "!=": "≠", "if": "∞", "ss": "ß", "12": "½", "14": "¼", "34": "¾",
    "S1": "¹", "S2": "²", "S3": "³", "*a": "α", "*b": "β", "*p": "π", "*m": "μ", "mc": "µ", "OK": "✓", "cr": "↵",
    "AE": "Æ", "ae": "æ", "OE": "Œ", "oe": "œ", "/O": "Ø", "/o": "ø", "oA": "Å", "oa": "å", ":a": "ä", ":o": "ö",
    ":u": "ü", ":A": "Ä", ":O": "Ö", ":U": "Ü", ":e": "ë", ":i": "ï", "'a": "á", "'e": "é", "'i": "í", "'o": "ó",
    "'u": "ú", "`a": "à", "`e": "è", "`i": "ì", "`o": "ò", "`u": "ù", "^a": "â", "^e": "ê", "^i": "î", "^o": "ô",
    "^u": "û", "~n": "ñ", "~a": "ã", "~o": "õ", ",c": "ç", ",C": "Ç", "dg": "†", "dd": "‡", "ru": "_", "br": "|",
    "ff": "ff", "fi": "fi", "fl": "fl", "Fi": "ffi", "Fl": "ffl", "no": "¬", "tno": "¬", "nb": " ",
}  # fmt: skip
_STRINGS = {"R": "®", "Tm": "™", "lq": "“", "rq": "”", 'L"': "“", 'R"': "”", "C+": "C++", "--": "—", "PI": "π", "S": ""}
_DIACRITICS = re.compile(r"u([0-9A-F]{4,6})(?:_[0-9A-F_]+)?\Z")
_ARGUMENT = re.compile(r'\s*(?:"((?:[^"]|"")*)"?|((?:\\.|[^\s\\])+))')
_NUMBER_OF_ARGUMENTS = 64
_JOINED = ("BI", "IB", "BR", "RB", "IR", "RI")
_FONTS = ("B", "I", "R", "SM", "SB", "CW", "C")
_ENDS = {"de": "..", "de1": "..", "dei": "..", "am": "..", "ig": "..", "EQ": ".EN", "PS": ".PE"}
_MDOC_BEFORE = {"Fl": "-", "Dq": "“", "Sq": "‘", "Pq": "(", "Bq": "[", "Op": "[", "Brq": "{", "Aq": "<", "Ql": "‘",
                "Do": "“", "So": "‘", "Po": "(", "Bo": "[", "Oo": "[", "Bro": "{", "Ao": "<", "Qq": '"'}  # fmt: skip
_MDOC_AFTER = {"Dq": "”", "Sq": "’", "Pq": ")", "Bq": "]", "Op": "]", "Brq": "}", "Aq": ">", "Ql": "’", "Qq": '"',
               "Dc": "”", "Sc": "’", "Pc": ")", "Bc": "]", "Oc": "]", "Brc": "}", "Ac": ">"}  # fmt: skip
_MDOC_PLAIN = frozenset({
    "Ad", "An", "Ap", "Ar", "At", "Bx", "Cd", "Cm", "D1", "Dl", "Dv", "Em", "Er", "Ev", "Fa", "Fd", "Fn", "Ft", "Fx",
    "Ic", "In", "Li", "Lk", "Ms", "Mt", "Nm", "No", "Ns", "Nx", "Ox", "Pa", "St", "Sx", "Sy", "Tn", "Ux", "Va", "Vt",
    "Xr",
})  # fmt: skip
_MDOC = _MDOC_PLAIN | _MDOC_BEFORE.keys() | _MDOC_AFTER.keys()
_CLOSERS = frozenset(".,:;)]?!")


def man_text(source: str) -> str:
    """The text of a page; empty if it only names another one (`.so`), or has no text."""
    page = _Page(source)
    for line in page.lines:
        page.take(line)
    return page.text()


class _Page:
    """Reads a page line by line."""

    def __init__(self, source: str) -> None:
        self.lines: Iterator[str] = iter(_joined_lines(source))
        self._out: list[str] = []
        self._strings = dict(_STRINGS)
        self._name = ""
        self._tag_next = False
        self._mdoc = False
        self._table = False
        self._layout = False
        self._separator = "\t"
        self._skipping = 0
        self._held = False
        self._fills, self._joins = True, False

    def text(self) -> str:
        lines = "\n".join(self._out).split("\n")
        kept: list[str] = []
        for line in (line.rstrip() for line in lines):
            if line or (kept and kept[-1]):
                kept.append(line)
        return "\n".join(kept).strip("\n") + "\n" if any(kept) else ""

    def take(self, line: str) -> None:
        """Read one line of the source."""
        if self._skipping:
            self._skipping = max(0, self._skipping + line.count("\\{") - line.count("\\}"))
            return
        if self._table and not line.startswith("."):
            self._cells(line)
            return
        if line[:1] not in (".", "'"):
            self._line(self._plain(line))
            return
        request = line[1:].lstrip(" \t")
        name, _, rest = request.partition(" ") if " " in request else request.partition("\t")
        self._request(name.rstrip("\r"), rest.strip())

    def _request(self, name: str, rest: str) -> None:
        if name in _ENDS:
            self._skip_to(_ENDS[name])
        elif name in ("if", "ie", "el", "while"):
            self._condition(name, rest)
        elif (handler := _HANDLERS.get(name)) is not None:
            handler(self, rest)
        elif name in _JOINED:
            self._line("".join(self._plain(word) for word in _arguments(rest)))
        elif name in _FONTS:
            self._line(" ".join(self._plain(word) for word in _arguments(rest)))
        elif name in _MDOC and self._mdoc:
            self._line(self._mdoc_line([name, *_arguments(rest)]))

    def _skip_to(self, end: str) -> None:
        for line in self.lines:
            if line.rstrip() == end or (end == ".." and line.startswith(".") and line[1:].strip() == "."):
                return

    def _condition(self, name: str, rest: str) -> None:
        """A condition holds for a terminal (`n`) and for what an `.ie` that did not hold leaves to `.el`."""
        holds = rest.startswith("n ") or (name == "el" and not self._held)
        words = rest if name == "el" else rest.partition(" ")[2]
        self._held = holds
        if "\\{" in words:
            after = words.partition("\\{")[2].lstrip("\\").strip()
            if not holds:
                self._skipping = max(0, words.count("\\{") - words.count("\\}"))
            elif after:
                self.take(after)
        elif holds and words.strip():
            self.take(words.strip())

    def _line(self, text: str) -> None:
        """A line of text, which continues the paragraph unless the page breaks lines itself."""
        if self._fills and self._joins and text and text[0] not in " \t":
            self._out[-1] += f" {text}"
        else:
            self._out.append(text)
        self._joins = bool(text) and not self._tag_next
        self._tag_next = False

    def _apart(self, *lines: str) -> None:
        """Lines that no other line continues."""
        self._out += lines
        self._joins = False

    def _gap(self, _rest: str) -> None:
        self._apart("")

    def _break(self, _rest: str) -> None:
        self._joins = False

    def _fill(self, _rest: str) -> None:
        self._fills, self._joins = True, False

    def _unfilled(self, _rest: str) -> None:
        self._fills, self._joins = False, False

    def _display(self, rest: str) -> None:
        """`.Bd -literal`: an example as it is written."""
        self._apart("")
        self._fills = "-literal" not in rest and "-unfilled" not in rest

    def _heading(self, rest: str) -> None:
        words = " ".join(self._plain(word) for word in _arguments(rest))
        self._apart("", *([words] if words else []))
        self._fills = True

    def _title(self, rest: str) -> None:
        words = [self._plain(word) for word in _arguments(rest)]
        if words:
            section = f"({words[1]})" if len(words) > 1 else ""
            self._apart(f"{words[0]}{section}")

    def _indented(self, rest: str) -> None:
        """`.IP tag indent`."""
        words = _arguments(rest)
        tag = self._plain(words[0]) if words else ""
        self._apart("", *([tag] if tag else []))

    def _tagged(self, _rest: str) -> None:
        self._apart("")
        self._tag_next = True

    def _define(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name and len(self._strings) < 1000:
            self._strings[name] = self._plain(value.lstrip().removeprefix('"'))[:1000]

    def _link(self, rest: str) -> None:
        words = _arguments(rest)
        self._line(self._plain(words[0]) if words else "")

    def _begin_table(self, _rest: str) -> None:
        self._table = self._layout = True
        self._separator = "\t"
        self._apart("")

    def _end_table(self, _rest: str) -> None:
        self._table = False
        self._apart("")

    def _new_layout(self, _rest: str) -> None:
        self._layout = self._table

    def _cells(self, line: str) -> None:
        """A line of a table: options and formats end with `.` or `;` and are no text."""
        if self._layout:
            if line.rstrip().endswith(";"):
                found = re.search(r"tab\s*\((.)\)", line)
                self._separator = found.group(1) if found else "\t"
            elif line.rstrip().endswith("."):
                self._layout = False
            return
        bare = line.strip()
        if bare in ("_", "=", "T{", "T}"):
            return
        cells = bare.removeprefix("T}").removesuffix("T{").split(self._separator)
        self._apart("\t".join(self._plain(cell.strip()) for cell in cells if cell.strip() not in ("T{", "T}")))

    # ---- mdoc

    def _begin_mdoc(self, _rest: str) -> None:
        self._mdoc = True

    def _mdoc_title(self, rest: str) -> None:
        self._mdoc = True
        self._title(rest)

    def _item(self, rest: str) -> None:
        words = _arguments(rest)
        self._apart("", *([self._mdoc_line(["No", *words])] if words else []))

    def _described(self, rest: str) -> None:
        self._line("– " + self._plain(rest))

    def _named(self, rest: str) -> None:
        """`.Nm`: the name of the page, which later ones may leave out."""
        words = _arguments(rest)
        own = words and words[0] not in _CLOSERS and words[0] not in _MDOC
        if own and not self._name:
            self._name = self._plain(words[0])
        self._line(self._mdoc_line(["No", *([] if own else [self._name]), *words]))

    def _mdoc_line(self, words: list[str]) -> str:
        """The text of a line of macros that call each other."""
        text, after, space = "", "", False
        macro = ""
        for word in words:
            if word in _MDOC:
                macro = word
                space = False if word == "Ns" else space
                if mark := _MDOC_BEFORE.get(word, ""):
                    text += (" " if space else "") + mark
                    space = word not in ("Fl", *(_MDOC_BEFORE.keys() - {"Fl"}))
                after = _MDOC_AFTER.get(word, "") + after if word in _MDOC_BEFORE and word in _MDOC_AFTER else after
                if word in _MDOC_AFTER and word not in _MDOC_BEFORE:
                    text += _MDOC_AFTER[word]
                    space = True
                if word == "Nm" and word == words[-1]:
                    text += (" " if space else "") + self._name
                continue
            plain = self._plain(word)
            closes = word in _CLOSERS
            if macro == "Xr" and text and plain[:1].isdigit():
                text += f"({plain})"
            else:
                text += plain if closes or not space else f" {plain}"
            if macro == "Fl" and not closes:
                macro = ""
            space = plain not in ("(", "[")
        return text + after

    # ---- characters

    def _plain(self, text: str) -> str:
        """A text without escapes."""
        return _ESCAPE.sub(self._character, text) if "\\" in text else text

    def _character(self, found: re.Match[str]) -> str:
        if found["drop"] is not None:
            return " " if found["drop"] in ("~", "0") else ""
        if found["comment"] is not None:
            return ""
        if found["name"] is not None:
            return _named_character(found["two"] or found["long"] or found["quoted"])
        if found["string"] is not None:
            return self._strings.get(found["string_two"] or found["string_long"] or found["string_one"], "")
        other = found["other"]
        return {"e": "\\", "E": "\\", "-": "-", "'": "'", "`": "`", " ": " ", ".": ".", "\\": "\\", "_": "_"}.get(
            other, other
        )


def _named_character(name: str) -> str:
    if (found := _DIACRITICS.match(name)) is not None:
        number = int(found.group(1), 16)
        return chr(number) if number < 0x110000 and not 0xD800 <= number < 0xE000 and number else ""
    return _NAMED.get(name, "")


def _joined_lines(source: str) -> list[str]:
    """The lines of a page; one that ends with a backslash continues in the next."""
    lines: list[str] = []
    continues = False
    for line in source.replace("\r\n", "\n").split("\n"):
        open_end = line.endswith("\\") and not line.endswith("\\\\")
        text = line[:-1] if open_end else line
        if continues:
            lines[-1] += text
        else:
            lines.append(text)
        continues = open_end and len(lines[-1]) < 10_000
    return lines


def _arguments(rest: str) -> list[str]:
    """The words of a request; quotes join words, and a comment ends them."""
    found: list[str] = []
    at = 0
    comment = rest.find('\\"')
    text = rest if comment < 0 else rest[:comment]
    while len(found) < _NUMBER_OF_ARGUMENTS and (match := _ARGUMENT.match(text, at)) is not None and match.end() > at:
        quoted, bare = match.groups()
        found.append(quoted.replace('""', '"') if quoted is not None else bare)
        at = match.end()
    return found


_Handler = Callable[[_Page, str], None]
_HANDLERS: dict[str, _Handler] = {
    **dict.fromkeys(("PP", "LP", "P", "sp", "Pp", "HP", "Bl", "El", "RS", "RE"), _Page._gap),
    **dict.fromkeys(("br", "ce"), _Page._break),
    **dict.fromkeys(("nf", "EX"), _Page._unfilled),
    **dict.fromkeys(("fi", "EE", "Ed"), _Page._fill),
    "Bd": _Page._display,
    **dict.fromkeys(("SH", "SS", "Sh", "Ss"), _Page._heading),
    **dict.fromkeys(("TP", "TQ"), _Page._tagged),
    "TH": _Page._title,
    "Dt": _Page._mdoc_title,
    "Dd": _Page._begin_mdoc,
    "IP": _Page._indented,
    "ds": _Page._define,
    **dict.fromkeys(("UR", "MT"), _Page._link),
    "TS": _Page._begin_table,
    "TE": _Page._end_table,
    "T&": _Page._new_layout,
    "It": _Page._item,
    "Nd": _Page._described,
    "Nm": _Page._named,
}
