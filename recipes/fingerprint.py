"""What makes a stage's output today's: its kind, its resolved fields, and the outputs it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

LAUNCH_ONLY = ("python", "threads", "retry", "gate")
"""Fields that decide how a stage is run and judged, and not what it makes: changing them keeps what is done."""


def fingerprint(stage: Mapping[str, Any], parent_hashes: Sequence[str]) -> str:
    """SHA-256 over a stage's resolved fields (JSON-able values) and the hashes of its inputs, in the order of fields."""
    fields = {name: value for name, value in stage.items() if name not in LAUNCH_ONLY}
    canonical = json.dumps({"stage": fields, "parents": list(parent_hashes)}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
