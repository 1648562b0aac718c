"""What a finished stage depends on, as one hash: a stage whose fingerprint is unchanged need not run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

FORMAT = 1
LEFT_OUT = frozenset({"name", "python", "threads", "retry", "gate"})
"""Fields that do not decide what a stage produces.

The name is the stage's identity already; `python` and `threads` say where and how fast it runs; `retry` only matters
to an attempt that fails; gates judge the result and are checked again without running the stage again.
"""


def fingerprint(stage: Mapping[str, Any], parent_hashes: Iterable[str]) -> str:
    """SHA-256 (hex) of a stage's kind, its resolved fields and its inputs.

    Args:
        stage: every field with its value, as JSON can hold it.
        parent_hashes: what identifies each input, by the order of the fields' names: the SHA-256 of the input's
            manifest.
    """
    fields = {key: value for key, value in stage.items() if key not in LEFT_OUT}
    content = {"format": FORMAT, "stage": fields, "inputs": list(parent_hashes)}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()
