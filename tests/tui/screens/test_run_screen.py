"""The picture of a run: its numbers, charts and log are those of its journal."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cockpit.text import formatting as fmt
from cockpit.tui.charts.canvas import Row
from cockpit.tui.charts.chart import ChartData, draw_chart
from cockpit.tui.look.theme import CROSS
from cockpit.tui.widgets.log_view import LogView
from engines.events.machine import MachineSampled
from engines.events.results import Evaluated
from engines.events.runs import ControlApplied
from engines.events.steps import Step
from engines.events.writers import Gap, Warned
from tests.tui import journals
from tests.tui.app_under_test import live_app, replay_app, settled, strips, text
from tests.tui.event_source import EventSource
from tests.tui.looking import until

SIZES = [(80, 24), (160, 48)]


def newest_step(events: list[object]) -> Step:
    return next(e for e in reversed(events) if isinstance(e, Step))


@pytest.mark.parametrize("size", SIZES)
async def test_numbers_on_the_screen_are_those_of_the_journal(size: tuple[int, int]) -> None:
    journal = journals.live(412)
    app = live_app(EventSource(journal.events))
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        step, shown = newest_step(list(journal.events)), text(app)
        assert "step 412/820" in shown
        assert f"loss {fmt.number(step.loss)}" in shown
        assert f"learning_rate {fmt.learning_rate(step.learning_rate)}" in shown
        assert f"grad_norm {fmt.number(step.grad_norm)}" in shown
        assert fmt.rate(8192 / step.step_s) in shown
        assert "● running" in shown
        assert "✓ base-merged" in shown
        assert "50.2%" in shown
        assert max(len(line) for line in shown.split("\n")) <= size[0]


async def test_at_100_random_steps_the_screen_s_numbers_are_the_journal_s() -> None:
    """In a replay at the step, and by inspecting the step."""
    journal = journals.live(412)
    steps = [(n, e) for n, e in enumerate(journal.events, 1) if isinstance(e, Step)]
    chance = random.Random(6)
    app = replay_app(journal.events, 1)
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        screen = app.replay_screen
        for index, step in chance.sample(steps, 100):
            screen._seek(lambda playback, index=index: playback.seek(index))  # type: ignore[misc]
            await until(pilot, lambda step=step: f"step {step.step}/820" in text(app), f"step {step.step}")  # type: ignore[misc]
            titles = {chart.data.name: chart.data.summary for chart in screen.charts if chart.data}
            shown = text(app)
            assert f"loss {fmt.number(step.loss)} " in shown
            assert f"learning_rate {fmt.learning_rate(step.learning_rate)}" in shown
            assert f"grad_norm {fmt.number(step.grad_norm)} " in shown
            assert titles["tok/s"].split()[0] == fmt.count(8192 / step.step_s)
            assert f"epoch {fmt.epoch(step.epoch)}" in shown
        screen._seek(lambda playback: playback.seek(len(playback)))
        for _, step in chance.sample(steps, 20):
            screen.options.cursor = float(step.step)
            screen.paint()
            await until(pilot, lambda step=step: f" @{step.step} " in text(app), f"the values at {step.step}")  # type: ignore[misc]
            shown = text(app)
            titles = {chart.data.name: chart.data.summary for chart in screen.charts if chart.data}
            assert f"loss {fmt.number(step.loss)} @{step.step} " in shown
            assert titles["loss"].startswith(f"{fmt.number(step.loss)} at step {step.step} ")
            assert f"learning_rate {fmt.learning_rate(step.learning_rate)} at step {step.step}" in shown


async def test_a_nan_is_a_gap_with_a_red_cross_and_says_nan() -> None:
    app = live_app(EventSource(journals.failed().events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "loss nan" in shown
        crosses = [s for strip in strips(app) for s in strip if CROSS in s.text]
        assert crosses
        error = app.theme_variables["chart-bad"]
        assert all(
            s.style and s.style.color and s.style.color.get_truecolor().hex == error for s in crosses if "#" in error
        )


@pytest.mark.parametrize("size", SIZES)
async def test_a_stage_without_steps_shows_its_phase_and_progress_large(size: tuple[int, int]) -> None:
    app = live_app(EventSource(journals.merging().events))
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "W R I T I N G   T E N S O R S" in shown
        assert "120 of 291 tensors" in shown
        assert "ETA 28s" in shown
        assert "41.2%" in shown


async def test_new_events_reach_the_screen_by_themselves() -> None:
    journal = journals.live(100)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "step 100/820" in text(app)
        known = len(journal.events)
        journals_more(journal, 101, 130)
        source.add(journal.events[known:])
        await until(pilot, lambda: "step 130/820" in text(app), "the new step on the screen")


def journals_more(journal: journals.Journal, first: int, last: int) -> None:
    step = newest_step(list(journal.events))
    for number in range(first, last + 1):
        event = msgspec.structs.replace(step, step=number, tokens=number * 8192, v=0, w="", seq=-1, t=0.0, m=0.0)
        journal.say(step.w, event, 4.0)


async def test_freezing_keeps_the_view_while_the_run_continues() -> None:
    journal = journals.live(100)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("space")
        await settled(pilot)
        known, before = len(journal.events), text(app)
        assert "frozen" in before
        journals_more(journal, 101, 120)
        source.add(journal.events[known:])
        await settled(pilot)
        assert text(app) == before
        await pilot.press("space")
        await settled(pilot)
        assert "step 120/820" in text(app)
        assert "frozen" not in text(app)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of charts, one for every time that a chart is drawn."""
    names: list[str] = []

    def counted(data: ChartData, *args: Any, **options: Any) -> list[Row]:
        names.append(data.name)
        return draw_chart(data, *args, **options)

    monkeypatch.setattr("cockpit.tui.charts.chart.draw_chart", counted)
    return names


