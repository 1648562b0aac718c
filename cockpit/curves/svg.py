"""A figure as SVG."""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import escape

from cockpit.curves.figure import Dot, Figure, Label, Line


def svg(figure: Figure) -> str:
    """The text of an SVG file. Labels are escaped; their characters are those of `safe_text`."""
    return "\n".join([_head(figure), *map(_shape, figure.shapes), "</svg>"]) + "\n"


def _head(figure: Figure) -> str:
    size = f'width="{figure.width}" height="{figure.height}" viewBox="0 0 {figure.width} {figure.height}"'
    background = f'<rect width="{figure.width}" height="{figure.height}" fill="#ffffff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">\n{background}'


def _shape(shape: Line | Dot | Label) -> str:
    match shape:
        case Line():
            points = " ".join(_points(shape))
            return f'<polyline points="{points}" fill="none" stroke="{shape.colour}" stroke-width="{shape.width}"/>'
        case Dot():
            x, y = map(_number, shape.at)
            return f'<circle cx="{x}" cy="{y}" r="{shape.radius}" fill="{shape.colour}"/>'
        case Label():
            x, y = map(_number, shape.at)
            weight = ' font-weight="bold"' if shape.bold else ""
            where = f'x="{x}" y="{y}" text-anchor="{shape.anchor}" fill="{shape.colour}"'
            return f"<text {where}{weight}>{escape(shape.text)}</text>"


def _points(line: Line) -> Iterator[str]:
    for x, y in line.points:
        yield f"{_number(x)},{_number(y)}"


def _number(value: float) -> str:
    return str(round(value, 2))
