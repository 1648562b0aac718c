"""Sizes, removing, pruning, renaming and notes: what goes, what never goes, and what is found again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cockpit.keeping.hold import TRASH
from cockpit.keeping.notes import write_note
from cockpit.keeping.prune import removals, remove
from cockpit.keeping.remove import leftovers, refuse_live, refuse_used, remove_run, users_of
from cockpit.keeping.rename import rename
from cockpit.keeping.sizes import sizes_of
from cockpit.keeping.uses import uses_in
from cockpit.runs.find import find_run, run_ids
from cockpit.runs.verify import check_descent
from cockpit.runs.watch import RunWatch
from engines.run_dir.moved_runs import place_now
from engines.run_dir.paths import RunDir
from recipes.problems import OperatorError
from tests.cockpit.keeping.finished_runs import made_run, output
from tests.permissions import modes_count


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# ---- sizes


def test_sizes_are_told_apart_by_kind_and_links_are_not_followed(root: Path, tmp_path: Path) -> None:
    run = made_run(root, "a", steps=(10, 20))
    output(run, "train", {}, "out.1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "big").write_bytes(b"x" * 1_000_000)
    (run.root / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(run.root / "pipe")
    found = sizes_of(run)
    assert 2000 < found.parts["checkpoints"] < 4000
    assert 500 < found.parts["outputs"] < 2000
    assert 500 < found.parts["replaced outputs"] < 2000
    assert found.parts["journals"] == run.journal.stat().st_size
    assert found.complete
    assert found.total < 20_000


# ---- removing


def test_a_run_is_removed_with_its_links_and_what_they_point_to_stays(root: Path, tmp_path: Path) -> None:
    run = made_run(root, "a", steps=(10,))
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "keep.txt").write_text("x")
    (run.stages / "train" / "1" / "checkpoints" / "step-99").symlink_to(treasure)
    (run.root / "stages" / "out-there").symlink_to(treasure)
    remove_run(run)
    assert (treasure / "keep.txt").read_text() == "x"
    assert run_ids(root) == []
    assert list(root.iterdir()) == []


def test_a_run_folder_that_is_a_link_is_refused(root: Path, tmp_path: Path) -> None:
    real = made_run(tmp_path / "other", "a")
    root.mkdir()
    (root / real.id).symlink_to(real.root)
    with pytest.raises(OperatorError, match="cannot be opened as a folder of its own"):
        remove_run(RunDir(root / real.id))
    assert real.run_json.is_file()


def test_a_live_run_is_never_removed_renamed_or_pruned(root: Path) -> None:
    run = made_run(root, "a", steps=(10, 20, 30))
    lines = (
        "import fcntl, sys",
        f"lock = open({str(run.supervisor_lock)!r}, 'w')",
        "fcntl.flock(lock, fcntl.LOCK_EX)",
        "print('held', flush=True)",
        "sys.stdin.read()",
    )
    uses = uses_in(root)
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for act in (remove_run, lambda one: rename(one, "b"), lambda one: remove(one, removals(one, uses), uses)):
            with pytest.raises(OperatorError, match=r"is (running|live)"):
                act(run)
    assert run.run_json.is_file()
    assert kept_steps(run) == [10, 20, 30]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_another_user_s_run_is_never_touched(root: Path) -> None:
    run = made_run(root, "a")
    os.chown(run.root, 65534, 65534)
    for act in (remove_run, lambda one: rename(one, "b"), lambda one: write_note(one, "x")):
        with pytest.raises(OperatorError, match="belongs to another user"):
            act(run)


def test_a_run_with_a_read_only_folder_is_refused_whole_and_keeps_its_name(root: Path) -> None:
    """A rename to a name that lists leave out, and then a refusal, would lose sight of the run and free nothing."""
    run, other = made_run(root, "protected", steps=[10]), made_run(root, "other")
    checkpoint = run.checkpoint("train", 1, 10)
    checkpoint.chmod(0o500)
    with modes_count():
        with pytest.raises(OperatorError, match=r"step-10: Permission denied") as refusal:
            refuse_live([other, run])
        assert refusal.value.hint == f"make it writable: chmod -R u+w {run.root}\nnothing was removed"
        with pytest.raises(OperatorError, match="cannot be removed"):
            remove_run(run)
    assert sorted(run_ids(root)) == sorted([run.id, other.id])
    assert leftovers(root) == []
    checkpoint.chmod(0o700)
    refuse_live([run])
    remove_run(run)
    assert run_ids(root) == [other.id]


def test_a_run_of_a_newer_format_is_shown_and_not_changed(root: Path) -> None:
    run = made_run(root, "later", steps=[10, 20, 30])
    run.run_json.write_text(json.dumps(json.loads(run.run_json.read_text()) | {"format": 99}))
    before = {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()}
    acts: list[Callable[[], object]] = [
        lambda: write_note(run, "mine"),
        lambda: rename(run, "other"),
        lambda: removals(run, uses_in(root)),
    ]
    for act in acts:
        with pytest.raises(OperatorError, match="of a newer Cockpit"):
            act()
    assert {path: path.read_bytes() for path in run.root.rglob("*") if path.is_file()} == before


def test_an_ancestor_of_another_run_is_refused_with_the_name_of_what_was_made_from_it(root: Path) -> None:
    base = made_run(root, "base", steps=(10,))
    merged = made_run(root, "merged", parents=[base.out("train")])
    quantized = made_run(root, "gguf", parents=[merged.out("train")])
    users = users_of([base], root)
    assert users == {base.id: {f"{merged.id}:train", f"{quantized.id}:train"}}
    with pytest.raises(OperatorError, match=rf"{base.id} is an ancestor of .*{merged.id}:train") as caught:
        refuse_used(users)
    assert "--force" in caught.value.hint
    assert users_of([quantized], root) == {}
    assert users_of([base, merged, quantized], root) == {}, "what goes together does not keep itself"


def test_a_checkpoint_that_another_run_continued_makes_its_run_an_ancestor(root: Path) -> None:
    base = made_run(root, "base", steps=(10,))
    other = made_run(root, "next", parents=[base.checkpoint("train", 1, 10)])
    assert users_of([base], root) == {base.id: {f"{other.id}:train"}}


def test_a_run_that_only_names_a_folder_of_another_in_its_recipe_counts_too(root: Path) -> None:
    base = made_run(root, "base")
    waiting = made_run(root, "waiting", finished=False)
    ref = {"origin": "path", "name": "x", "path": str(base.out("train"))}
    waiting.recipe_json.write_text(json.dumps({"inputs": {"train": {"model": ref}}}))
    assert users_of([base], root) == {base.id: {f"{waiting.id}:train"}}


def test_what_a_killed_removal_left_is_no_run_and_is_found(root: Path) -> None:
    run = made_run(root, "a")
    run.root.rename(root / f"{TRASH}{run.id}-0badcafe")
    assert run_ids(root) == []
    assert [folder.name for folder in leftovers(root)] == [f"{TRASH}{run.id}-0badcafe"]


# ---- pruning


def kept_steps(run: RunDir) -> list[int]:
    return sorted(int(path.name.partition("-")[2]) for path in run.checkpoints("train", 1).iterdir())


def prune(root: Path, run: RunDir) -> None:
    uses = uses_in(root)
    remove(run, removals(run, uses), uses)


def test_the_best_the_newest_healthy_and_what_others_use_are_kept(root: Path) -> None:
    run = made_run(root, "a", steps=(10, 20, 30, 40, 50, 60), best=20, unhealthy=(50, 60), resumed_from=30)
    made_run(root, "b", parents=[run.checkpoint("train", 1, 10)])
    [removal] = [item for item in removals(run, uses_in(root)) if item.path.name == "step-50"]
    assert removal.bytes > 1000
    prune(root, run)
    # 10: run b was made from it; 20: the best; 30: an attempt was resumed from it. 40 to 60 lie after that step.
    assert kept_steps(run) == [10, 20, 30]


def test_an_unfinished_training_keeps_the_checkpoint_that_a_resume_would_take(root: Path) -> None:
    run = made_run(root, "a", steps=(10, 20, 30), unhealthy=(30,), finished=False)
    prune(root, run)
    assert kept_steps(run) == [20, 30]


def test_a_finished_training_keeps_its_newest_healthy_checkpoint(root: Path) -> None:
    run = made_run(root, "a", steps=(10, 20, 30), unhealthy=(30,))
    prune(root, run)
    assert kept_steps(run) == [20]


def test_a_replaced_output_goes_unless_another_run_was_made_from_it(root: Path) -> None:
    run = made_run(root, "a")
    first, second = output(run, "train", {}, "out.1"), output(run, "train", {}, "out.2")
    made_run(root, "b", parents=[first])
    prune(root, run)
    assert first.is_dir()
    assert not second.exists()
    assert run.out("train").is_dir()


def test_a_folder_of_checkpoints_that_is_a_link_is_left_alone(root: Path, tmp_path: Path) -> None:
    run = made_run(root, "a", steps=(10, 20, 30))
    elsewhere = tmp_path / "elsewhere"
    run.checkpoints("train", 1).rename(elsewhere)
    run.checkpoints("train", 1).symlink_to(elsewhere)
    prune(root, run)
    assert sorted(path.name for path in elsewhere.iterdir()) == ["step-10", "step-20", "step-30"]


# ---- renaming


def test_a_renamed_run_is_found_by_both_names_and_by_the_paths_and_hashes_that_others_recorded(root: Path) -> None:
    base = made_run(root, "base")
    merged = made_run(root, "merged", parents=[base.out("train")])
    before = base.out("train")
    now = rename(base, "baseline")
    assert now.id == base.id.replace("base", "baseline")
    assert run_ids(root)[:2] != []
    assert find_run(root, now.id).root == now.root
    assert find_run(root, base.id).root == now.root, "the old id still names it"
    assert place_now(before, merged.out("train")) == now.out("train")
    verdicts = {link.name: link.verdict for link in check_descent(merged.out("train"), [root])}
    assert set(verdicts.values()) == {"whole"}, verdicts
    again = rename(now, "third")
    assert place_now(before, merged.out("train")) == again.out("train")


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "x" * 61, "a b", "\x1b[2J"])
def test_a_name_that_cannot_be_part_of_an_id_is_refused(name: str, root: Path) -> None:
    run = made_run(root, "a")
    with pytest.raises(OperatorError, match="allowed: 1 to 60 letters"):
        rename(run, name)


def test_a_taken_name_is_refused(root: Path) -> None:
    run, other = made_run(root, "a"), made_run(root, "b")
    stamp = other.id[: len("20261120-2130-")]
    if run.id.startswith(stamp):
        with pytest.raises(OperatorError, match="exists"):
            rename(run, "b")
    with pytest.raises(OperatorError, match="already has this name"):
        rename(run, "a")


# ---- notes


def test_a_note_is_one_line_bounded_and_shown_by_lists(root: Path) -> None:
    run = made_run(root, "a")
    watch = RunWatch(root)
    assert watch.poll()[0].note == ""
    write_note(run, "first\nline \x1b]52;c;aGk=\x07 and \u202e more")
    watch.look_again()
    [summary] = watch.poll()
    assert summary.note.startswith("first line")
    assert all(char.isprintable() for char in summary.note)
    with pytest.raises(OperatorError, match="at most 500"):
        write_note(run, "x" * 501)
    assert run.read_note().startswith("first")
    write_note(run, "")
    assert not run.note.exists()


@pytest.mark.parametrize("kind", ["fifo", "folder", "huge", "link"])
def test_a_hostile_note_is_empty_and_blocks_nothing(kind: str, root: Path) -> None:
    run = made_run(root, "a")
    match kind:
        case "fifo":
            os.mkfifo(run.note)
        case "folder":
            run.note.mkdir()
        case "huge":
            run.note.write_bytes(b"x" * 1_000_000)
        case "link":
            run.note.symlink_to("/dev/zero")
    assert run.read_note() == ""
