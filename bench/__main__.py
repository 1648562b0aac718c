"""`python -m bench [NAME…]`: measures and prints one table. It has figures and no limits: no test asserts a time."""

from __future__ import annotations

import importlib
import platform
import sys

from bench.rows import Row

PARTS = (
    "events",
    "looks",
    "preparing",
    "quantize",
    "ranks",
    "readers",
    "saves",
    "screens",
    "shared_cores",
    "steps",
    "texts",
)


def main(names: list[str]) -> int:
    """Measure the named parts, or all of them."""
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        sys.stderr.write(f"bench: no part {unknown[0]!r}; allowed: {', '.join(PARTS)}\n")
        return 2
    rows: list[Row] = []
    for name in names or PARTS:
        sys.stderr.write(f"measuring {name} …\n")
        rows += importlib.import_module(f"bench.{name}").measure()
    width = max(len(row.name) for row in rows)
    sys.stdout.write(
        f"{platform.machine()}, Python {platform.python_version()}; best of five unless noted otherwise\n\n"
    )
    for row in rows:
        sys.stdout.write(f"{row.name:<{width}}  {_number(row.value):>10} {row.unit:<9}  {row.how}\n")
    return 0


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
