"""Why a run failed is read in full: on Run, in Home's preview, in `cockpit show`, with the end of console.log."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.text import Text

from cockpit.cli import main
from cockpit.runs.ending import TAIL_BYTES, console_tail, ending_of, last_lines
from cockpit.runs.state import fold
from cockpit.text.safe_text import safe_text
from cockpit.tui.app import CockpitApp
from cockpit.tui.dialogs.read import TextScreen
from cockpit.tui.look.wrapping import wrapped_lines
from cockpit.tui.screens.home import HomeScreen
from cockpit.tui.widgets.preview_pane import PreviewPane
from cockpit.tui.widgets.run_table import RunTable
from engines.events.attempts import AttemptEnded
from engines.events.runs import RunEnded, StageFailed
from engines.run_dir.paths import RunDir
from engines.words import EndReason, RunStatus
from tests.tui import journals
from tests.tui.app_under_test import live_app, settled, text
from tests.tui.event_source import EventSource
from tests.tui.looking import SIZES, no_control_characters, picture, until, until_seen

REASON = (
    "the tokenizer of base model 'org/some-rather-long-model-name-14b' has 151,936 entries but its embedding has"
    " 152,064 rows; resize the embedding or choose the revision that fits"
)
DETAIL = "ValueError: attention_mask has 4 dimensions; this is the last word of the engine"
CONSOLE = "Traceback (most recent call last):\n  File stage.py, line 7\n\x1b]52;c;aGk=\x07RuntimeError: the very end\n"


def failed_run(tmp_path: Path, console: str = CONSOLE) -> RunDir:
    """A run whose stage failed with a long reason, and its console.log."""
    journal = journals.live(60)
    journal.say("e1.atlas", AttemptEnded(stage="atlas", attempt=1, reason=EndReason.ERROR, detail=DETAIL, step=60))
    journal.say("sup", StageFailed(stage="atlas", reason=REASON))
    journal.say("sup", RunEnded(state=RunStatus.FAILED, reason=f"atlas: {REASON}"))
    run = RunDir(journal.write(tmp_path / "runs" / "20261120-2130-atlas"))
    place = run.console_log("atlas", 1)
    place.parent.mkdir(parents=True)
    place.write_text(console)
    return run


def words(shown: str) -> str:
    """The text without frames, line ends and repeated spaces."""
    return re.sub(r"[\s│╭╮╰╯✗]+", " ", shown)


@pytest.mark.parametrize("size", [*SIZES, (60, 20)])
async def test_the_run_screen_shows_the_whole_reason_and_the_end_of_the_console(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    run = failed_run(tmp_path)
    app = live_app(EventSource(journals_of(run)), run.root)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        shown = words(text(app).partition("─ log")[0])
        assert words(REASON) in shown or size == (60, 20)
        assert "step 60/820" in shown
        if size != (60, 20):
            assert words(DETAIL) in shown
            assert "RuntimeError: the very end" in shown
        await pilot.press("o")
        await until(pilot, lambda: isinstance(app.screen, TextScreen), "the reading pane")
        await until_seen(pilot, "RuntimeError: the very end")
        assert no_control_characters(app)
        await pilot.press("home")
        await pilot.pause()
        await until(pilot, lambda: "the tokenizer of base model" in words(text(app)), "the reason in the pane")
        await pilot.press("escape")
        await until(pilot, lambda: app.screen is app.run_screen, "the run's screen")


def journals_of(run: RunDir) -> list:  # type: ignore[type-arg]
    from engines.journal import read_journal

    return list(read_journal(run.journal))


@pytest.mark.parametrize("size", SIZES)
async def test_home_s_preview_shows_the_whole_reason_and_the_end_of_the_console(
    tmp_path: Path, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    run = failed_run(tmp_path)
    app = CockpitApp(run.root.parent)
    async with app.run_test(size=size) as pilot:
        await until(pilot, lambda: isinstance(app.screen, HomeScreen), "Home")
        await until(pilot, lambda: bool(app.screen.query_one(RunTable).items), "the run")
        app.screen.query_one(RunTable).focus()
        await until_seen(pilot, "revision")
        pane = app.screen.query_one(PreviewPane).region
        rows = picture(app).split("\n")[pane.y + 1 : pane.bottom - 1]
        shown = words(" ".join(row[pane.x + 1 : pane.right - 1] for row in rows))
        assert words(REASON) in shown
        assert words(DETAIL) in shown
        assert "RuntimeError: the very end" in shown
        assert no_control_characters(app)


def test_show_prints_the_whole_reason_and_the_end_of_the_console(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = failed_run(tmp_path)
    assert main(["show", run.id, "--runs-dir", str(run.root.parent)]) == 0
    shown = capsys.readouterr().out
    assert REASON in shown
    assert DETAIL in shown
    assert "RuntimeError: the very end" in shown
    assert "\x1b" not in shown
    assert shown.count(REASON) == 2, "once at the top, once below the table of stages"


@pytest.mark.parametrize(("status", "shown"), [(-9, False), (-11, True), (1, True)])
def test_after_sigkill_no_line_of_the_console_is_shown_as_a_reason(tmp_path: Path, status: int, shown: bool) -> None:
    """The process had no time to write one; a crash or an exit may have."""
    journal = journals.live(60)
    ended = AttemptEnded(stage="atlas", attempt=1, reason=EndReason.KILLED, exit=status, detail="killed", step=60)
    journal.say("sup", ended)
    journal.say("sup", StageFailed(stage="atlas", reason="killed"))
    journal.say("sup", RunEnded(state=RunStatus.FAILED, reason="atlas: killed"))
    run = RunDir(journal.write(tmp_path / "runs" / "20261120-2130-atlas"))
    place = run.console_log("atlas", 1)
    place.parent.mkdir(parents=True)
    place.write_text("FutureWarning: something of a library\n")
    ending = ending_of(fold(journals_of(run)))
    assert ending is not None
    assert bool(last_lines(run, ending, 5)) is shown


def test_no_sentence_of_an_ending_repeats_another(tmp_path: Path) -> None:
    ending = ending_of(fold(journals_of(failed_run(tmp_path))))
    assert ending is not None
    assert ending.sentences == (f"atlas: {REASON}", f"atlas: {DETAIL}")
    assert (ending.stage, ending.attempt) == ("atlas", 1)
    assert ending_of(fold(journals.finished().events)) is None
    assert ending_of(fold(journals.live(20).events)) is None


def test_the_tail_of_a_console_is_bounded_and_shows_what_a_terminal_would(tmp_path: Path) -> None:
    lines = "".join(f"line {number}\n" for number in range(20_000))
    run = failed_run(tmp_path, lines + "10%\r50%\r100% done\n\n")
    tail = console_tail(run, "atlas", 1)
    assert tail[-1] == "100% done"
    assert tail[-2] == "line 19999"
    assert sum(map(len, tail)) <= TAIL_BYTES
    assert tail[0].startswith("line ")


@pytest.mark.parametrize("stage", ["../../elsewhere", "..", "", "a/b"])
def test_a_forged_stage_name_leads_to_no_other_file(tmp_path: Path, stage: str) -> None:
    run = failed_run(tmp_path)
    with pytest.raises(OSError, match="is not the name of a stage"):
        console_tail(run, stage, 1)


def test_a_console_that_is_a_pipe_or_a_link_is_refused_without_waiting(tmp_path: Path) -> None:
    run = failed_run(tmp_path)
    place = run.console_log("atlas", 1)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(OSError, match="not a regular file"):
        console_tail(run, "atlas", 1)
    place.unlink()
    (tmp_path / "secret").write_text("secret")
    place.symlink_to(tmp_path / "secret")
    with pytest.raises(OSError, match="symbolic links"):
        console_tail(run, "atlas", 1)


def test_the_list_of_a_problem_has_a_row_for_each_of_its_lines() -> None:
    text = "judge: 2 rows cannot be used:\na.jsonl:1  no \x1b[2J check\na.jsonl:2  no check"
    assert wrapped_lines(text, 60, 4000) == [
        "judge: 2 rows cannot be used:",
        f"a.jsonl:1  no {safe_text(chr(27))}[2J check",
        "a.jsonl:2  no check",
    ]
    assert len(wrapped_lines("x\n" * 3000, 60, 8000)) < 200
    assert wrapped_lines("abcdef", 60, 4) == ["abc…"]


async def test_a_short_output_stands_at_the_top_and_a_long_one_shows_its_end(tmp_path: Path) -> None:
    app = CockpitApp(tmp_path)
    async with app.run_test(size=(80, 24)) as pilot:
        app.push_screen(TextScreen("short", Text("it is empty"), at_end=True))
        await until_seen(pilot, "it is empty")
        await pilot.pause()
        rows = picture(app).splitlines()
        title = next(number for number, row in enumerate(rows) if "│ short" in row)
        assert "it is empty" in rows[title + 2]
        app.push_screen(TextScreen("long", Text("\n".join(f"line {n}" for n in range(99))), at_end=True))
        await until_seen(pilot, "line 98")
