"""Text from data is inert on the terminal and as markup, in every widget of every screen."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

import pytest
from rich.style import Style
from rich.text import Text
from textual.app import ComposeResult
from textual.widgets import DataTable, Input, Label, RichLog, Static

from cockpit.tui.app import CockpitApp
from engines.events.attempts import AttemptEnded, Phase, Progress
from engines.events.results import SampledText
from engines.events.runs import ControlApplied, RunEnded, StageFailed
from engines.events.steps import CheckpointCommitted
from engines.events.writers import Warned
from engines.words import EndReason, RunStatus
from tests.cockpit.text.test_safe_text import PAYLOADS
from tests.tui import journals
from tests.tui.app_under_test import live_app, replay_app, settled, strips, text
from tests.tui.event_source import EventSource
from tests.tui.terminal import show_run

MARKUP = [
    "[/bold]",
    "[/usr/bin/x]",
    "[node_modules]",
    "[@click=app.quit]x[/]",
    "[link=http://x]y[/link]",
    "[$primary]z",
]
SECRET = "PWNED"


def hostile(payload: str) -> journals.Journal:
    """A run in which every text field contains the payload."""
    journal = journals.live(30)
    engine = "e1.atlas"
    journal.say(engine, Warned(message=f"{SECRET}{payload}", stage=payload))
    journal.say(engine, Phase(stage="atlas", attempt=1, name=payload))
    journal.say(engine, SampledText(stage="atlas", attempt=1, step=3, prompt=payload, text=payload))
    journal.say(engine, ControlApplied(request=payload, by=payload, effect=payload, stage="atlas"))
    journal.say(
        engine,
        CheckpointCommitted(stage="atlas", attempt=1, step=30, path=payload, sha256="x", healthy=True, loss=1.0),
    )
    journals.short_stage(journal, payload, payload, payload, 10.0, upto=4.0)
    journal.say(journals.engine_of(payload), Progress(stage=payload, attempt=1, done=5, total=10, unit=payload), 1.0)
    return journal


def failed_with(payload: str) -> journals.Journal:
    journal = hostile(payload)
    journal.say(
        journals.engine_of(payload), AttemptEnded(stage=payload, attempt=1, reason=EndReason.ERROR, detail=payload)
    )
    journal.say("sup", StageFailed(stage=payload, reason=payload))
    journal.say("sup", RunEnded(state=RunStatus.FAILED, reason=payload))
    return journal


def control_characters(app: CockpitApp) -> set[str]:
    shown = "".join(strip.text for strip in strips(app))
    return {
        c
        for c in shown
        if unicodedata.category(c) in {"Cc", "Cs"} or 0x202A <= ord(c) <= 0x202E or 0x2066 <= ord(c) <= 0x2069
    }


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if "\ud800" not in p])
async def test_no_screen_lets_a_control_character_through(payload: str) -> None:
    for app in (
        live_app(EventSource(hostile(payload).events), Path(f"/nonexistent/{SECRET}{payload}".replace("\x00", ""))),
        live_app(EventSource(failed_with(payload).events)),
        replay_app(failed_with(payload).events),
    ):
        async with app.run_test(size=(160, 48)) as pilot:
            await settled(pilot)
            assert control_characters(app) == set()
            await pilot.press("0", "left_square_bracket")
            await settled(pilot)
            assert control_characters(app) == set()


@pytest.mark.parametrize("payload", MARKUP)
async def test_markup_in_data_is_shown_as_text_and_does_nothing(payload: str) -> None:
    app = live_app(EventSource(failed_with(payload).events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        assert payload in text(app)
        for strip in strips(app):
            for segment in strip:
                assert "@click" not in (segment.style.meta if segment.style else {})


class Careless(CockpitApp):
    """Widgets that do not use `safe_text`: only the last filter protects the terminal."""

    def __init__(self, payload: str) -> None:
        super().__init__(Path("/nonexistent"))
        self._payload = payload

    def open_first(self) -> None:
        self.notify(self._payload, markup=False)
        log = self.query_one(RichLog)
        log.write(Text(self._payload))
        table: DataTable[Text] = self.query_one(DataTable)
        table.add_column("c")
        table.add_row(Text(self._payload))

    def compose(self) -> ComposeResult:
        yield Static(Text(self._payload, style=Style(link="http://evil\x1b]52;c;x\x07")))
        yield Label(self._payload, markup=False)
        yield Input(self._payload)
        yield RichLog()
        yield DataTable()


@pytest.mark.parametrize("payload", [p for p in PAYLOADS if "\ud800" not in p])
async def test_the_last_filter_removes_what_a_careless_widget_draws(payload: str) -> None:
    app = Careless(payload)
    async with app.run_test(size=(100, 40)) as pilot:
        await pilot.pause()
        assert control_characters(app) == set()
        assert all(segment.style is None or segment.style.link is None for strip in strips(app) for segment in strip)


OF_THE_DRIVER = re.compile(
    rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b\[[<>=][0-9;]*[a-z]|\x1b\[\?[0-9;]*\$p|\x1b[78=>]|\x1b\(B|\x1b\[c|\x1b\[=[0-9;]*u|\x1b\[!p|\x1b\]22;[a-z-]*\x07"
)


def test_bytes_on_a_real_terminal_are_only_those_of_the_driver(tmp_path: Path) -> None:
    payload = "".join(p for p in PAYLOADS if "\ud800" not in p and "\x00" not in p)
    run = hostile(payload).write(tmp_path / "20261120-2130-atlas")
    with show_run(run) as terminal:
        out = terminal.read_until(SECRET.encode()) + terminal.read_until_quiet()
    assert SECRET.encode() in out
    for forbidden in (b"\x1b]52", b"\x1b]0;", b"\x9b2J", b"\x1bP+q", b"\x1b[6n", "\u202e".encode(), b"\x1b[2J\x1b[H"):
        assert forbidden not in out
    rest = OF_THE_DRIVER.sub(b"", out)
    assert b"\x1b" not in rest, rest[max(0, rest.index(b"\x1b") - 60) : rest.index(b"\x1b") + 60]
