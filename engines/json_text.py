"""JSON that somebody else may have written: every text that cannot be read is one kind of error."""

from __future__ import annotations

import json
from typing import Any


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
