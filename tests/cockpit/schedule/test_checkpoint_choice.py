"""The checkpoint from which an attempt resumes, by the files on disk and the journal's facts."""

from __future__ import annotations

from pathlib import Path

from cockpit.schedule.checkpoint_choice import choose_checkpoint
from engines.run_dir.paths import RunDir
from tests.cockpit.schedule.test_scheduling import Journal
from tests.engines.artifacts.test_checkpoints import commit_checkpoint


def test_every_byte_is_verified_and_an_older_checkpoint_is_the_fallback(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (2, 4, 6):
        commit_checkpoint(run.stage_dir("base"), 1, step, healthy=step != 4)
    (run.checkpoint("base", 1, 6) / "weights").write_bytes(b"same size!")
    facts = Journal().start().attempt("base", 1, "error").facts().stage("base")

    choice = choose_checkpoint(run, "base", facts)
    assert choice.chosen is not None
    assert choice.chosen.step == 4
    assert ["step-6" in reason and "SHA-256" in reason for reason in choice.refused] == [True]

    healthy = choose_checkpoint(run, "base", facts, healthy_only=True)
    assert healthy.chosen is not None
    assert healthy.chosen.step == 2
    assert ["step-6" in healthy.refused[0], "step-4" in healthy.refused[1]] == [True, True]

    named = choose_checkpoint(run, "base", facts, at_step=1)
    assert named.chosen is None
    assert named.refused == []
    assert named.as_resume() is None


def test_replaced_steps_are_not_used_unless_one_is_named(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (2, 4, 6):
        commit_checkpoint(run.stage_dir("base"), 1, step)
    commit_checkpoint(run.stage_dir("base"), 2, 3)
    journal = Journal().start().attempt("base", 1, "error").attempt("base", 2, "error", resumed=(1, 2))
    facts = journal.attempt("base", 3, "error", resumed=(2, 3)).facts().stage("base")
    chosen = choose_checkpoint(run, "base", facts).chosen
    assert chosen is not None
    assert (chosen.attempt, chosen.step) == (2, 3)
    named = choose_checkpoint(run, "base", facts, at_step=6).chosen
    assert named is not None
    assert (named.attempt, named.step) == (1, 6)


def test_copies_on_a_host_whose_processes_recorded_no_start_are_used_in_whichever_attempt_they_were_put(
    tmp_path: Path,
) -> None:
    """Only the first process records how an attempt began; other hosts are asked for a copy of its checkpoint."""
    run = RunDir(tmp_path)
    commit_checkpoint(run.stage_dir("base"), 1, 10)
    journal = Journal().start().attempt("base", 1, "error").attempt("base", 2, "error")
    facts = journal.facts().stage("base")
    for attempt in facts.attempts.values():
        attempt.started = None
    chosen = choose_checkpoint(run, "base", facts).chosen
    assert chosen is not None
    assert (chosen.attempt, chosen.step) == (1, 10)
    commit_checkpoint(run.stage_dir("base"), 2, 20)
    newest = choose_checkpoint(run, "base", facts).chosen
    assert newest is not None
    assert (newest.attempt, newest.step) == (2, 20)