async def test_nothing_new_draws_nothing(drawn: list[str]) -> None:
    app = live_app(EventSource(journals.live(100).events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        assert drawn
        drawn.clear()
        for _ in range(5):
            app.run_screen.tick()
            await pilot.pause()
        assert drawn == []


async def test_charts_that_are_not_shown_do_no_work(drawn: list[str]) -> None:
    app = live_app(EventSource(journals.live(100).events))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert [chart.data is not None for chart in app.run_screen.charts] == [True] * 4 + [False] * 2
        assert len(set(drawn)) == 4
        await pilot.press("6")
        await settled(pilot)
        assert [chart.display for chart in app.run_screen.charts] == [False] * 2 + [True] * 4
        assert "gpu load" in text(app)


async def test_a_repaint_touches_only_what_changed() -> None:
    journal = journals.live(400)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        chart = app.run_screen.charts[0]
        painted: list[object] = []
        original = chart.refresh
        chart.refresh = lambda *regions, **more: (painted.extend(regions), original(*regions, **more))[1]  # type: ignore[method-assign]
        known = len(journal.events)
        journals_more(journal, 401, 402)
        source.add(journal.events[known:])
        await settled(pilot)
        assert painted
        area = sum(region.area for region in painted)  # type: ignore[attr-defined]
        assert area < chart.size.area / 4


async def test_new_steps_wait_for_the_next_picture_and_a_key_or_the_end_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = journals.live(400)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        monkeypatch.setattr("cockpit.tui.screens.run.PAINT_S", 3600.0)
        known = len(journal.events)
        journals_more(journal, 401, 402)
        source.add(journal.events[known:])
        await settled(pilot)
        before = app.run_screen.charts[0].data
        await settled(pilot)
        assert app.run_screen.charts[0].data is before, "nothing is painted before its time"
        await pilot.press("m")
        await settled(pilot)
        assert app.run_screen.charts[0].data is not before
        known = len(journal.events)
        journals_more(journal, 403, 404)
        source.add(journal.events[known:])
        await settled(pilot)
        await pilot.press("z")  # drawn again in another size, with steps that no average has yet
        await settled(pilot)
        assert sum(chart.display for chart in app.run_screen.charts) == 1


async def test_y_switches_the_chosen_chart_and_m_the_smoothing() -> None:
    app = live_app(EventSource(journals.live(200).events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        assert "ema.9" in text(app)
        await pilot.press("y", "m")
        await settled(pilot)
        assert "[log]" in text(app)
        assert "ema.97" in text(app)
        data = app.run_screen.charts[0].data
        assert data is not None
        assert data.log
        await pilot.press("3", "y")
        await settled(pilot)
        assert text(app).count("[log]") == 2


async def test_z_shows_one_chart_alone_and_all_again() -> None:
    app = live_app(EventSource(journals.live(200).events))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("2", "z")
        await settled(pilot)
        assert [c.display for c in app.run_screen.charts] == [False, True, False, False, False, False]
        await pilot.press("z")
        await settled(pilot)
        assert sum(c.display for c in app.run_screen.charts) == 4


async def test_brackets_show_other_stages_and_zero_returns() -> None:
    app = live_app(EventSource(journals.live(200).events))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("left_square_bracket")
        await settled(pilot)
        assert "base-merged (merge) succeeded" in text(app)
        await pilot.press("0")
        await settled(pilot)
        assert "step 200/820" in text(app)
        assert "(merge)" not in text(app)


async def test_inspection_names_the_value_of_a_step() -> None:
    journal = journals.live(200)
    app = live_app(EventSource(journal.events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        await pilot.press("left", "left")
        await settled(pilot)
        step = next(e for e in journal.events if isinstance(e, Step) and e.step == 199)
        assert f"{fmt.number(step.loss)} @199" in text(app)


async def test_zooming_shows_fewer_steps_and_fit_all_of_them() -> None:
    app = live_app(EventSource(journals.live(400).events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        await pilot.press("plus", "plus")
        await settled(pilot)
        data = app.run_screen.charts[0].data
        assert data is not None
        assert data.x[1] - data.x[0] == 400 / 4
        assert data.x[0] <= 400 <= data.x[1]
        await pilot.press("f")
        await settled(pilot)
        data = app.run_screen.charts[0].data
        assert data is not None
        assert data.x == (0, 400)


async def test_the_x_axis_fits_what_exists_and_t_shows_the_plan_and_each_says_which_it_is() -> None:
    app = live_app(EventSource(journals.live(400).events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        assert "400 of 820" in text(app)
        await pilot.press("t")
        await settled(pilot)
        assert [chart.data.x for chart in app.run_screen.charts[:1] if chart.data] == [(0, 820)]
        assert "plan 820" in text(app)
        assert "400 of 820" not in text(app)


@pytest.mark.parametrize("size", [(80, 24), (160, 48), (60, 20)])
async def test_two_checkpoints_and_a_request_are_marks_on_every_chart(size: tuple[int, int]) -> None:
    journal = journals.live(220)
    journal.say("e1.atlas", ControlApplied(request="evaluate", by="x", effect="done", step=150, stage="atlas"), 1.0)
    app = live_app(EventSource(journal.events))
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        shown = [chart for chart in app.run_screen.charts if chart.display]
        assert len(shown) >= 4
        for chart in shown:
            rows = [row.text for row in chart._rows]
            assert sum(row.count("◆") for row in rows) == 2, rows
            assert sum(row.count("▾") for row in rows) == 1, rows


async def test_a_mark_of_a_live_run_appears_when_its_fact_does() -> None:
    journal = journals.live(220)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        before = len(journal.events)
        journal.say("e1.atlas", ControlApplied(request="evaluate", by="x", effect="done", step=150, stage="atlas"), 1.0)
        source.add(list(journal.events)[before:])
        await settled(pilot)
        for chart in (chart for chart in app.run_screen.charts if chart.display):
            assert sum(row.text.count("▾") for row in chart._rows) == 1


async def test_metrics_beyond_six_charts_are_one_key_away() -> None:
    journal = journals.live(30)
    journals_more(journal, 31, 31)
    last = msgspec.structs.replace(
        newest_step(list(journal.events)), step=32, metrics={f"metric_{n}": 1.0 for n in range(8)}, v=0, w="", seq=-1
    )
    journal.say("e1.atlas", last, 4.0)
    app = live_app(EventSource(journal.events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        seen = {chart.data.name for chart in app.run_screen.charts if chart.data}
        assert "charts 1/3 (v)" in text(app)
        for _ in range(2):
            await pilot.press("v")
            await settled(pilot)
            seen |= {chart.data.name for chart in app.run_screen.charts if chart.display and chart.data}
        assert {f"metric_{n}" for n in range(8)} <= seen
        assert "step_s" in seen


async def test_while_inspecting_every_title_is_that_step_s() -> None:
    journal = journals.live(400)
    app = live_app(EventSource(journal.events))
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        for _ in range(4):
            await pilot.press("shift+left")
        await settled(pilot)
        await pilot.press("left", "left")
        await settled(pilot)
        names = {chart.data.name: chart.data for chart in app.run_screen.charts if chart.data}
        step = next(e for e in journal.events if isinstance(e, Step) and e.step == 199)
        before = [e for e in journal.events if isinstance(e, Evaluated) and e.step is not None and e.step <= 199][-1]
        assert before.step == 100
        loss = names["loss"].summary
        title = app.run_screen.charts[0]._rows[0].text
        assert f"{fmt.number(step.loss)} @199" in title, "the narrow title has the same values"
        assert f"● {fmt.number(before.loss)}" in title
        assert f"{fmt.number(step.loss)} at step 199" in loss
        assert f"eval {fmt.number(before.loss)} @100" in loss
        average = app.run_screen.state.series("atlas", "loss").ema(0.9).at(199)
        assert average is not None
        assert f"ema.9 {fmt.number(average[1])}" in loss
        samples = [e for e in journal.events if isinstance(e, MachineSampled) and e.t <= step.t]
        used = samples[-1].devices[0].memory_used_bytes
        assert f"{fmt.of_total(used, 128 << 30)} " in names["gpu memory"].summary
        assert "at step 199" in names["gpu memory"].summary
        assert names["gpu memory"].cursor == step.t
        await pilot.press("0")
        await settled(pilot)
        assert all("at step" not in chart.data.summary for chart in app.run_screen.charts if chart.data)


async def test_a_lost_run_says_so_and_what_to_do() -> None:
    app = live_app(EventSource(journals.live(50).events, lost=True))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "? lost" in shown
        assert "no process of this run is alive" in shown
        assert "● atlas" not in shown


async def test_silence_missing_and_unreadable_records_are_shown() -> None:
    journal = journals.live(50)
    journal.say("e1.atlas", Gap(lost=9, reason="disk full"))
    source = EventSource(
        [e for e in journal.events if not (e.w == "e1.atlas" and e.seq == 20)], clock=lambda: journal.t + 150
    )
    source.state.unreadable = 3
    app = live_app(source)
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "stalled: no step for 2m, usually 4" in shown
        assert "9 records could not be written" in shown
        assert "1 record missing" in shown
        assert "3 unreadable records" in shown


async def test_a_stalled_run_has_no_eta_and_old_machine_figures_are_not_shown_as_present() -> None:
    journal = journals.live(50)
    source = EventSource(journal.events, clock=lambda: journal.t)
    app = live_app(source)
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        assert "ETA" in text(app)
        assert "(old)" not in text(app)
    late = EventSource(journal.events, clock=lambda: journal.t + 300)
    app = live_app(late)
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        status = text(app).split("\n")[0]
        assert "stalled" in status
        assert "ETA" not in status
        assert "no machine sample for 5m" in text(app)
        assert "(old)" in text(app)


async def test_leaving_a_live_run_says_that_training_continues() -> None:
    app = live_app(EventSource(journals.live(50).events))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert app.run_screen.leaving() == "training continues"


async def test_the_log_follows_new_lines_until_the_operator_scrolls() -> None:
    journal = journals.live(50)
    source = EventSource(journal.events)
    app = live_app(source)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        log = app.run_screen.query_one(LogView)
        assert "12 examples were cut" in text(app)
        await pilot.press("pageup")
        await settled(pilot)
        assert "12 examples were cut" not in text(app)
        known = len(journal.events)
        journal.say("e1.atlas", Warned(message="a newer warning"), 1.0)
        source.add(journal.events[known:])
        await settled(pilot)
        assert "a newer warning" not in text(app)
        assert not log.following
        await pilot.press("pagedown", "pagedown")
        await settled(pilot)
        assert "a newer warning" in text(app)


async def test_fields_of_the_recipe_are_shown_at_the_side(tmp_path: Path) -> None:
    stage = {
        "name": "atlas",
        "model": "base-merged",
        "learning_rate": 2e-4,
        "retry": {"max_attempts": 3},
        "guards": {"grad_norm": 50.0},
    }
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": {"stage": [stage]}}))
    app = live_app(EventSource(journals.live(50).events), tmp_path)
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "base-merged" in shown
        assert "(1 of max 3)" in shown
        assert "(guard 50.0)" in shown
