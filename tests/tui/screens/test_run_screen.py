from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cockpit.replay.playback import Playback
from cockpit.text import formatting as fmt
from cockpit.tui.app import CockpitApp
from cockpit.tui.charts.canvas import Row
from cockpit.tui.charts.chart import Chart, ChartData, draw_chart
from cockpit.tui.dialogs.confirm import ConfirmScreen
from cockpit.tui.look.keys import SCOPES, footer_keys
from cockpit.tui.look.theme import CROSS
from cockpit.tui.screens.run import RunScreen
from cockpit.tui.screens.sources import LiveSource, ReplaySource, replay_of
from cockpit.tui.widgets.log_view import LogView
from engines.control import pending
from engines.events import ControlApplied, Evaluated, Gap, MachineSampled, Step, Warned
from engines.run_dir import Lock, RunDir
from engines.words import RunStatus
from tests.patience import PATIENCE_S
from tests.tui import journals
from tests.tui.app_under_test import OneScreen, live_app, replay_app, settled, strips, text
from tests.tui.event_source import EventSource
from tests.tui.looking import notices, until

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
        screen = app.run_screen
        for index, step in chance.sample(steps, 100):
            screen._seek(lambda playback, index=index: playback.seek(index))  # type: ignore[misc]
            await pilot.pause()
            titles = {chart.data.name: chart.data.summary for chart in screen.charts if chart.data}
            shown = text(app)
            assert f"step {step.step}/820" in shown
            assert f"loss {fmt.number(step.loss)} " in shown
            assert f"learning_rate {fmt.learning_rate(step.learning_rate)}" in shown
            assert f"grad_norm {fmt.number(step.grad_norm)} " in shown
            assert titles["tok/s"].split()[0] == fmt.count(8192 / step.step_s)
            assert f"epoch {fmt.epoch(step.epoch)}" in shown
        screen._seek(lambda playback: playback.seek(len(playback)))
        for _, step in chance.sample(steps, 20):
            screen.options.cursor = float(step.step)
            screen.paint()
            await pilot.pause()
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


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[RunDir]:
    """A run directory with the journal of a live run; its supervisor's lock is held, so that nothing is started."""
    run = RunDir(journals.live(50).write(tmp_path / "20261120-2130-atlas"))
    lock = Lock(run.supervisor_lock)
    assert lock.acquire({"pid": 0})
    yield run
    lock.release()


def verbs(run: RunDir) -> list[str]:
    return [request.verb for request in pending(run.control)]


async def test_checkpoint_sends_a_request_and_shows_the_reply(supervised: RunDir) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("k")
        await until(pilot, lambda: verbs(supervised) == ["checkpoint"], "the request")
        await until(pilot, lambda: "checkpoint requested; " in notices(app), "the reply")


@pytest.mark.parametrize(
    ("keys", "verb", "value", "prompt"),
    [
        (["p"], "pause", None, ""),
        (["e", "right", "enter"], "evaluate", None, ""),
        (["s", *"def", "enter"], "sample", None, "def"),
        (["l", *"0.001", "enter"], "learning-rate", 0.001, ""),
        (["n", *["backspace"] * 3, *"900", "enter"], "max-steps", 900, ""),
    ],
)
async def test_keys_send_requests_with_their_values_and_the_sender(
    supervised: RunDir, keys: list[str], verb: str, value: float | None, prompt: str
) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        await settled(pilot)
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
        await until(pilot, lambda: verbs(supervised) == [verb], "the request")
        [request] = pending(supervised.control)
        assert (request.value, request.text) == (value, prompt)
        assert request.by.endswith(", key on the screen")


async def test_a_value_that_is_not_allowed_is_refused_in_the_dialog_and_esc_sends_nothing(supervised: RunDir) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("l", "7", "enter")
        await pilot.pause()
        assert "allowed the new peak, a number > 0 and ≤ 1" in text(app)
        await pilot.press("escape")
        await pilot.press("e", "enter")
        await pilot.pause()
        assert verbs(supervised) == []


async def test_a_request_that_no_engine_takes_says_so(supervised: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cockpit.launching.requests.ANSWER_S", 0.1)
    monkeypatch.setattr("cockpit.launching.requests.ANSWER_STEPS", 0.0)
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(160, 48), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("k")
        await until(pilot, lambda: "checkpoint not taken after 0.10s" in notices(app), "why no answer came")


async def test_a_request_that_cannot_be_written_says_why(supervised: RunDir) -> None:
    supervised.control.write_text("a file where the folder of requests should be")
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(160, 48), notifications=True) as pilot:
        await settled(pilot)
        await pilot.press("k")
        await until(pilot, lambda: "could not send the checkpoint request" in notices(app), "the reason")


