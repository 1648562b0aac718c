"""Shared tiny inputs; tests only read the folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engines.training import tiny


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 windows of 16 tokens: 11 batches of 2, 6 steps of 2 batches; the last window is not full."""
    return tiny.write_tokens(tmp_path_factory.mktemp("tokens"), {"train": 16 * 21 + 3, "val": 100})


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def messages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_messages(tmp_path_factory.mktemp("messages"))
