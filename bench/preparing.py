"""Measures the preparation of rows: input read per CPU second, and the memory of a tenth against the whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec

from bench.rows import Row

ROWS = int(os.environ.get("BENCH_ROWS", "1000000"))
_PREPARE = """
import resource, sys, time
from pathlib import Path
from engines.data.door import DataSource, ReadCounts
from engines.data.preparing.divide import SplitWish
from engines.data.preparing.rows import RowOptions, prepare_rows

place, out, work, near = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare_rows(DataSource(place), ReadCounts(), out, work, RowOptions(SplitWish(0.1, 0.1), near_duplicates=near))
print(time.process_time() - began, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure() -> list[Row]:
    """Rates of a preparation with and without the search for near duplicates, and its memory."""
    with tempfile.TemporaryDirectory() as folder:
        tenth, whole = Path(folder, "tenth.jsonl"), Path(folder, "whole.jsonl")
        _write(tenth, ROWS // 10)
        _write(whole, ROWS)
        size = whole.stat().st_size
        small = _prepare(tenth, "ignore")
        large = _prepare(whole, "ignore")
        near = _prepare(tenth, "keep")
        near_size = tenth.stat().st_size
    how = f"{ROWS} rows of {size // ROWS} bytes, JSON Lines of messages, one core, once"
    return [
        Row("rows prepared", size / large[0] / 1e6, "MB/s", how),
        Row("rows prepared, with near duplicates", near_size / near[0] / 1e6, "MB/s", f"{ROWS // 10} rows, once"),
        Row("memory of a tenth", small[2] / 1024, "MiB", f"peak; {small[1] / 1024:.0f} MiB before the first row"),
        Row("memory of the whole", large[2] / 1024, "MiB", "peak; the difference is what a row costs"),
        Row("memory of a row", (large[2] - small[2]) * 1024 / (ROWS * 0.9), "bytes", "digests, lengths, groups"),
    ]


def _prepare(place: Path, near: str) -> tuple[float, float, float]:
    """CPU seconds, and the peak of resident memory in KiB before and after."""
    with tempfile.TemporaryDirectory() as folder:
        out, scratch = Path(folder, "prepared"), Path(folder, "scratch")
        out.mkdir()
        scratch.mkdir()
        words = [sys.executable, "-c", _PREPARE, str(place), str(out), str(scratch), near]
        printed = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()
    return float(printed[0]), float(printed[1]), float(printed[2])


def _write(file: Path, rows: int) -> None:
    """Conversations of about 650 bytes; one in twenty differs from another in its number only."""
    rng = random.Random(0)
    words = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(5000)]
    sentences = [" ".join(rng.choices(words, k=12)) + ". " for _ in range(20_000)]
    encode, said = msgspec.json.Encoder().encode, sentences[:7]
    with file.open("wb", buffering=1024 * 1024) as lines:
        for number in range(rows):
            if number % 20:
                said = rng.choices(sentences, k=7)
            turns = [
                {"role": "system", "content": "Answer briefly."},
                {"role": "user", "content": "".join(said[:2]) + str(number)},
                {"role": "assistant", "content": "".join(said[2:])},
            ]
            lines.write(encode({"messages": turns, "category": f"kind {number % 7}"}) + b"\n")
