"""Kept verdicts of a judge: one line each, written at once, so that a killed evaluation asks for none twice.

A verdict is found by what was sent: the URL, the judge's model, the rubric, the task and the answer. Replies without a
verdict are not kept.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import msgspec

from engines.files import open_append, open_regular

MAX_LINE_BYTES = 65_536


class KeptVerdict(msgspec.Struct, frozen=True):
    """The score of one request, and the judge's reason."""

    asked: str
    score: Annotated[int, msgspec.Meta(ge=1, le=10)]
    reason: str = ""


class KeptVerdicts:
    """The verdicts in a file, which need not exist; a line that a kill cut short is not a verdict."""

    def __init__(self, file: Path) -> None:
        """Read what there is.

        Raises:
            OSError: the file cannot be read.
        """
        self._file = file
        self._found: dict[str, KeptVerdict] = {}
        self._whole = True
        with suppress(FileNotFoundError), open_regular(file) as lines:
            while line := lines.readline(MAX_LINE_BYTES):
                self._whole = line.endswith(b"\n")
                with suppress(msgspec.MsgspecError, UnicodeDecodeError):
                    one = msgspec.json.decode(line, type=KeptVerdict)
                    self._found[one.asked] = one

    def get(self, asked: str) -> tuple[int, str] | None:
        """The score and the reason of a request; None if it has none yet."""
        one = self._found.get(asked)
        return None if one is None else (one.score, one.reason)

    def add(self, asked: str, score: int, reason: str) -> None:
        """Keep a verdict; not for several threads at once.

        Raises:
            OSError: it cannot be written.
        """
        one = KeptVerdict(asked, score, reason)
        line = (b"" if self._whole else b"\n") + msgspec.json.encode(one) + b"\n"
        descriptor = open_append(self._file)
        try:
            self._whole = os.write(descriptor, line) == len(line)
        finally:
            os.close(descriptor)
        self._found[asked] = one


def name_of(url: str, body: Mapping[str, Any]) -> str:
    """What a request is found by."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()
