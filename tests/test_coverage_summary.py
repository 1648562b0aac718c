"""The share of lines that tests reach is added up from files, and too little of it is a failure."""

from __future__ import annotations

import pytest

from tests.coverage_summary import FLOOR_PERCENT, summary


def test_shares_are_of_lines_and_not_of_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert summary({"cockpit/a.py": (99, 100), "cockpit/b.py": (2, 2), "recipes/c.py": (98, 98)}) == 0
    told = capsys.readouterr().out
    assert "cockpit 99.0 %, recipes 100.0 %, all 99.5 %" in told
    assert "most lines missed: cockpit/a.py (1)" in told


def test_too_few_lines_are_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert summary({"cockpit/a.py": (89, 100)}) == 1
    assert f"at least {FLOOR_PERCENT:g} %" in capsys.readouterr().out
