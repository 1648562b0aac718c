"""Partial updates leave the terminal with exactly the cells that the screen has, in few bytes."""

from __future__ import annotations

import random
import re

from rich.console import Console
from rich.segment import Segment
from rich.style import Style
from textual._compositor import ChopsUpdate
from textual.strip import Strip

from cockpit.tui.look.frugal import TerminalCells
from tests.tui.terminal import Grid

WIDTH, HEIGHT = 60, 8
STYLES = [Style(color=name) for name in ("red", "green", "#5fafff")]
WORDS = ("step", "12", "●", "loss ", "日本", "0.41", "e\u0301", " ")


def line(chance: random.Random) -> Strip:
    segments, room = [], WIDTH
    while room > 4:
        segment = Segment(chance.choice(WORDS), chance.choice(STYLES))
        segments.append(segment)
        room -= segment.cell_length
    return Strip(segments).adjust_cell_length(WIDTH)


def test_after_any_updates_the_terminal_shows_the_screen() -> None:
    chance, console, shown, grid = random.Random(5), Console(force_terminal=True, color_system="truecolor"), None, None
    for round_ in range(60):
        if round_ % 20 == 0:
            shown, grid, screen = TerminalCells(), Grid((WIDTH, HEIGHT)), [line(chance) for _ in range(HEIGHT)]
            spans = [(y, 0, WIDTH) for y in range(HEIGHT)]
        else:
            y = chance.randrange(HEIGHT)
            screen[y] = line(chance)
            spans = [(y, 0, WIDTH)]
        cut = 20
        chops = [{0: strip.crop(0, cut), cut: strip.crop(cut, WIDTH)} for strip in screen]
        ends = [[cut, WIDTH] for _ in screen]
        assert shown is not None
        assert grid is not None
        grid.write(shown.update(ChopsUpdate(chops, spans, ends)).render_segments(console))
        wanted = Grid((WIDTH, HEIGHT))
        for y, strip in enumerate(screen):
            wanted.write(
                f"\x1b[{y + 1};1H" + strip.crop(0, cut).render(console) + strip.crop(cut, WIDTH).render(console)
            )
        assert grid.cells == wanted.cells, round_


def test_a_cell_that_did_not_change_is_not_sent() -> None:
    console, shown = Console(force_terminal=True, color_system="truecolor"), TerminalCells()

    def sent(words: str) -> str:
        strip = Strip([Segment(words.ljust(WIDTH), STYLES[0])])
        return shown.update(ChopsUpdate([{0: strip}], [(0, 0, WIDTH)], [[WIDTH]])).render_segments(console)

    assert "step 412/820" in sent("step 412/820")
    assert sent("step 412/820") == ""
    assert re.sub(r"\x1b\[[0-9;]*m", "", sent("step 413/820")) == "\x1b[1;8H3"
    shown.forget()
    assert "step 413/820" in sent("step 413/820")
