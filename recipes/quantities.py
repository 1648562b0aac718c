"""Formats numbers and quantities for recipes, messages, lines, reports and screens.

All floors use these functions, so that a number reads the same everywhere. `cockpit.text.formatting` adds what only
screens need (axis labels, clocks, narrow columns). No other module formats a float (a test checks this).

Two kinds of functions:

- `exact` is for values from the operator: recipe values, limits, options. Its text reads back as the same number.
- The others are for measured values. They round: `number`, `loss`, `learning_rate`, `count`, `rate`, `size`,
  `duration`, `percent`, `load`, `temperature`, `bits_per_weight`.

Sizes are binary (KiB, MiB, GiB). A value that could not be measured (None) is "n/a" and never 0; NaN and the infinities
are "nan", "inf" and "-inf", as TOML writes them.
"""

from __future__ import annotations

import math
from decimal import Decimal

NOT_MEASURED = "n/a"
BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
DECIMAL_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
SMALL = 0.01
"""Smaller numbers have an exponent, as operators write learning rates: 1.5e-3."""
LARGE = 1e7
"""From this number on, numbers have an exponent if that is shorter: 1e9."""


def exact(value: float) -> str:
    """The shortest text that reads back as the same number: 3e-4, 1.5e-3, 0.05, 32, 100000, 1e9.

    A float without a fraction has no point: the text of 32.0 is `32`. The text of an int is its digits.
    """
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0:
        return "-0" if math.copysign(1.0, value) < 0 else "0"
    sign, digits, exponent = Decimal(repr(float(value))).normalize().as_tuple()
    assert isinstance(exponent, int), "the number is finite"
    text = "".join(map(str, digits))
    scientific = f"{text[0]}{'.' + text[1:] if text[1:] else ''}e{exponent + len(text) - 1}"
    plain = _plain(text, exponent)
    size = abs(value)
    shorter = size < SMALL or (size >= LARGE and len(scientific) < len(plain))
    return ("-" if sign else "") + (scientific if shorter else plain)


def rounded(value: float, digits: int) -> float:
    """The nearest number with that many significant digits, for what a program proposes: 0.00123 to 2 is 0.0012."""
    return float(f"{value:.{digits}g}")


def number(value: float | None, digits: int = 4) -> str:
    """A measured value with about `digits` significant digits: 0.4183, 12.35, 1.2e-7."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return _not_finite(value)
    if value == 0:
        return "0"
    if SMALL <= abs(value) < LARGE:
        return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}e{int(exponent)}"


def loss(value: float | None) -> str:
    """A loss in nats per token: 2.413."""
    return number(value)


def learning_rate(value: float | None) -> str:
    """A learning rate with at most three significant digits: 9.1e-5, 3e-4, 0.05."""
    return number(value) if value is None or not math.isfinite(value) else exact(float(f"{value:.2e}"))


def count(value: float | None) -> str:
    """A count, short: 412, 2.1k, 14k, 1.25M, 3.2G."""
    if value is None or not math.isfinite(value):
        return number(value)
    sign, amount = ("-" if value < 0 else ""), abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if amount >= limit * 0.9995:
            return f"{sign}{three_digits(amount / limit)}{unit}"
    return f"{sign}{three_digits(amount)}"


def whole(value: float | None) -> str:
    """A count in full: 12000."""
    return number(value) if value is None or not math.isfinite(value) else str(round(value))


def grouped(value: int) -> str:
    """A count in full with its thousands apart: 1,500,088,320."""
    return f"{value:,}"


def deviation(share: float) -> str:
    """How far a number is from a wanted one, as a share of it, with its sign: +0.006%, -2.1%, 0%."""
    percentage = 100 * share
    text = f"{percentage:+.3f}" if abs(percentage) < 0.1 else f"{percentage:+.1f}"
    return f"{text.rstrip('0').rstrip('.')}%" if float(text) else "0%"


def rate(per_second: float | None, unit: str = "tok") -> str:
    """Something per second: 2.1k tok/s."""
    return NOT_MEASURED if per_second is None else f"{count(per_second)} {unit}/s"


def size(value: float | None) -> str:
    """Bytes with a binary unit: 312 MiB, 1.2 TiB."""
    if value is None or not math.isfinite(value):
        return number(value)
    amount, sign = abs(float(value)), "-" if value < 0 else ""
    for unit in BINARY_UNITS[:-1]:
        if amount < 1023.5:
            return f"{sign}{amount:.0f} {unit}" if unit == "B" else f"{sign}{three_digits(amount)} {unit}"
        amount /= 1024
    return f"{sign}{three_digits(amount)} {BINARY_UNITS[-1]}"


def size_in_both(value: float | None) -> str:
    """Bytes with a binary unit and the decimal one of vendors: 1.2 GiB (1.29 GB)."""
    if value is None or not math.isfinite(value):
        return number(value)
    amount, sign, step = abs(float(value)), "-" if value < 0 else "", 0
    while amount >= 999.5 and step < len(DECIMAL_UNITS) - 1:
        amount, step = amount / 1000, step + 1
    return f"{size(value)} ({sign}{three_digits(amount)} {DECIMAL_UNITS[step]})" if step else size(value)


def gigabytes(value: float) -> str:
    """Bytes in 10^9 bytes, in which vendors and model hubs state the sizes of models: 0.104, 1.29, 28.4."""
    amount = value / 1e9
    return f"{amount:.3f}" if amount < 1 else three_digits(amount)


def duration(seconds: float | None) -> str:
    """A length of time in two units at most: 0.42s, 2.5s, 9s, 1m05s, 1h31m, 2d04h."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 9.95 and seconds != int(seconds):
        return f"{seconds:.2f}s" if seconds < 0.995 else f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"


def percent(share: float | None, digits: int = 0) -> str:
    """A share of one as a percentage, rounded down so that 100% means done."""
    if share is None or not math.isfinite(share):
        return NOT_MEASURED
    if abs(share) > 1e9:
        return f"{number(share * 100 if abs(share) < 1e300 else share)}%"
    scale = 10**digits
    return f"{math.floor(share * 100 * scale + 1e-9) / scale:.{digits}f}%"


def points(share: float) -> str:
    """A difference of shares in percentage points, with its sign: +2.5."""
    return f"{100 * share:+.1f}"


def change(before: float, after: float) -> str:
    """The change of a value, relative to the value before: -12.3%."""
    return f"{(after - before) / before * 100:+.1f}%"


def load(value: float | None) -> str:
    """A utilization in percent: 57%."""
    return NOT_MEASURED if value is None else f"{whole(value)}%"


def temperature(celsius: float | None) -> str:
    """A temperature: 57°C."""
    return NOT_MEASURED if celsius is None else f"{whole(celsius)}°C"


def bits_per_weight(value: float | None) -> str:
    """The bits per weight of a file: 4.85, 16.0."""
    return number(value, 3)


def three_digits(value: float) -> str:
    """A value of 0 or more with at most three significant digits before its unit: 1.2, 31.4, 312."""
    if value >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}".rstrip("0").rstrip(".")


def _not_finite(value: float) -> str:
    return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")


def _plain(digits: str, exponent: int) -> str:
    """Digits times a power of ten, without an exponent."""
    if exponent >= 0:
        return digits + "0" * exponent
    point = len(digits) + exponent
    return f"{digits[:point]}.{digits[point:]}" if point > 0 else f"0.{'0' * -point}{digits}"
