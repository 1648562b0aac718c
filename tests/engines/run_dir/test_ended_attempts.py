"""What an attempt that has ended left of unfinished files is removed by the next one, and nothing else."""

from __future__ import annotations

from pathlib import Path

from engines.run_dir.ended_attempts import remove_scratch
from engines.run_dir.locks import Lock
from engines.run_dir.paths import PARTS, RunDir, engine_lock_of, rank_lock_of

STAGE = "base"


def attempt(run: RunDir, number: int) -> Path:
    """An attempt of two processes that has written everything an attempt may write."""
    folder = run.attempt_dir(STAGE, number)
    for name in ("out.tmp", "out.tmp.rank1", "work/spool", "work.rank1", f"work/{PARTS}", "checkpoints/step-2"):
        (folder / name).mkdir(parents=True)
    for name in (
        "out.tmp/model.safetensors", "out.tmp.rank1/x", "work/spool/rows", "work/notes", "work.rank1/x",
        f"work/{PARTS}/train-000000.bin", f"work/{PARTS}/train-000001.bin.tmp", "console.log", "workers.txt",
        "checkpoints/step-2/manifest.json",
    ):  # fmt: skip
        (folder / name).write_text("x")
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_an_ended_attempt_keeps_finished_parts_checkpoints_and_logs(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first, present = attempt(run, 1), attempt(run, 2)
    everything = files(present)
    remove_scratch(run, STAGE, 2)
    kept = {f"work/{PARTS}/train-000000.bin", "console.log", "workers.txt", "checkpoints/step-2/manifest.json"}
    assert files(first) == kept
    assert not (first / "out.tmp").exists()
    assert files(present) == everything


def test_an_attempt_of_which_a_process_lives_is_left_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for number, lock_of in enumerate((engine_lock_of, lambda folder: rank_lock_of(folder, 1)), 1):
        folder = attempt(run, number)
        everything = files(folder)
        lock = Lock(lock_of(folder))
        assert lock.acquire({})
        remove_scratch(run, STAGE, 3)
        assert everything <= files(folder)
        lock.release()
        remove_scratch(run, STAGE, 3)
        assert not everything <= files(folder)


def test_a_link_in_place_of_a_scratch_folder_leads_to_no_removal(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("x")
    folder = run.attempt_dir(STAGE, 1)
    (folder / "work").mkdir(parents=True)
    (folder / "work" / PARTS).symlink_to(elsewhere)
    (folder / "out.tmp").symlink_to(elsewhere)
    (elsewhere / "part.tmp").write_text("x")
    remove_scratch(run, STAGE, 2)
    assert files(elsewhere) == {"file", "part.tmp"}
