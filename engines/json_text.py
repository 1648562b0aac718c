"""JSON that somebody else may have written: every text that cannot be read is one kind of error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engines.files import MAX_WHOLE_BYTES, read_regular_text
from recipes.problems import OperatorError, printable


def parse_json(text: str | bytes) -> Any:
    """What `json.loads` gives.

    Raises:
        ValueError: it is no JSON, not UTF-8, or nested deeper than anything is, which `json` tells as a RecursionError:
            a class that nobody who reads a file thinks of.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path, max_bytes: int = MAX_WHOLE_BYTES) -> Any:
    """What `json.loads` gives of a file that somebody else may have made.

    Raises:
        OSError: it cannot be read, is no regular file, or is larger than `max_bytes`.
        ValueError: it is no JSON.
    """
    return parse_json(read_regular_text(path, max_bytes))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model's, adapter's or tokenizer's folder.

    Raises:
        OperatorError: it is missing or is none.
    """
    try:
        value = read_json(path)
    except FileNotFoundError as error:
        raise OperatorError(f"{path} is missing", "name a folder as save_pretrained writes it") from error
    except (ValueError, OSError) as error:
        raise OperatorError(f"{path} cannot be read: {printable(str(error), 200)}") from error
    if not isinstance(value, dict):
        raise OperatorError(f"{path} is not a JSON object")
    return value
