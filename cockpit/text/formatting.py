"""Numbers as people read them: the only place that turns one into text for a screen, a headless line or a report.

A value that could not be measured (None) is "n/a" and never 0; NaN and the infinities are "nan", "inf" and "-inf".
"""

from __future__ import annotations

import math
import time

NOT_MEASURED = "n/a"
_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def number(value: float | None, digits: int = 4) -> str:
    """A value with about `digits` significant digits: 0.4183, 12.35, 1.2e-07."""
    if value is None:
        return NOT_MEASURED
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3 or size >= 1e7:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(size)))
    return f"{value:.{decimals}f}"


def learning_rate(value: float | None) -> str:
    """A learning rate, always with an exponent when it is small: 9.1e-5, 3e-4."""
    if value is None or not math.isfinite(value) or value == 0 or abs(value) >= 0.1:
        return number(value, 3)
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def count(value: float | None) -> str:
    """A count, short: 412, 2.1k, 14k, 1.25M, 3.2G."""
    if value is None or not math.isfinite(value):
        return number(value)
    sign, size = ("-" if value < 0 else ""), abs(value)
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if size >= limit * 0.9995:
            return f"{sign}{_three(size / limit)}{unit}"
    return f"{sign}{_three(size)}"


def whole(value: float | None) -> str:
    """A count in full: 12000."""
    return number(value) if value is None or not math.isfinite(value) else str(round(value))


def rate(per_second: float | None, unit: str = "tok") -> str:
    """Something per second: 2.1k tok/s."""
    return f"{count(per_second)} {unit}/s" if per_second is not None else NOT_MEASURED


def size(value: float | None) -> str:
    """Bytes with a binary unit: 312 MiB, 1.2 TiB."""
    if value is None or not math.isfinite(value):
        return number(value)
    amount, sign = abs(float(value)), "-" if value < 0 else ""
    for unit in _BINARY[:-1]:
        if amount < 1023.5:
            return f"{sign}{amount:.0f} {unit}" if unit == "B" else f"{sign}{_three(amount)} {unit}"
        amount /= 1024
    return f"{sign}{_three(amount)} {_BINARY[-1]}"


def short_size(value: float | None) -> str:
    """Bytes in few cells: 312M, 1.2T (binary)."""
    return size(value).replace(" ", "").removesuffix("iB") if value is not None else NOT_MEASURED


def of_total(used: float | None, total: float | None) -> str:
    """Memory used of memory there is, in the total's unit: 88/128G."""
    if used is None:
        return NOT_MEASURED
    if not total or not math.isfinite(total) or not math.isfinite(used):
        return short_size(used)
    power = min(len(_BINARY) - 1, int(math.log(total, 1024))) if total >= 1 else 0
    unit = 1024.0**power
    return f"{_three(used / unit)}/{_three(total / unit)}{_BINARY[power][0]}"


def duration(seconds: float | None) -> str:
    """A length of time in two units at most: 0.42s, 9s, 1m05s, 1h31m, 2d04h."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds < 9.95:
        return f"{seconds:.2f}s" if seconds < 0.995 else f"{seconds:.1f}s"
    whole_s = round(seconds)
    if whole_s < 60:
        return f"{whole_s}s"
    minutes, rest = divmod(whole_s, 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h{minutes:02d}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h"


def ago(seconds: float) -> str:
    """How long ago: "2m05s ago"."""
    return (
        f"{duration(max(0.0, math.floor(seconds) if seconds >= 1 else 0.0)).replace('.00', '').replace('.0', '')} ago"
    )


def clock(t: float) -> str:
    """Local time of day of Unix seconds: 14:02:10."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(t))
    except (OverflowError, ValueError, OSError):
        return "--:--:--"


def day_or_clock(t: float, now: float) -> str:
    """Local time of day, or the date of another day: 14:02:10, Nov 20."""
    try:
        then, today = time.localtime(t), time.localtime(now)
    except (OverflowError, ValueError, OSError):
        return "--"
    return clock(t) if then[:3] == today[:3] else time.strftime("%b %d", then)


def percent(share: float | None, digits: int = 0) -> str:
    """A share of one as a percentage, rounded down so that 100% means done."""
    if share is None or not math.isfinite(share):
        return NOT_MEASURED
    if abs(share) > 1e9:
        return f"{number(share * 100 if abs(share) < 1e300 else share)}%"
    scale = 10**digits
    return f"{math.floor(share * 100 * scale + 1e-9) / scale:.{digits}f}%"


def tick(value: float, step: float) -> str:
    """An axis label for a value on a grid with the given spacing: 0, 250, 1.25k, 0.3, 1e-4."""
    if value == 0:
        return "0"
    size_ = max(abs(value), abs(step))
    if size_ >= 1e3 or size_ < 1e-3:
        return count(value) if size_ >= 1e3 else learning_rate(value)
    decimals = max(0, -math.floor(math.log10(abs(step)) + 1e-9)) if step else 3
    text = f"{value:.{min(6, decimals + (1 if _halved(step) else 0))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _halved(step: float) -> bool:
    return step != 0 and f"{abs(step):e}".startswith("2.5")


def _three(value: float) -> str:
    if value >= 99.95 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}".rstrip("0").rstrip(".")
