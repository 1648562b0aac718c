"""One tokenizer, one base model and one adapter for all exporter tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.exporters.small_models import build_adapter, build_model, build_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return build_model(tmp_path_factory.mktemp("base"), tokenizer)


@pytest.fixture(scope="session")
def adapter(tmp_path_factory: pytest.TempPathFactory, base: Path) -> Path:
    return build_adapter(tmp_path_factory.mktemp("adapter"), base)
