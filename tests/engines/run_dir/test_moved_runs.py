"""Folders that are recorded by absolute path are found after a move."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.run_dir.moved_runs import place_now


def test_an_existing_path_stays(tmp_path: Path) -> None:
    old, new = (tmp_path / root / "run" / "stages" / "base" / "out" for root in ("old", "new"))
    for folder in (old, new):
        folder.mkdir(parents=True)
    assert place_now(old, new) == old


@pytest.mark.parametrize("near", ["run/stages/tuned/out", "later/stages/tuned/2/checkpoints/step-4", "a"])
def test_a_folder_is_found_in_its_moved_run(tmp_path: Path, near: str) -> None:
    now = tmp_path / "new" / "run" / "stages" / "base" / "1" / "out"
    now.mkdir(parents=True)
    recorded = Path("/gone/stages/of/life/run/stages/base/1/out")
    assert place_now(recorded, tmp_path / "new" / near) == now


@pytest.mark.parametrize("recorded", ["/gone/run/stages/base/out", "/gone/model", "org/name", "stages/x", "/stages"])
def test_a_path_that_is_not_found_stays_as_recorded(tmp_path: Path, recorded: str) -> None:
    assert place_now(Path(recorded), tmp_path / "run" / "stages" / "tuned" / "out") == Path(recorded)
