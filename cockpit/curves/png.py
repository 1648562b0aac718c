"""A figure as PNG: lines with soft edges, dots, and text in a bitmap font; written with the standard library."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from functools import cache
from itertools import pairwise

from cockpit.curves import font
from cockpit.curves.figure import Dot, Figure, Label, Line, Point

SCALE = 2
"""Pixels of the picture for one pixel of the figure."""
DOT = 2
"""Pixels of one dot of a letter."""


def png(figure: Figure) -> bytes:
    """The bytes of a PNG file, in 8-bit RGB."""
    canvas = _Canvas(figure.width * SCALE, figure.height * SCALE)
    for shape in figure.shapes:
        match shape:
            case Line():
                canvas.line([(x * SCALE, y * SCALE) for x, y in shape.points], _rgb(shape.colour), shape.width * SCALE)
            case Dot():
                canvas.dot((shape.at[0] * SCALE, shape.at[1] * SCALE), shape.radius * SCALE, _rgb(shape.colour))
            case Label():
                canvas.label(shape)
    return canvas.file()


def _rgb(colour: str) -> bytes:
    return bytes.fromhex(colour.removeprefix("#"))


class _Canvas:
    """White pixels to draw on."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = bytearray(b"\xff" * (width * height * 3))

    def line(self, points: list[Point], colour: bytes, width: float) -> None:
        """Joined points."""
        for (x0, y0), (x1, y1) in pairwise(points):
            if y0 == y1:
                self._bar(round(min(x0, x1)), round(y0), round(abs(x1 - x0)) + 1, round(width), colour)
                continue
            for x, y in _along(x0, y0, x1, y1):
                self._spot(x, y, width / 2, colour)

    def dot(self, at: Point, radius: float, colour: bytes) -> None:
        """A filled circle."""
        self._spot(at[0], at[1], radius, colour)

    def label(self, label: Label) -> None:
        """A line of text; `at` is on its base line."""
        advance = (font.WIDTH + 1) * DOT
        length = advance * len(label.text)
        left = label.at[0] * SCALE - {"start": 0, "middle": length / 2, "end": length}[label.anchor]
        top = label.at[1] * SCALE - (font.HEIGHT - 1) * DOT
        colour = _rgb(label.colour)
        for place, char in enumerate(label.text):
            for column, dots in enumerate(font.columns_of(char)):
                for row in range(font.HEIGHT):
                    if dots >> row & 1:
                        x, y = left + place * advance + column * DOT, top + row * DOT
                        self._square(int(x), int(y), DOT + label.bold, colour)

    def file(self) -> bytes:
        """The PNG file."""
        stride = self.width * 3
        rows = b"".join(b"\0" + self._pixels[start : start + stride] for start in range(0, len(self._pixels), stride))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in parts)

    def _bar(self, left: int, top: int, length: int, thickness: int, colour: bytes) -> None:
        """A horizontal line, many pixels at once."""
        left, right = max(0, left), min(self.width, left + length)
        for y in range(max(0, top), min(self.height, top + thickness)):
            start = (y * self.width + left) * 3
            self._pixels[start : start + 3 * (right - left)] = colour * (right - left)

    def _square(self, left: int, top: int, size: int, colour: bytes) -> None:
        for y in range(top, top + DOT):
            for x in range(left, left + size):
                self._blend(x, y, colour, 1.0)

    def _spot(self, x: float, y: float, radius: float, colour: bytes) -> None:
        px, py = round(x), round(y)
        for dx, dy, share in _brush(radius):
            self._blend(px + dx, py + dy, colour, share)

    def _blend(self, x: int, y: int, colour: bytes, share: float) -> None:
        """Mix a pixel with a colour; it only gets darker, so that overlapping spots of a line do not add up."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            return
        start = (y * self.width + x) * 3
        for channel in range(3):
            mixed = round(255 + (colour[channel] - 255) * share)
            if share >= 1 or mixed < self._pixels[start + channel]:
                self._pixels[start + channel] = mixed


@cache
def _brush(radius: float) -> tuple[tuple[int, int, float], ...]:
    """The pixels of a spot around its middle, with the share of each that the spot covers."""
    reach = math.ceil(radius + 0.5)
    places = [(dx, dy) for dy in range(-reach, reach + 1) for dx in range(-reach, reach + 1)]
    shares = [(dx, dy, min(1.0, radius + 0.5 - math.hypot(dx, dy))) for dx, dy in places]
    return tuple(item for item in shares if item[2] > 0)


def _along(x0: float, y0: float, x1: float, y1: float) -> Iterator[Point]:
    """Points at most a pixel apart."""
    steps = max(1, math.ceil(math.hypot(x1 - x0, y1 - y0)))
    for n in range(steps + 1):
        yield x0 + (x1 - x0) * n / steps, y0 + (y1 - y0) * n / steps


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
