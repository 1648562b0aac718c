"""Screens of tests paint every change at once; a test of the delay sets it itself."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _every_change_is_painted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit.tui.screens.run.PAINT_S", 0.0)
