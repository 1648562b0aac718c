"""One whole run for all tests of shipping; each spoils a copy of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cockpit.shipping.planted import Whole, build, copied
from tests.exporters.small_models import build_tokenizer


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("ship")
    made = build(folder, build_tokenizer(folder / "tokenizer"))
    # As if the folder of runs was moved since: what the run recorded by its old place must be found in the new one.
    made.runs.rename(folder / "moved")
    (folder / "place").mkdir()
    (folder / "moved").rename(folder / "place" / "runs")
    return Whole(folder / "place", made.outside)


@pytest.fixture
def whole(original: Whole, tmp_path: Path) -> Whole:
    return copied(original, tmp_path)
