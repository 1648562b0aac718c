"""The log pane: its last line is the fold's last, after every jump, attach, resume and resize, until one scrolls."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from cockpit.runs.state import fold
from cockpit.text import formatting as fmt
from cockpit.text.safe_text import safe_text
from cockpit.tui.look.wrapping import cut, wrapped
from cockpit.tui.widgets.log_view import WRAPPED_LEVELS, LogView
from engines.events.kinds import AnyEvent
from engines.events.runs import RunStarted, StageFailed
from engines.events.writers import Warned
from engines.words import StartReason
from tests.tui import journals
from tests.tui.app_under_test import OneScreen, live_app, replay_app, settled, text
from tests.tui.event_source import EventSource
from tests.tui.looking import until

CLOCK = len(" 14:02:10 ")
LONG = "the importance matrix of layer " + " ".join(f"{n} does not match" for n in range(20)) + " THE END"


def last_row(app: OneScreen) -> str:
    """The last row of the log that has text, as it is drawn."""
    lines = text(app).split("\n")
    rule = max(at for at, line in enumerate(lines) if line.startswith("─ log"))
    return [line for line in lines[rule + 1 : -1] if line.strip()][-1]


def expected(events: Sequence[AnyEvent], width: int) -> str:
    """The last row of the last line of the fold."""
    line = fold(events).log()[-1]
    safe, room = safe_text(line.text, None), width - CLOCK
    rows = wrapped(safe, room) if line.level in WRAPPED_LEVELS else [cut(safe, room)]
    clock = f" {fmt.clock(line.t)} " if len(rows) == 1 else " " * CLOCK
    return (clock + rows[-1]).rstrip()


@pytest.mark.parametrize(
    ("size", "jumps"),
    [((80, 24), 40), ((160, 48), 25), pytest.param((160, 48), 100, marks=pytest.mark.thorough)],
)
async def test_after_random_jumps_the_last_line_is_the_fold_s_last(size: tuple[int, int], jumps: int) -> None:
    events = journals.failed().events
    chance = random.Random(size[0])
    app = replay_app(events, 1)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        screen = app.replay_screen
        for _ in range(jumps):
            if chance.random() < 0.2:  # a jump follows, also when the log was scrolled before
                screen.action_log_scroll(-5)
            index = chance.randint(1, len(events))
            screen._seek(lambda playback, index=index: playback.seek(index))  # type: ignore[misc]
            newest = expected(events[:index], size[0])
            await until(pilot, lambda newest=newest: last_row(app) == newest, f"the row of {index}")  # type: ignore[misc]


async def test_after_resizes_the_last_line_is_the_fold_s_last() -> None:
    journal = journals.failed()
    app = live_app(EventSource(journal.events))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        for size in ((160, 48), (61, 20), (119, 35), (120, 36), (80, 24)):
            await pilot.resize_terminal(*size)
            await settled(pilot)
            assert last_row(app) == expected(journal.events, size[0]), size


async def test_after_an_attach_and_after_a_resume_the_last_line_is_the_fold_s_last() -> None:
    journal = journals.live(412)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert last_row(app) == expected(journal.events, 80)
        known = len(journal.events)
        journal.say("sup", RunStarted(run="r", recipe="a", reason=StartReason.RESUME, stages=[], kinds=[]), 900.0)
        for number in range(30):
            journal.say("sup", Warned(message=f"warning {number}"), 1.0)
        source.add(journal.events[known:])
        await settled(pilot)
        assert last_row(app) == expected(journal.events, 80)
        assert "warning 29" in last_row(app)


async def test_end_follows_again_and_the_title_row_says_so() -> None:
    journal = journals.live(50)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("pageup")
        await settled(pilot)
        assert "end ▼ " in text(app)
        before = app.run_screen.query_one(LogView).shown
        known = len(journal.events)
        journal.say("e1.atlas", Warned(message="a newer warning"), 1.0)
        source.add(journal.events[known:])
        await settled(pilot)
        assert app.run_screen.query_one(LogView).shown == before, "the view stays on the lines that it shows"
        await pilot.press("end")
        await settled(pilot)
        assert "a newer warning" in last_row(app)
        assert "end ▼ " not in text(app)
        known = len(journal.events)
        journal.say("e1.atlas", Warned(message="the newest warning"), 1.0)
        source.add(journal.events[known:])
        await settled(pilot)
        assert "the newest warning" in last_row(app)


@pytest.mark.parametrize("size", [(80, 24), (60, 20)])
async def test_a_long_error_is_wrapped_and_not_cut(size: tuple[int, int]) -> None:
    journal = journals.live(20)
    journal.say("sup", StageFailed(stage="atlas", reason=LONG))
    app = live_app(EventSource(journal.events))
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        assert last_row(app).endswith("THE END")
