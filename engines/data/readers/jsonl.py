"""JSON Lines: one JSON value per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engines.files import open_regular
from recipes.problems import OperatorError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def jsonl_values(file: Path) -> Iterator[tuple[str, Any]]:
    """The values of all non-empty lines, each with its `file:line`.

    Raises:
        OperatorError: a line is not JSON; the message begins `file:line`.
    """
    decoder = msgspec.json.Decoder()
    with open_regular(file) as lines:
        for number, line in enumerate(lines, start=1):
            text = line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
            if not text.strip():
                continue
            where = f"{file}:{number}"
            try:
                yield where, decoder.decode(text)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise OperatorError(
                    f"{where}: not a row of messages: {error}", "each line must be one JSON object"
                ) from error
