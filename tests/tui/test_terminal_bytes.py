"""The bytes that a screen sends over SSH: none while nothing happens, few while a run trains."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from textual._compositor import ChopsUpdate

from engines.events.kinds import AnyEvent
from engines.events.steps import Step
from tests.tui import journals
from tests.tui.app_under_test import replay_app, settled
from tests.tui.terminal import Terminal, show_run

BYTES_PER_PICTURE = {(80, 24): 600, (160, 48): 1400}
"""3 kB/s and 7 kB/s at five pictures a second, for a whole screen of charts, also in truecolor."""
REPLAY_BYTES_PER_PICTURE = 3000
"""15 kB/s at five pictures a second, played eight times as fast as the run."""
TRUECOLOR = {"COLORTERM": "truecolor"}


@pytest.fixture
def live_run(tmp_path: Path) -> Path:
    """A run directory whose supervisor lock is held, as in a live run."""
    run = journals.live(412).write(tmp_path / "20261120-2130-atlas")
    lock = os.open(run / "supervisor.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return run


@pytest.mark.parametrize(
    ("size", "colours"),
    [
        pytest.param((80, 24), {}, id="80x24-256"),
        pytest.param((80, 24), TRUECOLOR, id="80x24-truecolor", marks=pytest.mark.thorough),
        pytest.param((160, 48), {}, id="160x48-256", marks=pytest.mark.thorough),
        pytest.param((160, 48), TRUECOLOR, id="160x48-truecolor", marks=pytest.mark.thorough),
    ],
)
def test_an_idle_screen_sends_nothing_and_a_live_one_few_bytes(
    live_run: Path, size: tuple[int, int], colours: dict[str, str]
) -> None:
    journal = journals.live(412)
    written = len(journal._lines)
    step = next(e for e in reversed(journal.events) if isinstance(e, Step))
    with show_run(live_run, size, **colours) as terminal:
        terminal.read_until(b"412/820")
        terminal.read_until_quiet(3.0)  # a screen that sends something now and then would never be quiet
        sent, pictures = 0, 20
        for number in range(413, 413 + pictures):
            fields = {f: getattr(step, f) for f in Step.__struct_fields__ if f not in {"v", "w", "seq", "t", "m"}}
            event = Step(**{**fields, "step": number, "tokens": number * 8192, "loss": 0.5 + 0.01 * (number % 7)})
            journal.say(step.w, event, 4.0)
            with (live_run / "journal.jsonl").open("ab", buffering=0) as file:
                file.write(journal._lines[written])
            written += 1
            sent += terminal.read_until_shown(f"step {number}/")
        sent += len(terminal.read_until_quiet())
        assert sent / pictures < BYTES_PER_PICTURE[size]


@pytest.mark.parametrize("size", [(80, 24), (160, 48)])
async def test_a_replay_at_eight_times_sends_few_bytes_per_picture(size: tuple[int, int]) -> None:
    """Each picture is eight ticks of a run with a step every 0.6 s: five pictures a second are the budget."""
    sent: list[int] = []
    app = replay_app(brisk(), 1)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        playback = app.run_screen.playback
        assert playback is not None
        driver = app._driver
        assert driver is not None
        original = app._display
        console = app.console

        def counted(screen: object, renderable: object) -> None:
            if isinstance(renderable, ChopsUpdate):
                sent.append(len(app._cells.update(renderable).render_segments(console).encode()))
            original(screen, renderable)  # type: ignore[arg-type]

        app._display = counted  # type: ignore[method-assign]
        pictures = 0
        while playback.index < len(playback) * 3 // 4:
            app.replay_screen._seek(lambda playback: playback.seek(playback.index + 8))
            await pilot.pause()
            pictures += 1
        assert pictures > 50
        assert sum(sent) / pictures < REPLAY_BYTES_PER_PICTURE


def brisk() -> list[AnyEvent]:
    """A run of 600 steps, of which three fall into a picture at eight times the speed."""
    journal = journals.begun()
    journals.training(journal, last=600, total=800)
    return journal.events


def test_an_idle_home_sends_nothing(tmp_path: Path) -> None:
    journals.finished().write(tmp_path / "runs" / "20261120-2130-atlas")
    argv = [sys.executable, "-m", "cockpit", "--runs-dir", str(tmp_path / "runs")]
    with Terminal(argv, (80, 24), COCKPIT_THEME="cockpit", COLORTERM="truecolor") as terminal:
        terminal.read_until(b"atlas")
        terminal.read_until_quiet(3.0)  # a scan every two seconds: one that sent something would never be quiet
        assert terminal.drain(5.0) == 0


def test_the_screen_process_loads_no_training_stack() -> None:
    code = (
        "import sys, cockpit.tui.app, cockpit.tui.screens.run, cockpit.tui.screens.sources; "
        "print([m for m in ('numpy', 'torch', 'transformers', 'pandas', 'pydantic', 'rich.markdown') if m in "
        "sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_events_survive_the_wire() -> None:
    journal = journals.live(5)
    assert all(msgspec.structs.asdict(event)["v"] == 1 for event in journal.events)
