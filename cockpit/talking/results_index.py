"""The rows of a results file, read one by one: an index has their places and results, and nothing else is kept."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from cockpit.talking.json_rows import JsonRows, NotJsonError
from engines.files import open_regular
from recipes.problems import OperatorError, printable

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
        except (OSError, NotJsonError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
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
            rows = JsonRows(file, "rows", frozenset({"model", "metrics"}))
            for start, data in rows.items():
                self._add(start, data)
                if len(self) % _REPORT_ROWS == 0:
                    progress(len(self))
        if not rows.found:
            raise _unusable(self.path, "it has no rows")
        metrics = rows.others.get("metrics")
        self.model = str(rows.others.get("model") or "")
        self.metrics = metrics if isinstance(metrics, dict) else {}

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
