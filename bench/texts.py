"""Measures texts as data: input read per CPU second of rows, of one long file and of pages, and the memory of each."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.rows import Row

BYTES = int(os.environ.get("BENCH_TEXT_BYTES", "200000000"))
_PREPARE = """
import resource, sys, time
from pathlib import Path
from engines.data.text import prepare_text

began = time.process_time()
prepare_text(sys.argv[1], Path(sys.argv[2]))
print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure() -> list[Row]:
    """Rates and peak memory of a text stage on three kinds of files of the same size."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for name, suffix, parts in (
            ("rows", "jsonl", _rows()),
            ("one file", "txt", _lines()),
            ("a page", "html", _page()),
        ):
            file = Path(folder, f"text.{suffix}")
            size = _write(file, parts, min(BYTES, 50_000_000) if suffix == "html" else BYTES)
            seconds, peak_kib = _prepare(file)
            file.unlink()
            found.append(Row(f"text of {name}", size / seconds / 1e6, "MB/s", f"{size / 1e6:.0f} MB, one core, once"))
            found.append(Row(f"memory, text of {name}", peak_kib / 1024, "MiB", "peak of the process"))
    return found


def _prepare(file: Path) -> tuple[float, float]:
    """CPU seconds, and the peak of resident memory in KiB."""
    with tempfile.TemporaryDirectory() as out:
        words = [sys.executable, "-c", _PREPARE, str(file), out]
        printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[0]), float(printed[1])


def _write(file: Path, parts: Iterator[str], size: int) -> int:
    done = 0
    with file.open("w") as out:
        while done < size:
            done += out.write(next(parts))
    return done


def _sentences() -> Iterator[str]:
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(5000)]
    while True:
        yield " ".join(rng.choices(words, k=12)) + ". "


def _rows() -> Iterator[str]:
    """Rows of about 1,500 bytes."""
    sentences = _sentences()
    while True:
        yield json.dumps({"text": "".join(next(sentences) for _ in range(20))}) + "\n"


def _lines() -> Iterator[str]:
    return (f"{sentence}\n" for sentence in _sentences())


def _page() -> Iterator[str]:
    return (f"<p class='a'>{sentence} <b>&amp;</b></p>\n" for sentence in _sentences())
