"""Partial updates of the terminal that send only cells that differ from what it shows.

Textual's own partial update sends the rows of a region from the widget's left edge, and every span with its colours.
Over SSH that is most of the bytes of a live screen. Here a span is cropped on both sides, cells that the terminal
already shows are left out, and colours are sent only where they change.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.console import Console, ConsoleOptions, RenderResult
from rich.style import Style
from textual._compositor import ChopsUpdate, CompositorUpdate
from textual.strip import Strip

Cell = tuple[str, Style]
BRIDGE = 4
"""Unchanged cells between two changed ones that are sent rather than jumped over, if their colours are the same."""


class TerminalCells:
    """What the terminal is known to show, cell by cell; unknown after a whole repaint."""

    def __init__(self) -> None:
        self._rows: dict[int, dict[int, Cell]] = {}
        self._colours: dict[Style, _Colours] = {}

    def forget(self) -> None:
        """Something else was written to the terminal."""
        self._rows.clear()

    def update(self, chops: ChopsUpdate) -> FrugalUpdate:
        """The same update, in fewer bytes."""
        return FrugalUpdate(chops, self)

    def changed(self, y: int, x: int, strip: Strip) -> Iterator[tuple[int, list[Cell]]]:
        """Runs of cells of a strip at (x, y) that the terminal does not show yet; they are noted as shown."""
        cells = _cells(strip)
        row = self._rows.setdefault(y, {})
        if cells is None:  # wide or joined characters: these cells are sent, and then unknown
            for at in range(x, x + strip.cell_length):
                row.pop(at, None)
            yield x, [(segment.text, segment.style or Style.null()) for segment in strip]
            return
        differs = [number for number, cell in enumerate(cells, x) if row.get(number) != cell]
        row.update(enumerate(cells, x))
        start = 0
        for at in range(1, len(differs) + 1):
            if at < len(differs) and self._bridged(cells, differs[at - 1] - x, differs[at] - x):
                continue
            if differs:
                first, last = differs[start], differs[at - 1]
                yield first, cells[first - x : last - x + 1]
            start = at

    def colours(self, style: Style, console: Console) -> _Colours:
        """The codes of a style."""
        if style not in self._colours:
            self._colours[style] = _colours(style, console)
        return self._colours[style]

    @staticmethod
    def _bridged(cells: list[Cell], before: int, after: int) -> bool:
        if after - before > BRIDGE:
            return False
        return all(cell[1] == cells[before][1] for cell in cells[before : after + 1])


class FrugalUpdate(CompositorUpdate):
    """A partial update that is compared with the terminal's cells when it is written."""

    def __init__(self, chops: ChopsUpdate, shown: TerminalCells) -> None:
        self._chops = chops
        self._shown = shown

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from self._chops.__rich_console__(console, options)

    def render_segments(self, console: Console) -> str:
        """The sequences for the terminal."""
        pen = _Pen()
        for y, x1, x2 in self._chops.spans:
            for end, (x, strip) in zip(self._chops.chop_ends[y], self._chops.chops[y].items(), strict=False):
                left, right = max(x, x1), min(end, x2)
                if strip is None or left >= right:
                    continue
                for start, cells in self._shown.changed(y, left, strip.crop(left - x, right - x)):
                    pen.move(y, start)
                    for text, style in cells:
                        pen.write(text, self._shown.colours(style, console))
        return pen.finished()


class _Colours(NamedTuple):
    """The codes of a style's attributes, foreground and background, without the sequence around them."""

    attributes: str
    foreground: str
    background: str


def _colours(style: Style, console: Console) -> _Colours:
    system = ColorSystem[console.color_system.upper().replace("256", "EIGHT_BIT")] if console.color_system else None

    def codes(color: Color | None, default: str, foreground: bool) -> str:
        if color is None or system is None:
            return default
        return ";".join(color.downgrade(system).get_ansi_codes(foreground))

    plain = style.without_color.render("x", color_system=system or ColorSystem.STANDARD)
    attributes = plain.partition("x")[0].removeprefix("\x1b[").removesuffix("m")
    return _Colours(attributes, codes(style.color, "39", True), codes(style.bgcolor, "49", False))


class _Pen:
    """The sequences of one update: a move or a colour is written only where it differs from the present one."""

    def __init__(self) -> None:
        self._out: list[str] = []
        self._at: tuple[int, int] | None = None
        self._colours = _Colours("", "39", "49")
        self._fresh = True

    def move(self, y: int, x: int) -> None:
        """Go to a cell."""
        if self._at == (y, x):
            return
        if self._at is not None and self._at[0] == y and x > self._at[1]:
            self._out.append(f"\x1b[{x - self._at[1]}C")
        else:
            self._out.append(f"\x1b[{y + 1};{x + 1}H")
        self._at = (y, x)

    def write(self, text: str, colours: _Colours) -> None:
        """Write text in these colours."""
        if colours != self._colours or self._fresh:
            if self._fresh or colours.attributes != self._colours.attributes:
                wanted = ["0", colours.attributes, colours.foreground, colours.background]
                codes = [code for code in wanted if code and code not in {"39", "49"}]
            else:
                now = self._colours
                codes = [colours.foreground] if colours.foreground != now.foreground else []
                codes += [colours.background] if colours.background != now.background else []
            self._out.append(f"\x1b[{';'.join(codes)}m")
            self._colours, self._fresh = colours, False
        self._out.append(text)
        if self._at is not None:
            known = len(text) == 1
            self._at = (self._at[0], self._at[1] + 1) if known else None

    def finished(self) -> str:
        """All sequences, with a reset after colours."""
        return "".join([*self._out, "" if self._fresh else "\x1b[0m"])


def _cells(strip: Strip) -> list[Cell] | None:
    """A strip's cells; None when a character does not take exactly one."""
    cells: list[Cell] = []
    for text, style, _ in strip:
        if not text.isascii() and cell_len(text) != len(text):
            return None
        drawn = style or Style.null()
        cells += [(character, drawn) for character in text]
    return cells
