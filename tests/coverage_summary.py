"""`python -m tests.coverage_summary`: what share of the product's lines the last test run reached, in four lines.

A line counts when the first example of a test ran it in any process: pytest's workers, supervisors, engines, samplers,
workers of llama.cpp. A process that is ended by SIGKILL leaves no record, so what only such processes ran is missing
here.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from coverage import Coverage

FLOOR_PERCENT = 90.0
"""Below this the tests have failed."""


def main() -> int:
    """Combine the processes' records, print the shares; 1 when too little was reached."""
    measured = Coverage()
    measured.combine()
    measured.save()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        measured.json_report(outfile=str(report))
        files = json.loads(report.read_text())["files"]
    return summary(
        {name: (file["summary"]["covered_lines"], file["summary"]["num_statements"]) for name, file in files.items()}
    )


def summary(files: dict[str, tuple[int, int]]) -> int:
    """Print the share of each floor and of all; 1 when it is below the limit.

    Args:
        files: lines that ran and lines in all, by path.
    """
    covered: Counter[str] = Counter()
    lines: Counter[str] = Counter()
    for name, (ran, count) in files.items():
        for part in (name.partition("/")[0], "all"):
            covered[part] += ran
            lines[part] += count
    shares = {part: 100 * covered[part] / lines[part] for part in sorted(lines, key=lambda part: (part == "all", part))}
    sys.stdout.write(
        "lines run by tests: " + ", ".join(f"{part} {share:.1f} %" for part, share in shares.items()) + "\n"
    )
    missed = sorted(files, key=lambda name: files[name][0] - files[name][1])[:5]
    sys.stdout.write(
        "most lines missed: " + ", ".join(f"{name} ({files[name][1] - files[name][0]})" for name in missed) + "\n"
    )
    sys.stdout.write("each line: .venv/bin/python -m coverage report --show-missing\n")
    if shares["all"] < FLOOR_PERCENT:
        sys.stdout.write(f"coverage failed: {shares['all']:.1f} %; at least {FLOOR_PERCENT:g} % is required\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