async def test_stopping_asks_first_and_the_first_answer_keeps_the_run_running(supervised: RunDir) -> None:
    app = live_app(EventSource(journals.live(50).events), supervised.root)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        await pilot.press("x")
        await pilot.pause()
        assert isinstance(app.screen, ConfirmScreen)
        assert "Stop after checkpoint" in text(app)
        await pilot.press("enter")
        await pilot.pause()
        await pilot.press("x")
        await pilot.pause()
        await pilot.press("right", "enter")
        await until(pilot, lambda: bool(verbs(supervised)), "a request")
        assert verbs(supervised) == ["stop-after-checkpoint"], "the first answer requests nothing"
        await pilot.press("x")
        await pilot.pause()
        await pilot.press("right", "right", "enter")
        await until(pilot, lambda: verbs(supervised) == ["stop-after-checkpoint", "stop"], "the second request")


async def test_a_finished_run_offers_no_requests() -> None:
    app = live_app(EventSource(journals.finished().events))
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "✓ succeeded" in shown
        assert "Ckpt" not in shown
        assert "Stop…" not in shown
        await pilot.press("x", "k", "space")
        await pilot.pause()
        assert not isinstance(app.screen, ConfirmScreen)
        assert not app.run_screen.frozen


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


# ---- replay


async def test_a_replay_shows_the_fold_up_to_the_playhead() -> None:
    events = journals.failed().events
    at = next(n for n, e in enumerate(events, 1) if isinstance(e, Step) and e.step == 300)
    app = replay_app(events, at)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        assert "▶ REPLAY" in text(app)
        assert "step 300/820" in text(app)
        await pilot.press("right")
        await settled(pilot)
        assert "step 301/820" in text(app)
        await pilot.press("shift+right")
        await settled(pilot)
        assert "step 351/820" in text(app)
        await pilot.press("left")
        await settled(pilot)
        assert "step 350/820" in text(app)
        await pilot.press("home")
        await settled(pilot)
        assert app.run_screen.playback is not None
        assert app.run_screen.playback.index == 0
        await pilot.press("end")
        await settled(pilot)
        assert "✗ failed" in text(app)


async def test_e_goes_to_the_next_event_and_g_to_a_step() -> None:
    events = journals.failed().events
    app = replay_app(events, 1)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        playback = app.run_screen.playback
        assert playback is not None
        await pilot.press("e")
        first = playback.index
        assert first == playback.moments[0].index
        await pilot.press("e", "E")
        assert playback.index == first
        await pilot.press("g")
        await pilot.pause()
        await pilot.press(*"210", "enter")
        await settled(pilot)
        assert "step 210/820" in text(app)
        assert "questions has no steps; this is step 210 of atlas" in notices(app)


async def test_playing_moves_and_speed_changes() -> None:
    app = replay_app(journals.live(100).events, 20)
    async with app.run_test(size=(80, 24)) as pilot:
        await settled(pilot)
        playback = app.run_screen.playback
        assert playback is not None
        before = playback.index
        await pilot.press("right_square_bracket")
        assert playback.speed == 16.0
        for _ in range(5):
            await pilot.press("right_square_bracket")
        await pilot.press("space")
        await until(pilot, lambda: playback.at_end, "the end of the playback")
        assert playback.index > before
        assert not playback.playing


# ---- keys


@pytest.mark.parametrize("scope", sorted(SCOPES))
def test_every_key_has_one_meaning_and_an_id_of_its_own(scope: str) -> None:
    names = [name for key in SCOPES[scope] for name in key.keys.split(",")]
    assert len(names) == len(set(names))
    assert all(key.id.startswith(f"{scope}.") for key in SCOPES[scope])
    assert all(key.help.endswith(".") for key in SCOPES[scope])
    clashes = {"ctrl+a", "ctrl+b", "ctrl+backslash", "ctrl+z"} & set(names)
    assert scope == "recipe" or not clashes


@pytest.mark.parametrize(
    ("scope", "make"),
    [
        ("run", lambda: live_app(EventSource(journals.live(20).events))),
        ("replay", lambda: replay_app(journals.live(20).events)),
    ],
)
async def test_every_key_of_the_footer_and_of_help_runs_an_action_that_exists(scope: str, make: object) -> None:
    app: OneScreen = make()  # type: ignore[operator]
    async with app.run_test(size=(160, 48)) as pilot:
        await settled(pilot)
        screen = app.run_screen
        bound = {key: binding.action for key, binding in screen._bindings}
        for key in SCOPES[scope]:
            for name in key.keys.split(","):
                assert bound[name] == key.action
            method = "action_" + key.action.partition("(")[0].removeprefix("app.")
            assert hasattr(app if key.action.startswith("app.") else screen, method), key
        shown = text(app).split("\n")[-1]
        for key in footer_keys(scope)[:4]:
            assert f"{key.in_bar} {key.label}" in shown


