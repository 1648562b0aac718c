"""The files of a finished export on the run's screen, from a recorded run with six types and three adapters."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cockpit.tui.app import CockpitApp
from tests.tui.looking import picture, until

RECORDED = Path(__file__).resolve().parents[3] / "screenshots" / "recorded" / "20261121-0607-four-phases"
FILES = [*(f"{name} " for name in ("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_K_S")), "F16 + atlas"]


@pytest.mark.parametrize(("size", "shown"), [((80, 24), 4), ((160, 48), 14)])
async def test_files_are_in_a_table_and_z_enlarges_it(tmp_path: Path, size: tuple[int, int], shown: int) -> None:
    run = tmp_path / "runs" / RECORDED.name
    shutil.copytree(RECORDED, run)
    app = CockpitApp(run.parent)

    def rows() -> int:
        return sum(re.search(r"[KM]iB .*e-\d+ .*%", line) is not None for line in picture(app).splitlines())

    async with app.run_test(size=size) as pilot:
        app.open_run(run)
        await until(pilot, lambda: "mean KL" in picture(app) and rows() >= shown, "the table")
        before = picture(app)
        assert all(name in before for name in FILES[:shown])
        assert "more: z enlarges" in before
        await pilot.press("z")
        await until(pilot, lambda: rows() > shown and "z enlarges" not in picture(app), "a larger table")
        assert "more: cockpit show lists all" in picture(app) or rows() == 24
        await pilot.press("z")
        await until(pilot, lambda: rows() == shown, "the charts again")
