"""JSON from elsewhere: every text that cannot be parsed raises one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.files import MAX_READ_BYTES, read_regular_text
from recipes.problems import OperatorError, printable


def parse_json(text: str | bytes) -> Any:
    """The value that `json.loads` returns.

    Raises:
        ValueError: the text is not JSON, not UTF-8, or nested too deeply. For the last case `json` raises
            RecursionError, which callers that read a file do not expect.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path, max_bytes: int = MAX_READ_BYTES) -> Any:
    """The value of a JSON file from elsewhere.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is larger than `max_bytes`.
        ValueError: the file is not JSON.
    """
    return parse_json(read_regular_text(path, max_bytes))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model's, adapter's or tokenizer's folder.

    Raises:
        OperatorError: the file is missing, cannot be read, or is not a JSON object.
    """
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise OperatorError(f"{path} is missing", "name a folder that save_pretrained wrote") from error
    except (ValueError, OSError) as error:
        raise OperatorError(f"{path} cannot be read: {printable(str(error), 200)}") from error
    if not isinstance(value, dict):
        raise OperatorError(f"{path} is not a JSON object")
    return value
