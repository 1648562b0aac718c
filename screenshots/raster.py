"""Draws a terminal screen as a picture from the compositor's cells, without a browser or a web font.

DejaVu Sans Mono is used if it is installed. It lacks braille, blocks and some lines, so this module draws those.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich.cells import cell_len
from rich.color import Color
from rich.segment import Segment
from rich.terminal_theme import TerminalTheme
from textual.app import App
from textual.strip import Strip

CELL = (9, 18)
FONTS = (
    "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf",
    "/usr/share/fonts/dejavu/DejaVuSansMono.ttf",
    "/usr/share/fonts/TTF/DejaVuSansMono.ttf",
)
BACKGROUND, FOREGROUND = (0x12, 0x12, 0x12), (0xD0, 0xD0, 0xD0)
_ANSI = TerminalTheme(
    BACKGROUND,
    FOREGROUND,
    [
        (0, 0, 0),
        (205, 49, 49),
        (13, 188, 121),
        (229, 229, 16),
        (36, 114, 200),
        (188, 63, 188),
        (17, 168, 205),
        (229, 229, 229),
    ],
    [
        (102, 102, 102),
        (241, 76, 76),
        (35, 209, 139),
        (245, 245, 67),
        (59, 142, 234),
        (214, 112, 214),
        (41, 184, 219),
        (255, 255, 255),
    ],
)
_DOTS = ((0, 0, 0x01), (0, 1, 0x02), (0, 2, 0x04), (0, 3, 0x40), (1, 0, 0x08), (1, 1, 0x10), (1, 2, 0x20), (1, 3, 0x80))
_SHADES = {"░": 0.25, "▒": 0.5, "▓": 0.75}


def screen_lines(app: App[Any]) -> list[Strip]:
    """The lines of the screen as it is now, with modal screens on top."""
    return app.screen._compositor.render_strips(app.size)


def screen_text(app: App[Any]) -> str:
    """The screen as plain text, without trailing blanks."""
    return "\n".join(strip.text.rstrip() for strip in screen_lines(app))


def save_picture(app: App[Any], path: Path) -> Path:
    """Write the screen as a PNG file."""
    lines = screen_lines(app)
    width, height = app.size
    image = Image.new("RGB", (width * CELL[0], height * CELL[1]), BACKGROUND)
    pen = ImageDraw.Draw(image)
    fonts = _font(False), _font(True)
    for y, strip in enumerate(lines):
        x = 0
        for segment in strip:
            x = _segment(pen, segment, x, y, fonts)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def _segment(pen: ImageDraw.ImageDraw, segment: Segment, x: int, y: int, fonts: tuple[object, object]) -> int:
    style = segment.style
    fore, back = FOREGROUND, BACKGROUND
    bold = reverse = dim = underline = False
    if style is not None:
        fore = _rgb(style.color, foreground=True)
        back = _rgb(style.bgcolor, foreground=False)
        bold, reverse, dim, underline = bool(style.bold), bool(style.reverse), bool(style.dim), bool(style.underline)
    if reverse:
        fore, back = back, fore
    if dim:
        fore = _mix(fore, back, 0.6)
    for character in segment.text:
        cells = max(1, cell_len(character))
        left, top = x * CELL[0], y * CELL[1]
        box = (left, top, left + CELL[0] * cells - 1, top + CELL[1] - 1)
        pen.rectangle(box, fill=back)
        _character(pen, character, box, fore, back, fonts[bold])
        if underline:
            pen.line((box[0], box[3] - 1, box[2], box[3] - 1), fill=fore)
        x += cells
    return x


def _character(
    pen: ImageDraw.ImageDraw,
    character: str,
    box: tuple[int, int, int, int],
    fore: tuple[int, int, int],
    back: tuple[int, int, int],
    font: object,
) -> None:
    code = ord(character)
    left, top, right, bottom = box
    if character == " ":
        return
    if 0x2800 <= code <= 0x28FF:
        for column, row, bit in _DOTS:
            if (code - 0x2800) & bit:
                cx, cy = left + 2 + column * 4, top + 2 + row * 4.5
                pen.ellipse((cx - 1.2, cy - 1.2, cx + 1.6, cy + 1.6), fill=fore)
    elif character in _SHADES:
        pen.rectangle(box, fill=_mix(fore, back, _SHADES[character]))
    elif 0x2581 <= code <= 0x2588:
        high = (code - 0x2580) / 8
        pen.rectangle((left, bottom + 1 - round(high * CELL[1]), right, bottom), fill=fore)
    elif 0x2589 <= code <= 0x258F:
        pen.rectangle((left, top, left + round((0x2590 - code) / 8 * CELL[0]) - 1, bottom), fill=fore)
    elif character in _LINES:
        _line_drawing(pen, _LINES[character], box, fore)
    else:
        pen.text((left, top + 1), character, fill=fore, font=font)  # type: ignore[arg-type]


# up, right, down, left: 0 none, 1 thin, 2 thick
_LINES = {
    "─": (0, 1, 0, 1), "━": (0, 2, 0, 2), "│": (1, 0, 1, 0), "┃": (2, 0, 2, 0), "└": (1, 1, 0, 0), "┘": (1, 0, 0, 1),
    "┌": (0, 1, 1, 0), "┐": (0, 0, 1, 1), "╭": (0, 1, 1, 0), "╮": (0, 0, 1, 1), "╰": (1, 1, 0, 0), "╯": (1, 0, 0, 1),
    "├": (1, 1, 1, 0), "┤": (1, 0, 1, 1), "┬": (0, 1, 1, 1), "┴": (1, 1, 0, 1), "┼": (1, 1, 1, 1), "╸": (0, 0, 0, 2),
    "╺": (0, 2, 0, 0), "╌": (0, 1, 0, 1),
}  # fmt: skip


def _line_drawing(
    pen: ImageDraw.ImageDraw,
    arms: tuple[int, int, int, int],
    box: tuple[int, int, int, int],
    fore: tuple[int, int, int],
) -> None:
    left, top, right, bottom = box
    cx, cy = (left + right) // 2, (top + bottom) // 2
    ends = ((cx, top), (right, cy), (cx, bottom), (left, cy))
    for weight, (x, y) in zip(arms, ends, strict=True):
        if weight:
            pen.line((cx, cy, x, y), fill=fore, width=1 if weight == 1 else 3)


def _rgb(color: Color | None, *, foreground: bool) -> tuple[int, int, int]:
    if color is None or color.is_default:
        return FOREGROUND if foreground else BACKGROUND
    found = color.get_truecolor(_ANSI, foreground=foreground)
    return found.red, found.green, found.blue


def _mix(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    return tuple(round(x * share + y * (1 - share)) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _font(bold: bool) -> object:
    for path in FONTS:
        wanted = path.replace("Mono.ttf", "Mono-Bold.ttf") if bold else path
        if Path(wanted).exists():
            return ImageFont.truetype(wanted, 14)
    return ImageFont.load_default(14)
