"""The screens of votes and of an evaluation's rows: keys, order, and nothing that leaks or obeys."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.talking.answers_target import AnswersTarget
from cockpit.talking.votes import Pair, Pairs, Votes
from cockpit.tui.app import CockpitApp
from tests.cockpit.talking.test_browsing import write_results
from tests.tui.looking import HOSTILE, SIZES, no_control_characters, notices, picture, until_seen


@pytest.mark.parametrize("size", SIZES)
async def test_sides_are_told_only_at_the_end(size: tuple[int, int], tmp_path: Path) -> None:
    made = [
        Pair(f"k{at}", [{"role": "user", "content": f"prompt{at}"}], (f"apple{at}{bad}", f"pear{at}"))
        for at, bad in enumerate(HOSTILE[:3])
    ]
    votes = Votes(tmp_path / "v", Pairs(("model-base", "model-tuned"), "0" * 64, tuple(made)), seed=4)
    app = CockpitApp(tmp_path, votes=votes)
    async with app.run_test(size=size) as pilot:
        await until_seen(pilot, "Which answer is better?  0 of 3 votes")
        for at in range(3):
            shown = picture(app)
            assert "apple" in shown
            assert "pear" in shown
            assert "model-" not in shown
            assert no_control_characters(app)
            assert f"{at} of 3" in shown
            if at == 1:
                await pilot.press("t")
                await until_seen(pilot, "2 of 3")
                await pilot.press("u")
                await until_seen(pilot, "1 of 3")
            pair = votes.at
            assert pair is not None
            await pilot.press("1" if votes.sides_of(pair)[0] == pair.answers[1] else "2")
            await pilot.pause()
        await until_seen(pilot, "model-tuned: 3 wins")
        assert "model-base: 0 wins" in picture(app)
    assert Votes(tmp_path / "v", votes.pairs, seed=0).finished


async def test_ending_early_asks_first(tmp_path: Path) -> None:
    made = tuple(Pair(f"k{at}", [{"role": "user", "content": "p"}], ("a", "b")) for at in range(2))
    votes = Votes(tmp_path / "v", Pairs(("x", "y"), "0" * 64, made), seed=4)
    app = CockpitApp(tmp_path, votes=votes)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("s", "e")
        await until_seen(pilot, "1 pair without a vote")
        await pilot.press("enter")
        assert not votes.finished
        await pilot.press("e")
        await until_seen(pilot, "1 pair without a vote")
        await pilot.press("right", "enter")
        await until_seen(pilot, "1 skipped")
        assert votes.ended


@pytest.mark.parametrize("size", SIZES)
async def test_rows_are_browsed_by_filter_and_text(size: tuple[int, int], tmp_path: Path) -> None:
    expected = "yes\x1b[2J no"
    model = write_results(tmp_path / "m.json", {"a": True, "b": False, "c": False}, expected=expected)
    base = write_results(tmp_path / "b.json", {"a": False, "b": False, "c": True}, answer="maybe", expected=expected)
    app = CockpitApp(tmp_path, answers=AnswersTarget(model, base))
    async with app.run_test(size=size) as pilot:
        await until_seen(pilot, "row 1 of 3")
        shown = picture(app)
        assert "all 3  failed 2  passed 1  changed 2  won 1  lost 1" in shown
        for words in ("prompt a", "answer: passed (3 tokens, 0.50s)", "exact passed", "baseline: failed", "maybe"):
            assert words in shown
        assert no_control_characters(app)
        await pilot.press("shift+tab")
        await until_seen(pilot, "row 3 of 3")
        assert "answer: failed" in picture(app)
        await pilot.press("tab", "home", "slash")
        await until_seen(pilot, "Find a row")
        await pilot.press(*"PROMPT B", "enter")
        await until_seen(pilot, "row 2 of 3")
        await pilot.press("right", "right")
        await until_seen(pilot, "row 3 of 3")
        assert "there is no further row" in notices(app)


async def test_a_file_that_is_no_results_is_said_on_the_screen(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("{}")
    app = CockpitApp(tmp_path, answers=AnswersTarget(tmp_path / "r.json"))
    async with app.run_test(size=(80, 24)) as pilot:
        await until_seen(pilot, "a file of results")
