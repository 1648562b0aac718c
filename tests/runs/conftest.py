"""Real runs end with their test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runs.harness import nothing_left


@pytest.fixture(autouse=True)
def _nothing_left(tmp_path: Path) -> Iterator[None]:
    """Whatever happens, no process of a run in `tmp_path`/runs survives its test."""
    with nothing_left(tmp_path / "runs"):
        yield
