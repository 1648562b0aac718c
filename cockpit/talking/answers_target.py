"""What a screen of answers shows: a results file, and a baseline beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class AnswersTarget:
    """Results of an evaluation, and those of a baseline on the same rows."""

    file: Path
    baseline: Path | None = None
