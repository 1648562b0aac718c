"""The rows of a results file, read one by one: an index has their places and results, and nothing else is kept.

`cockpit evaluate` writes one key on a line, so a row begins and ends with a line of its own. A line cannot be inside a
text, because JSON writes a line end in a text as two other characters.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from engines.files import open_regular
from recipes.problems import OperatorError, printable

MAX_LINE_BYTES = 64 * 1024 * 1024
MAX_HEAD_BYTES = 256 * 1024 * 1024
_ROWS, _NO_ROWS, _BEGINS, _ENDS = b'"rows": [', b'"rows": []', b"{", (b"}", b"},")
_REPORT_ROWS = 500
HINT = "give the file that cockpit evaluate --output wrote"


class RowVerdict(msgspec.Struct, frozen=True):
    """The result of one check."""

    check: str = ""
    passed: bool | None = None
    reason: str = ""


class ResultRow(msgspec.Struct, frozen=True):
    """One row of a results file."""

    key: str
    passed: bool
    name: str = ""
    where: str = ""
    prompt: str = ""
    expected: str = ""
    answer: str = ""
    verdicts: list[RowVerdict] = []
    ended: bool = True
    tokens: int = 0
    latency_s: float = 0.0

    @property
    def unjudged(self) -> bool:
        """No check failed, and one gave no verdict."""
        results = [verdict.passed for verdict in self.verdicts]
        return None in results and False not in results


class ResultsIndex:
    """The places of the rows of one file.

    Attributes:
        path: the file.
        model: the model that answered.
        metrics: by name.
        passed: whether each row passed, as bytes.
        keys: what pairs each row with one of a baseline, as 8 bytes of a SHA-256.
    """

    def __init__(self, path: Path, progress: Callable[[int], None] = lambda _rows: None) -> None:
        """Read the whole file once.

        Args:
            path: the file.
            progress: takes the number of rows so far; what it raises ends the reading.

        Raises:
            OperatorError: the file cannot be read, or is not a results file.
        """
        self.path, self.model = path, ""
        self.metrics: dict[str, Any] = {}
        self.passed, self.keys = bytearray(), array("Q")
        self._equal: Counter[bytes] = Counter()
        self._starts, self._sizes = array("q"), array("q")
        try:
            self._read(progress)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise _unusable(path, printable(str(error), 200)) from error

    def __len__(self) -> int:
        return len(self.passed)

    def row(self, at: int) -> ResultRow:
        """A row by its number from 0.

        Raises:
            OperatorError: the file has changed.
        """
        try:
            with open_regular(self.path) as file:
                file.seek(self._starts[at])
                return msgspec.json.decode(file.read(self._sizes[at]), type=ResultRow)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise _unusable(self.path, "it has changed since it was opened") from error

    def _read(self, progress: Callable[[int], None]) -> None:
        with open_regular(self.path) as file:
            place = self._read_head(file)
            if place < 0:
                return
            start, level = -1, 0
            parts: list[bytes] = []
            while line := file.readline(MAX_LINE_BYTES):
                word = line.strip()
                indent = len(line) - len(line.lstrip(b" "))
                if start < 0 and word == _BEGINS:
                    start, parts, level = place, [], indent
                if start >= 0:
                    parts.append(line)
                    if word in _ENDS and indent == level:
                        self._add(start, b"".join(parts).rstrip().rstrip(b","))
                        start = -1
                        if len(self) % _REPORT_ROWS == 0:
                            progress(len(self))
                elif word in {b"]", b"],"}:
                    return
                place += len(line)
        raise _unusable(self.path, "its list of rows has no end")

    def _read_head(self, file: Any) -> int:
        """What stands before the rows; returns the place where they begin, -1 without rows."""
        parts: list[bytes] = []
        place = 0
        while line := file.readline(MAX_LINE_BYTES):
            place += len(line)
            if line.strip() in (_ROWS, _NO_ROWS):
                head = msgspec.json.decode(b"".join(parts) + b'"rows": []}', type=dict[str, Any])
                metrics = head.get("metrics")
                self.model = str(head.get("model") or "")
                self.metrics = metrics if isinstance(metrics, dict) else {}
                return place if line.strip() == _ROWS else -1
            parts.append(line)
            if place > MAX_HEAD_BYTES:
                break
        raise _unusable(self.path, "it has no rows, or is written by another program")

    def _add(self, start: int, data: bytes) -> None:
        row = msgspec.json.decode(data, type=ResultRow)
        self.passed.append(row.passed)
        self.keys.append(self._identity(row))
        self._starts.append(start)
        self._sizes.append(len(data))

    def _identity(self, row: ResultRow) -> int:
        """What pairs it with a row of a baseline, as an evaluation pairs them: the prompt, the expected answer, and
        the place among equal ones."""
        task = f"{row.key.partition('.')[0]} {row.expected}".encode("utf-8", "replace")
        first = hashlib.sha256(task).digest()[:8]
        self._equal[first] += 1
        number = self._equal[first]
        return int.from_bytes(first if number == 1 else hashlib.sha256(first + b"%d" % number).digest()[:8])


def _unusable(path: Path, why: str) -> OperatorError:
    return OperatorError(f"{printable(str(path), 400)} is not a file of results: {why}", HINT)
