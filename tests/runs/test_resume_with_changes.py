"""`cockpit resume RUN --set`: the change is in the recipe, in the journal and wherever the run is shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.headless.report import report_lines
from cockpit.headless.run_json import run_json
from cockpit.launching.launch import resume
from cockpit.launching.requests import send_request
from cockpit.provenance.trust import allow_recipe
from cockpit.runs.health import Health
from cockpit.schedule.recipe_changes import write_changes
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.events.attempts import AttemptStarted
from engines.events.runs import FieldChanged, RunStarted
from engines.events.steps import Step
from engines.run_dir.paths import RunDir
from engines.words import Verb
from recipes.problems import OperatorError
from tests.runs.harness import (
    events,
    fake_recipe,
    kill_supervisor,
    launch_text,
    state,
    step_of,
    wait_for_end,
    wait_for_step,
)

SLOW = {"max_steps": 100_000, "step_s": 0.005, "save_steps": 1000}


def stopped(tmp_path: Path, *more: dict[str, object]) -> RunDir:
    run = launch_text(fake_recipe(SLOW, *more), tmp_path)
    wait_for_step(run, 5)
    send_request(run, Verb.STOP_AFTER_CHECKPOINT)
    assert wait_for_end(run) == "stopped"
    return run


def journaled(run: RunDir) -> list[list[FieldChanged]]:
    return [event.changes for event in events(run) if isinstance(event, RunStarted)]


def test_a_change_is_trained_with_journaled_and_shown(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    launched = run.recipe_json.read_bytes()
    at = step_of(run)
    sets = [f"part-1.max_steps={at + 5}", "part-1.step_s=0", "part-1.learning_rate=0.5"]
    resume(run, sets=sets)
    assert wait_for_end(run) == "succeeded"
    assert step_of(run) == at + 5
    attempt = next(e for e in events(run) if isinstance(e, AttemptStarted) and e.attempt == 2)
    assert attempt.resumed_from is not None
    assert attempt.resumed_from.step == at
    rates = [e.learning_rate for e in events(run) if isinstance(e, Step) and e.step > at]
    assert max(rate for rate in rates if rate is not None) > 0.01, "the launched peak was 3e-4"
    [first, second] = journaled(run)
    assert first == []
    assert [(change.number, change.field, change.old, change.new) for change in second] == [
        (1, "max_steps", "100000", str(at + 5)),
        (2, "step_s", "5e-3", "0.0"),
        (3, "learning_rate", "3e-4", "0.5"),
    ]
    assert run.replaced_recipe_json(1).read_bytes() == launched, "the recipe as launched is kept"
    assert RunRecipe.read(run).changes == second
    sentence = "part-1.learning_rate 3e-4 → 0.5"
    assert any(sentence in line for line in report_lines(state(run)))
    assert any(sentence in line.text for line in state(run).log())
    shown = run_json(run, run.read_run_json(), state(run), "succeeded", Health("succeeded"))
    assert [change["field"] for change in shown["changes"]] == ["max_steps", "step_s", "learning_rate"]


def test_a_stage_that_has_not_begun_has_no_checkpoint_so_its_seed_may_change(tmp_path: Path) -> None:
    run = stopped(tmp_path, {"max_steps": 2, "step_s": 0.0})
    sets = [f"part-1.max_steps={step_of(run) + 1}", "part-2.seed=7"]
    with pytest.raises(OperatorError, match=r"part-1\.seed — it changes which examples") as caught:
        resume(run, sets=[*sets, "part-1.seed=7"])
    assert "part-2" not in str(caught.value)
    resume(run, sets=sets)
    assert wait_for_end(run) == "succeeded"
    [_, second] = journaled(run)
    assert [(change.stage, change.field, change.new) for change in second][1:] == [("part-2", "seed", "7")]


def test_an_engine_that_lives_without_its_supervisor_takes_no_changes(tmp_path: Path) -> None:
    """It would keep its values to its end, and its stage would then run again."""
    run = launch_text(fake_recipe(SLOW), tmp_path)
    wait_for_step(run, 5)
    kill_supervisor(run)
    launched = run.recipe_json.read_bytes()
    for change in ({"sets": ["part-1.learning_rate=0.5"]}, {"stage": "part-1"}):
        with pytest.raises(OperatorError, match="running without a supervisor") as caught:
            resume(run, **change)
        assert caught.value.hint.startswith(f"stop it first: cockpit stop {run.id}")
    assert run.recipe_json.read_bytes() == launched
    assert journaled(run) == [[]], "and no supervisor was started"


def test_a_finished_run_gets_more_steps(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 6, "step_s": 0.0, "save_steps": 3}, {"max_steps": 2}), tmp_path)
    assert wait_for_end(run) == "succeeded"
    resume(run, sets=["part-1.max_steps=9"])
    assert wait_for_end(run) == "succeeded"
    assert list(state(run).series("part-1", "loss").x) == list(range(1, 10))


def test_a_change_without_effect_on_a_finished_stage_is_refused_by_name(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 4, "step_s": 0.0}), tmp_path)
    assert wait_for_end(run) == "succeeded"
    before = run.journal.read_bytes()
    with pytest.raises(OperatorError, match=r"part-1\.save_steps — part-1 is finished"):
        resume(run, sets=["part-1.save_steps=2"])
    with pytest.raises(OperatorError, match="nothing to resume"):
        resume(run, sets=["part-1.max_steps=4"])
    with pytest.raises(OperatorError, match=r"part-1\.save_steps — .*\n.*part-1\.seed — it changes which examples"):
        resume(run, sets=["part-1.seed=2", "part-1.save_steps=2"])
    assert run.journal.read_bytes() == before
    assert not run.replaced_recipe_json(1).exists()


def test_a_last_step_before_the_checkpoint_is_refused_with_what_is_allowed(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    at = step_of(run)
    with pytest.raises(OperatorError, match=rf"got 2; allowed a whole number ≥ {at}"):
        resume(run, sets=["part-1.max_steps=2"])


def test_changes_whose_supervisor_died_before_it_could_journal_them_are_journaled_by_the_next(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    at = step_of(run)
    write_changes(run, [f"part-1.max_steps={at + 3}", "part-1.step_s=0"])  # all that a supervisor does before its death
    assert journaled(run) == [[]]
    resume(run)
    assert wait_for_end(run) == "succeeded"
    assert step_of(run) == at + 3
    assert [[change.field for change in changes] for changes in journaled(run)] == [[], ["max_steps", "step_s"]]


def test_the_recipe_of_an_older_run_has_no_changes_and_takes_some(tmp_path: Path) -> None:
    run = stopped(tmp_path)
    old = json.loads(run.recipe_json.read_text())
    del old["changes"]
    allow_recipe(run, json.dumps(old).encode())
    run.recipe_json.write_text(json.dumps(old))
    assert RunRecipe.read(run).changes == []
    resume(run, sets=[f"part-1.max_steps={step_of(run) + 1}"])
    assert wait_for_end(run) == "succeeded"
    assert len(journaled(run)[1]) == 1
