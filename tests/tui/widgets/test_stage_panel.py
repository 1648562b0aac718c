"""The files of a finished export on the run's screen, from a recorded run with six types and three adapters."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from cockpit.runs.state import RunState
from cockpit.tui.app import CockpitApp
from cockpit.tui.widgets.stage_panel import stage_panel
from engines.events.attempts import AttemptEnded, AttemptStarted
from engines.events.runs import StageStarted, StageSucceeded
from engines.words import EndReason
from tests.tui.journals import begun
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


def test_a_small_panel_begins_with_the_result_and_says_what_it_leaves_out() -> None:
    journal = begun()
    counts = {"rows": 38.0, "truncated_rows": 0.0, "dropped_rows": 0.0, "tokens": 966.0, "perplexity.Q8_0": 9.5}
    metrics: dict[str, float | None] = {**counts, "loss": 2.25, "perplexity": 9.49, "success": 0.5}
    journal.say("sup", StageStarted(stage="questions", kind="evaluate", attempt=1), 1.0)
    journal.open("e1.questions", "engine", "questions", 1)
    journal.say("e1.questions", AttemptStarted(stage="questions", kind="evaluate", attempt=1), 1.0)
    done = StageSucceeded(stage="questions", attempt=1, fingerprint="f", manifest_sha256="0" * 64, metrics=metrics)
    journal.say("e1.questions", done, 1.0)
    journal.say("e1.questions", AttemptEnded(stage="questions", attempt=1, reason=EndReason.SUCCEEDED))
    journal.say("sup", AttemptEnded(stage="questions", attempt=1, reason=EndReason.SUCCEEDED, exit=0))
    state = RunState()
    state.apply_all(journal.events)
    stage = next(stage for stage in state.stages if stage.name == "questions")
    lines = [line.plain.strip() for line in stage_panel(stage, 78, 9, {})]
    assert lines[-5:] == [
        "loss  2.250",
        "perplexity  9.490",
        "perplexity.Q8_0  9.500",
        "success  0.5000",
        "… 4 more: z enlarges, cockpit show lists all",
    ]
    lines = [line.plain.strip() for line in stage_panel(stage, 78, 30, {}, enlarged=True)]
    assert [line.split()[0] for line in lines[-4:]] == ["rows", "tokens", "truncated_rows", "dropped_rows"]
