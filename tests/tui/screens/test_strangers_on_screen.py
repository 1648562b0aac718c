"""A folder with strangers' runs on Home and on the Run screen: every run has a row, and looking never acts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cockpit.tui.screens.home import HomeScreen
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.widgets.run_table import RunTable
from tests.strangers import Canary, contents, strangers, untouched_canary
from tests.tui.looking import no_control_characters, until
from tests.tui.made_runs import make_run
from tests.tui.screens.test_home import opened

SHOWN = (
    "interpreter-named",
    "another-owner",
    "lock-names-canary",
    "journal-pipe",
    "journal-loop",
    "journal-hostile-names",
    "journal-forged-times",
    "exit-forged-types",
    "parts-pipes",
    "run-json-device",
    "recipe-pipe",
    "plan-device",
    "control-requests",
    "stages-loop",
    "console-huge",
    "console-pipe",
    "fifo-device",
)
"""The runs whose screen is opened: one for each file that the screen reads."""


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Canary]:
    with untouched_canary(tmp_path) as canary:
        yield canary


async def test_home_lists_every_stranger_s_run_and_enter_shows_it_without_touching_it(
    tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "runs"
    mine = make_run(root, "mine")
    made = dict(strangers(root, canary))
    before = contents(root)
    async with opened(root, (120, 40)) as (home, pilot):
        table = home.query_one(RunTable)

        def is_read() -> bool:
            return len(table.items) == len(made) + 1 and all(run.reading is None for run in table.items)

        await until(pilot, is_read, "a row for every run")
        rows = {run.path: run for run in table.items}
        assert rows[str(mine.root)].state == "succeeded"
        unreadable = {name for name, run in made.items() if rows[str(run.root)].state == "unreadable"}
        assert {"run-json-device", "run-json-pipe"} <= unreadable
        assert all(rows[str(made[name].root)].reason for name in unreadable)
        table.focus()
        for name, run in ((name, made[name]) for name in SHOWN if name in made):
            table.select(str(run.root))
            await pilot.press("enter")
            screen = pilot.app.screen
            assert isinstance(screen, RunScreen), name
            await until(pilot, lambda screen=screen: screen.source.reading is None, f"{name} is read")  # type: ignore[misc]
            assert no_control_characters(pilot.app), name
            await pilot.app.workers.wait_for_complete()
            await pilot.press("escape")
            await until(pilot, lambda: isinstance(pilot.app.screen, HomeScreen), "Home")
        assert contents(root) == before
