"""Numbers as screens, headless lines and reports show them.

`recipes.quantities` makes the text of numbers and quantities, for exporters and engines too. This module re-exports it
and adds what only screens and lines need: narrow columns, axis labels and clocks. No other module of `cockpit/` formats
a float.
"""

from __future__ import annotations

import math
import time

from recipes.quantities import (
    BINARY_UNITS,
    NOT_MEASURED,
    bits_per_weight,
    change,
    count,
    duration,
    exact,
    gigabytes,
    grouped,
    learning_rate,
    load,
    loss,
    number,
    percent,
    rate,
    size,
    size_in_both,
    temperature,
    three_digits,
    whole,
)

CLOCKS_DIFFER_S = 5.0
"""By how much a record of another process may be dated ahead before that is worth a word."""

__all__ = [
    "NOT_MEASURED",
    "ago",
    "bits_per_weight",
    "change",
    "clock",
    "count",
    "day_or_clock",
    "duration",
    "epoch",
    "exact",
    "gigabytes",
    "grouped",
    "learning_rate",
    "load",
    "loss",
    "minutes",
    "number",
    "of_total",
    "of_unit",
    "percent",
    "rate",
    "share_done",
    "size",
    "size_in_both",
    "temperature",
    "tick",
    "time_tick",
    "whole",
]


def of_unit(done: float, total: float | None, unit: str) -> str:
    """So many of a total in a unit of the plural: "120 of 291 tensors", "1 row"."""
    of = f" of {count(total)}" if total is not None else ""
    one = (done if total is None else total) == 1
    return f"{count(done)}{of} {unit.removesuffix('s') if one else unit}"


def of_total(used: float | None, total: float | None) -> str:
    """Used and total memory, both in the total's unit: 88/128 GiB."""
    if used is None:
        return NOT_MEASURED
    if not total or not math.isfinite(total) or not math.isfinite(used):
        return size(used)
    power = min(len(BINARY_UNITS) - 1, int(math.log(total, 1024))) if total >= 1 else 0
    unit = 1024.0**power
    return f"{three_digits(used / unit)}/{three_digits(total / unit)} {BINARY_UNITS[power]}"


def minutes(seconds: float) -> str:
    """Whole minutes, for a text that should change once a minute: 5m, 1h31m."""
    return duration(60 * (seconds // 60)).replace("m00s", "m")


def ago(seconds: float) -> str:
    """How long ago: "2m05s ago"; what a clock dated that was set back since is "dated 1h00m ahead"."""
    if seconds <= -CLOCKS_DIFFER_S:
        return f"dated {duration(math.floor(-seconds))} ahead"
    return f"{duration(max(0, math.floor(seconds)))} ago"


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


def epoch(value: float) -> str:
    """Passes over the data: 0.50."""
    return f"{value:.2f}"


def counted(number: int, noun: str) -> str:
    """A whole number with its noun: 1 record, 2 records."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def share_done(share: float) -> str:
    """The share of a job that is done, in six cells, so that a redrawn line does not move: " 57.3%"."""
    return f"{percent(share, 1):>6}"


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


def time_tick(seconds: float) -> str:
    """An axis label for seconds since the start, in one unit: 0, 30s, 2.5m, 12h, 3d."""
    if seconds < 60:
        return f"{whole(seconds)}s" if seconds else "0"
    if seconds < 3600:
        return f"{exact(seconds / 60)}m"
    return f"{exact(seconds / 3600)}h" if seconds < 172_800 else f"{exact(seconds / 86_400)}d"


def _halved(step: float) -> bool:
    return step != 0 and f"{abs(step):e}".startswith("2.5")
