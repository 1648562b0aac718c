"""Which checkpoints are complete, which are kept, and which are removed."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.artifacts.checkpoints import (
    Checkpoint,
    clean_leftovers,
    current_best,
    remove_checkpoint,
    scan,
    which_to_remove,
)
from engines.artifacts.manifest import commit_folder, write_manifest
from engines.guards import check_step

SETS = st.lists(st.tuples(st.booleans(), st.none() | st.floats(0, 10) | st.just(float("nan"))), max_size=12).map(
    lambda rows: [
        Checkpoint(
            attempt=1,
            step=step,
            path=Path(f"step-{step}"),
            sha256=str(step),
            healthy=healthy,
            metrics={} if loss is None else {"eval_loss": loss},
        )
        for step, (healthy, loss) in enumerate(rows, start=1)
    ]
)


@given(SETS, st.integers(1, 5), st.randoms())
def test_rotation_keeps_the_newest_the_best_and_the_newest_healthy(
    checkpoints: list[Checkpoint], limit: int, random: object
) -> None:
    removed = which_to_remove(checkpoints, limit)
    kept = [checkpoint for checkpoint in checkpoints if checkpoint not in removed]
    assert kept[-limit:] == checkpoints[-limit:]
    assert len(kept) <= limit + 2
    healthy = [checkpoint for checkpoint in checkpoints if checkpoint.healthy]
    assert not healthy or healthy[-1] in kept
    measured = [checkpoint.eval_loss for checkpoint in checkpoints if checkpoint.eval_loss is not None]
    assert not measured or min(measured) in [checkpoint.eval_loss for checkpoint in kept]
    assert which_to_remove(list(reversed(checkpoints)), limit) == removed


@given(SETS, st.integers(1, 5))
def test_rotating_after_each_commit_never_loses_what_one_rotation_keeps(
    checkpoints: list[Checkpoint], limit: int
) -> None:
    on_disk: list[Checkpoint] = []
    for checkpoint in checkpoints:
        on_disk.append(checkpoint)
        gone = which_to_remove(on_disk, limit)
        on_disk = [item for item in on_disk if item not in gone]
    assert set(which_to_remove(checkpoints, limit)) == set(checkpoints) - set(on_disk)


def test_the_newer_of_two_equal_checkpoints_is_the_best() -> None:
    two = [Checkpoint(1, step, Path(str(step)), "", True, metrics={"eval_loss": 2.0}) for step in (1, 2)]
    assert current_best(two) == two[1]


def commit_checkpoint(stage: Path, attempt: int, step: int, *, healthy: bool = True) -> Path:
    folder = stage / str(attempt) / "checkpoints"
    draft = folder / f".tmp-{step}"
    draft.mkdir(parents=True)
    (draft / "weights").write_bytes(bytes([step]) * 10)
    write_manifest(draft, step=step, healthy=healthy, metrics={"eval_loss": 1.0, "note": "text"}, position={"epoch": 1})
    commit_folder(draft, folder / f"step-{step}")
    return folder / f"step-{step}"


def test_only_a_complete_folder_is_a_checkpoint(tmp_path: Path) -> None:
    whole = commit_checkpoint(tmp_path, 1, 5)
    (tmp_path / "1" / "checkpoints" / ".tmp-step-9").mkdir()
    torn = commit_checkpoint(tmp_path, 1, 7)
    (torn / "weights").write_bytes(b"short")
    renamed = commit_checkpoint(tmp_path, 2, 8)
    renamed.rename(renamed.with_name("step-80"))
    (tmp_path / "1" / "checkpoints" / "step-99").mkdir()
    (tmp_path / "1" / "checkpoints" / "notes").mkdir()
    (tmp_path / "out").mkdir()
    complete, refused = scan(tmp_path)
    assert [item.path for item in complete] == [whole]
    assert complete[0].metrics == {"eval_loss": 1.0}
    assert complete[0].position == {"epoch": 1}
    reasons = {path.name: reason for path, reason in refused}
    assert set(reasons) == {".tmp-step-9", "step-7", "step-80", "step-99"}
    assert "not finished" in reasons[".tmp-step-9"]
    assert "5 bytes, not 10" in reasons["step-7"]
    assert "for step 8," in reasons["step-80"]
    assert "cannot be read" in reasons["step-99"]


@pytest.mark.parametrize("seed", range(5))
def test_dates_of_files_do_not_decide_what_is_kept(tmp_path: Path, seed: int) -> None:
    """A copy, a restore or a clock that was set gives a folder any date."""
    draw = Random(seed)
    for step in range(1, 8):
        folder = commit_checkpoint(tmp_path, 1, step, healthy=step != 7)
        for path in (folder, *folder.iterdir()):
            os.utime(path, (draw.uniform(0, 2e9), draw.uniform(0, 2e9)))
    complete, _ = scan(tmp_path)
    assert [one.step for one in complete] == list(range(1, 8))
    removed = {one.step for one in which_to_remove(complete, 2)}
    assert removed == {1, 2, 3, 4, 5}, "the newest two by step, among them the newest healthy one"


def test_removal_and_leftovers(tmp_path: Path) -> None:
    commit_checkpoint(tmp_path, 1, 5)
    folder = tmp_path / "1" / "checkpoints"
    (folder / ".trash-step-1-dead").mkdir()
    (folder / ".tmp-step-9-dead").mkdir()
    [checkpoint], _ = scan(tmp_path)
    remove_checkpoint(checkpoint)
    remove_checkpoint(checkpoint)
    assert clean_leftovers(folder) == [".tmp-step-9-dead", ".trash-step-1-dead"]
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("loss", "grad_norm", "guard"),
    [
        (2.0, 1.0, None),
        (2.0, 10.0, None),
        (2.0, None, None),
        (float("nan"), 1.0, "nonfinite_loss"),
        (float("inf"), float("nan"), "nonfinite_loss"),
        (2.0, float("nan"), "nonfinite_grad_norm"),
        (2.0, float("inf"), "nonfinite_grad_norm"),
        (2.0, 10.001, "grad_norm"),
    ],
)
def test_guards_name_the_first_violation(loss: float, grad_norm: float | None, guard: str | None) -> None:
    trip = check_step(loss, grad_norm, 10.0)
    assert (trip and trip.guard) == guard
    if trip is not None:
        assert trip.limit == (10.0 if guard == "grad_norm" else None)