async def test_a_screen_that_is_too_small_does_not_break() -> None:
    for size in ((20, 5), (60, 20), (81, 24), (119, 35), (200, 60)):
        app = live_app(EventSource(journals.live(50).events))
        async with app.run_test(size=size) as pilot:
            await settled(pilot)
            assert isinstance(app.run_screen.query(Chart).first(), Chart)
            await pilot.resize_terminal(100, 30)
            await settled(pilot)
            assert "step 50/820" in text(app)


@pytest.mark.parametrize(("asked", "shown"), [(2.0, 2.0), (None, 8.0)])
async def test_a_replay_plays_at_the_requested_speed(tmp_path: Path, asked: float | None, shown: float) -> None:
    first, second = (journals.live(30).write(tmp_path / name) for name in ("first", "second"))
    app = CockpitApp(tmp_path, replay=first, speed=16.0)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.pause()
        assert _playback(app).speed == 16.0
        app.open_replay(second, asked)
        await pilot.pause()
        assert _playback(app).speed == shown, "the first replay's speed is not used for the second"


def _playback(app: CockpitApp) -> Playback:
    assert isinstance(app.screen, RunScreen)
    assert app.screen.playback is not None
    return app.screen.playback


class UnreadSource(EventSource):
    """Events of which the screen has read a part."""

    share: float | None = 0.344

    @property
    def reading(self) -> float | None:
        return self.share


@pytest.mark.parametrize("size", SIZES)
async def test_while_a_journal_is_being_read_the_screen_shows_how_much_and_no_state_step_or_eta(
    size: tuple[int, int],
) -> None:
    source = UnreadSource(journals.live(412).events, lost=True)
    app = live_app(source)
    async with app.run_test(size=size) as pilot:
        await settled(pilot)
        shown = text(app)
        assert "reading 34%" in shown
        for untrue in ("lost", "running", "step", "ETA", "resume it", "%b", "loss"):
            assert untrue not in shown, untrue
        source.share = None
        await until(pilot, lambda: "step 412/820" in text(app), "the picture")
        assert "reading" not in text(app)


def first_pictures(screen: RunScreen, pictures: list[str], *, read: str) -> None:
    """Keep what the screen shows at each call of this method of its source, before the call."""
    source, inner = screen.source, getattr(screen.source, read)

    def recorded() -> bool:
        strips_now = screen._compositor.render_strips(screen.app.size) if screen.is_attached else []
        pictures.append("\n".join(strip.text for strip in strips_now))
        found: bool = inner()
        return found

    setattr(source, read, recorded)


@pytest.mark.parametrize("make", [LiveSource, replay_of])
async def test_a_screen_is_drawn_and_says_reading_before_it_reads_a_record(
    make: Callable[[Path], LiveSource | ReplaySource], tmp_path: Path
) -> None:
    run_dir = journals.live(412).write(tmp_path / "20261120-2130-atlas")
    screen, pictures = RunScreen(make(run_dir), run_dir), list[str]()
    first_pictures(screen, pictures, read="poll")
    app = OneScreen(lambda: screen)
    async with app.run_test(size=(160, 48)) as pilot:
        await until(pilot, lambda: screen.source.reading is None, "the end of the journal")
        assert "reading 0%" in pictures[0]
        assert "20261120-2130-atlas" in pictures[0]
        assert not any(str(word) in pictures[0] for word in RunStatus)


async def test_a_look_for_a_supervisor_waits_until_the_screen_has_read_the_journal_and_for_the_look_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = journals.live(412).write(tmp_path / "run")
    screen = RunScreen(LiveSource(run_dir), run_dir)
    looks: list[float | None] = []
    go_on = threading.Event()

    def look() -> bool:
        looks.append(screen.source.reading)
        go_on.wait(PATIENCE_S)
        return False

    monkeypatch.setattr(screen._observer, "adopt", look)
    app = OneScreen(lambda: screen)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: bool(looks), "a look")
        screen._keep_supervised()
        await pilot.pause()
        assert looks == [None]
        go_on.set()
        await until(pilot, lambda: not screen._adopting, "the end of the look")
        screen._keep_supervised()
        await until(pilot, lambda: looks == [None, None], "the next look")


async def test_a_replay_offers_no_playhead_before_its_journal_is_read(tmp_path: Path) -> None:
    run_dir = journals.live(412).write(tmp_path / "run")
    screen = RunScreen(replay_of(run_dir), run_dir)
    assert not any(screen.check_action(action, ()) for action in ("play", "seek", "goto"))
    while screen.source.reading is not None:
        screen.source.poll()
    assert all(screen.check_action(action, ()) for action in ("play", "seek", "goto"))
    assert screen.playback is not None
    assert len(screen.playback) == len(journals.live(412).events)
