"""`python -m screenshots`: every screen at 80x24 and 160x48, from the runs in `screenshots/recorded/`, as PNG files.

The screens are those of the product, and the journals are those of real runs. To show a run as live, its screen reads
only the first part of the journal.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from textual.pilot import Pilot

from cockpit.forms.rows_target import find_rows
from cockpit.replay.playback import Playback
from cockpit.runs.health import Clock, Health, health
from cockpit.runs.state import RunState, fold
from cockpit.tui.app import CockpitApp
from cockpit.tui.screens.rows import RowsScreen
from engines.artifacts.adapter_folder import BASE_JSON
from engines.events.kinds import AnyEvent
from engines.events.steps import Step
from engines.journal import read_journal
from engines.run_dir.paths import RunDir
from engines.words import RunStatus
from recipes.shipped import shipped_recipes
from screenshots.raster import save_picture, screen_text

HERE = Path(__file__).resolve().parent
RECORDED = HERE / "recorded"
ROWS = HERE / "rows"
SIZES = ((80, 24), (160, 48))
SETTLE_TURNS = 40


class Moment:
    """A recorded run at one moment, as if it were still running."""

    playback: Playback | None = None
    catching_up = False
    reading: float | None = None
    live = True

    def __init__(self, events: list[AnyEvent]) -> None:
        self._state = fold(events)

    @property
    def state(self) -> RunState:
        """The state at the moment."""
        return self._state

    @property
    def run_state(self) -> RunStatus:
        """The status of the run at the moment."""
        return self._state.state

    def poll(self) -> bool:
        """Return False: there are no new events."""
        return False

    @property
    def health(self) -> Health:
        """How the run was doing at the moment."""
        return health(self._state, self.run_state, Clock())

    def now(self) -> float:
        """The moment, in Unix seconds."""
        return self._state.last_event_t or 0.0

    def close(self) -> None:
        """Do nothing: no file is open."""


@dataclass(frozen=True)
class Shot:
    """A new application with its pilot, and a folder of recorded runs."""

    app: CockpitApp
    pilot: Pilot[None]
    runs: Path


@dataclass(frozen=True)
class Picture:
    """One screen: its name, and the steps that open it."""

    name: str
    open: Callable[[Shot], Awaitable[None]]


async def _settle(pilot: Pilot[None]) -> None:
    """Wait until the screen no longer changes."""
    before = ""
    for _ in range(SETTLE_TURNS):
        await pilot.pause(0.05)
        now = screen_text(pilot.app)
        if now == before:
            return
        before = now


def _run(runs: Path, recipe: str) -> Path:
    return next(path for path in sorted(runs.iterdir()) if path.name.endswith(f"-{recipe}"))


def _until_step(run: Path, stage: str, step: int) -> list[AnyEvent]:
    events: list[AnyEvent] = []
    for event in read_journal(RunDir(run).journal):
        events.append(event)
        if isinstance(event, Step) and event.stage == stage and event.step >= step:
            break
    return events


async def _home(shot: Shot) -> None:
    await _settle(shot.pilot)
    await shot.pilot.press("tab")


async def _form(shot: Shot) -> None:
    demo = next(path for path in shipped_recipes() if path.stem == "demo")
    shot.app.open_recipe(demo)
    await _settle(shot.pilot)
    await shot.pilot.press(*["down"] * 4, "enter", *["down"] * 6, "enter")


async def _live(shot: Shot) -> None:
    from cockpit.tui.screens.run import RunScreen

    run = _run(shot.runs, "demo")
    shot.app.push_screen(RunScreen(Moment(_until_step(run, "base", 430)), run_dir=run))


async def _export(shot: Shot) -> None:
    shot.app.open_run(_run(shot.runs, "demo"))


async def _guard(shot: Shot) -> None:
    shot.app.open_replay(_run(shot.runs, "fake"))
    await _settle(shot.pilot)
    await shot.pilot.press("space", "home", *["e"] * 4)  # to the tripped guard


async def _checkpoints(shot: Shot) -> None:
    shot.app.open_checkpoints(_run(shot.runs, "demo"))


async def _files(shot: Shot) -> None:
    shot.app.open_run(_run(shot.runs, "four-phases"))


async def _quantize(shot: Shot) -> None:
    await _checkpoints(shot)
    await _settle(shot.pilot)
    await shot.pilot.press("g")


async def _rows(shot: Shot) -> None:
    sets = ["max_length=640", "truncation=answer"]
    target = find_rows(str(ROWS / "data"), shot.runs, model=str(ROWS / "model"), sets=sets)
    screen = RowsScreen(target)
    await shot.app.push_screen(screen)
    await _row(shot, screen, 1)
    await shot.pilot.press("right")
    await _row(shot, screen, 2)


async def _row(shot: Shot, screen: RowsScreen, number: int) -> None:
    """Wait for the row that the helper process gives."""
    while screen.view is None or screen.view.number != number:
        await shot.pilot.pause(0.05)


async def _cut(shot: Shot) -> None:
    await _rows(shot)
    await shot.pilot.press("end")
    await _settle(shot.pilot)


async def _help(shot: Shot) -> None:
    await _live(shot)
    await _settle(shot.pilot)
    await shot.pilot.press("question_mark")


PICTURES = (
    Picture("home", _home),
    Picture("form", _form),
    Picture("run", _live),
    Picture("finished", _export),
    Picture("replay", _guard),
    Picture("files", _files),
    Picture("checkpoints", _checkpoints),
    Picture("quantize", _quantize),
    Picture("rows", _rows),
    Picture("rows-cut", _cut),
    Picture("help", _help),
)


async def take(picture: Picture, size: tuple[int, int], runs: Path, folder: Path) -> Path:
    """Draw one picture at one size."""
    app = CockpitApp(runs)
    async with app.run_test(size=size) as pilot:
        await picture.open(Shot(app, pilot, runs))
        await _settle(pilot)
        return save_picture(app, folder / f"{picture.name}-{size[0]}x{size[1]}.png")


def main(names: list[str]) -> int:
    """Draw the named pictures, or all of them."""
    os.environ["COCKPIT_THEME"] = "cockpit"  # not that of the terminal that runs this
    with tempfile.TemporaryDirectory() as temporary:
        runs = Path(temporary) / "runs"
        shutil.copytree(RECORDED, runs)
        for base_json in runs.rglob(BASE_JSON):  # the path of an adapter's base, on this machine
            base_json.write_text(base_json.read_text().replace('"/runs/', f'"{runs}/'))
        for picture in PICTURES:
            if names and picture.name not in names:
                continue
            for size in SIZES:
                path = asyncio.run(take(picture, size, runs, HERE))
                sys.stdout.write(f"{path.relative_to(HERE.parent)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
