"""Runs that were renamed or pruned are the same runs: they resume, verify, and are inputs of others."""

from __future__ import annotations

from pathlib import Path

from cockpit.keeping.prune import removals, remove
from cockpit.keeping.remove import remove_run, users_of
from cockpit.keeping.rename import rename
from cockpit.keeping.uses import uses_in
from cockpit.launching.launch import resume
from cockpit.launching.requests import send_request
from cockpit.runs.find import run_ids
from cockpit.runs.verify import check_descent
from engines.words import Verb
from tests.runs.harness import fake_recipe, launch_text, state, step_of, wait_for_end, wait_for_step


def test_a_renamed_run_resumes_from_its_checkpoint_and_is_an_input_under_both_names(tmp_path: Path) -> None:
    run = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.005, "save_steps": 5}), tmp_path)
    wait_for_step(run, 12)
    send_request(run, Verb.STOP_AFTER_CHECKPOINT)
    assert wait_for_end(run) == "stopped"
    at = step_of(run)
    now = rename(run, "baseline")
    resume(now, sets=[f"part-1.max_steps={at + 4}"])
    assert wait_for_end(now) == "succeeded"
    assert list(state(now).series("part-1", "loss").x) == list(range(1, at + 5))
    for name in (run.id, now.id):
        other = launch_text(fake_recipe({"max_steps": 1, "step_s": 0.0, "data": f"{name}:part-1"}), tmp_path)
        assert wait_for_end(other) == "succeeded"
    again = rename(now, "third")
    assert {link.verdict for link in check_descent(other.out("part-1"), [tmp_path / "runs"])} == {"whole"}
    assert set(users_of([again], tmp_path / "runs")) == {again.id}


def test_a_pruned_run_verifies_and_continues_and_then_can_be_removed(tmp_path: Path) -> None:
    stage = {"max_steps": 12, "step_s": 0.0, "save_steps": 2, "save_total_limit": 9, "eval_steps": 2}
    run = launch_text(fake_recipe(stage), tmp_path)
    assert wait_for_end(run) == "succeeded"
    uses = uses_in(tmp_path / "runs")
    gone = remove(run, removals(run, uses), uses)
    assert gone
    left = sorted(path.name for path in run.checkpoints("part-1", 1).iterdir())
    assert "step-12" in left
    assert len(left) < 6
    assert {link.verdict for link in check_descent(run.out("part-1"), [tmp_path / "runs"])} == {"whole"}
    resume(run, sets=["part-1.max_steps=15"])
    assert wait_for_end(run) == "succeeded"
    assert list(state(run).series("part-1", "loss").x) == list(range(1, 16))
    remove_run(run)
    assert run_ids(tmp_path / "runs") == []
