"""What a training's method measures: a series of each name, in charts, files, lines and JSON, and nothing where it is
absent."""

from __future__ import annotations

import csv
import io
import json

import pytest

from cockpit.cli import main
from cockpit.curves.figure import Dot, Label, figure_of
from cockpit.headless.lines import event_line, stage_line
from cockpit.runs.state import RunState, fold
from cockpit.tui.charts.panels import ViewOptions, panels
from engines.events.event import Event
from engines.events.records import encode_record
from engines.events.results import Evaluated
from engines.events.steps import Step
from engines.run_dir.paths import RunDir
from tests.cockpit.runs.journaled_runs import a_run
from tests.tui import journals
from tests.tui.app_under_test import live_app, replay_app, settled, text
from tests.tui.event_source import EventSource
from tests.tui.looking import SIZES

STEPS = 120


@pytest.fixture(scope="module")
def state() -> RunState:
    return fold(journals.preferring(STEPS).events)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run = a_run(tmp_path_factory.mktemp("preferring"))
    run.journal.write_bytes(b"".join(journals.preferring(STEPS)._lines))
    return run


def test_each_name_is_a_series_over_steps_and_one_over_evaluations(state: RunState) -> None:
    margins = state.series("atlas", "rewards/margins")
    assert list(margins.x) == list(range(1, STEPS + 1))
    assert list(margins.y) == [journals.rewards_at(step)["rewards/margins"] for step in range(1, STEPS + 1)]
    evaluated = state.series("atlas", "eval_rewards/margins")
    assert list(evaluated.x) == [100]
    assert list(evaluated.y) == [journals.rewards_at(100)["rewards/margins"]]
    assert len(state.series("atlas", "eval_loss")) == 1


def test_a_method_that_measures_only_at_evaluations_has_a_chart_of_them() -> None:
    journal = journals.live(30)
    evaluated = Evaluated(
        stage="atlas", attempt=1, step=30, loss=1.0, perplexity=2.7, tokens=5, protocol="x", metrics={"kl": 0.25}
    )
    journal.say("e1.atlas", evaluated, 1.0)
    found = fold(journal.events)
    assert found.series_names("atlas")[-1] == "eval_kl"
    stage = found.stage("atlas")
    assert stage is not None
    [chart] = [p.make() for p in panels(found, stage, ViewOptions(log=set()), {}) if p.name == "eval_kl"]
    assert list(chart.raw.y) == [0.25]


def test_the_first_page_has_what_a_method_is_judged_by_and_other_trainings_have_their_old_page(state: RunState) -> None:
    def names(of: RunState) -> list[str]:
        stage = of.stage("atlas")
        assert stage is not None
        return [panel.name for panel in panels(of, stage, ViewOptions(log=set()), {})]

    found = names(state)
    assert found[:5] == ["loss", "rewards/margins", "rewards/accuracies", "learning_rate", "grad_norm"]
    assert found[6:10] == ["rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"]
    plain = names(fold(journals.live(30).events))
    assert plain[:3] == ["loss", "learning_rate", "grad_norm"]
    assert not any("/" in name for name in plain)


def test_a_step_without_metrics_writes_no_byte_for_them() -> None:
    step = Step(
        stage="a", attempt=1, step=1, epoch=0.1, loss=1.0, learning_rate=1e-4, grad_norm=1.0, tokens=1, loss_tokens=1,
        step_s=0.1,
    )  # fmt: skip
    assert b"metrics" not in encode_record(step, writer="w", seq=0, t=0.0, m=0.0)


def test_lines_name_the_margin_and_the_accuracy_and_no_perplexity_that_was_not_measured(state: RunState) -> None:
    stage = state.stage("atlas")
    assert stage is not None
    assert "margin 1.2" in stage_line(stage, state, None)
    line = event_line(stage.evaluations[-1])
    assert "margin 1" in line
    assert "accuracy" in line
    assert "perplexity" not in line
    plain: Event = Evaluated(stage="a", attempt=1, step=5, loss=1.0, perplexity=2.7, tokens=5, protocol="x")
    assert "perplexity 2.7" in event_line(plain)  # type: ignore[arg-type]


def test_files_have_every_value_and_a_chart_of_each_name(
    run: RunDir, state: RunState, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert main(["metrics", str(run.root), "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsysbinary.readouterr().out.decode())))
    assert not any(name.startswith("eval_rewards") for name in rows[0]), "one column, for steps and evaluations"
    steps = [row for row in rows if row["loss"]]
    assert [float(row["rewards/chosen"]) for row in steps] == [
        journals.rewards_at(n)["rewards/chosen"] for n in range(1, STEPS + 1)
    ]
    [evaluation] = [row for row in rows if row["eval_loss"]]
    assert float(evaluation["rewards/chosen"]) == journals.rewards_at(100)["rewards/chosen"]
    figure = figure_of(state)
    words = [shape.text for shape in figure.shapes if isinstance(shape, Label)]
    assert "atlas: rewards/margins" in words
    assert sum("1 evaluation," in word for word in words) == 7, "loss and six names"
    assert sum(isinstance(shape, Dot) for shape in figure.shapes) == 7


def test_show_json_has_the_newest_of_both(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(run.root), "--json"]) == 0
    stage = next(one for one in json.loads(capsys.readouterr().out)["stages"] if one["name"] == "atlas")
    assert stage["step_metrics"] == journals.rewards_at(STEPS)
    assert stage["evaluation"]["metrics"] == journals.rewards_at(100)
    assert stage["evaluation"]["perplexity"] is None


@pytest.mark.parametrize("size", SIZES)
async def test_the_screen_and_its_replay_show_the_margin_beside_the_loss(size: tuple[int, int]) -> None:
    journal = journals.preferring(STEPS)
    for app in (live_app(EventSource(journal.events)), replay_app(journal.events)):
        async with app.run_test(size=size) as pilot:
            await settled(pilot)
            assert "rewards/margins 1.2" in text(app)
            assert "rewards/accuracies" in text(app)
            await pilot.press("v")
            await settled(pilot)
            assert "rewards/rejected -0.72" in text(app)
