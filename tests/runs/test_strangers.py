"""A stranger's run folder in more than forty variants: nothing of it is started, signalled or waited for, looking at it
changes nothing in it, and it takes no other run out of a list. The variants are in `tests/strangers.py`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cockpit.cli import main
from cockpit.launching.adoption import FOLLOWER
from cockpit.launching.launch import resume
from cockpit.launching.start import start_supervisor
from cockpit.runs.watch import RunWatch
from engines.run_dir.paths import RunDirError
from engines.words import StartReason
from recipes.problems import OperatorError
from tests.cockpit.runs.journaled_runs import a_run, write_journal
from tests.runs.harness import fake_recipe, nothing_left
from tests.strangers import VARIANTS, Canary, contents, stranger, strangers, untouched_canary

LOOKS = (("show",), ("show", "--json"), ("replay", "--plain"), ("attach", "--plain"), ("attach", "--json"), ("verify",))
ACTS = (("stop",), ("stop", "--now"), ("resume",), ("resume", "--stage", "base"), ("trust",))


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with Path(os.devnull).open() as null:
        monkeypatch.setattr("sys.stdin", null)
        yield


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canary]:
    with untouched_canary(tmp_path_factory.mktemp("canary")) as canary:
        yield canary


def test_there_are_at_least_forty_variants() -> None:
    assert len(VARIANTS) >= 40


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_of_a_stranger_s_run_is_started_signalled_or_changed_by_any_command(
    tmp_path: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch, variant: str
) -> None:
    monkeypatch.setattr("cockpit.headless.follow.FOLLOWER", replace(FOLLOWER, every_s=0.0))
    run = stranger(tmp_path, variant, canary)
    VARIANTS[variant](run, canary)
    before = contents(run.root)
    for words in (*LOOKS, *ACTS):
        command, *options = words
        assert main([command, str(run.root), *options, "--runs-dir", str(tmp_path)]) in {0, 1, 2, 3}
        assert contents(run.root) == before, f"{' '.join(words)} changed the folder"
    for act in (lambda: resume(run), lambda: start_supervisor(run, StartReason.ADOPT)):
        with pytest.raises((OperatorError, RunDirError)):
            act()
    assert contents(run.root) == before
    assert not canary.trace.exists()


def test_lists_have_a_row_for_every_stranger_and_every_other_run(
    tmp_path: Path, canary: Canary, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = a_run(tmp_path, "mine")
    write_journal(mine)
    made = dict(strangers(tmp_path, canary))
    (tmp_path / "a-loop").symlink_to("a-loop")
    (tmp_path / "a-file").write_text("")
    (tmp_path / os.fsdecode(b"not-utf-8-\xe9")).mkdir()
    os.mkfifo(tmp_path / "a-pipe")
    shutil.copytree(mine.root, tmp_path / os.fsdecode(b"20990101-0000-\xe9\x1b[31m"), ignore=_pipes)
    ids = {run.id for run in made.values()} | {mine.id}
    summaries = {summary.id: summary for summary in RunWatch(tmp_path).poll()}
    assert ids <= set(summaries)
    assert summaries[mine.id].state == "succeeded"
    unreadable = {variant for variant, run in made.items() if summaries[run.id].state == "unreadable"}
    assert {"run-json-device", "run-json-pipe"} <= unreadable
    assert all(summaries[made[variant].id].reason for variant in unreadable)
    capsys.readouterr()
    assert main(["ls", "--runs-dir", str(tmp_path)]) == 0
    output = capsys.readouterr().out
    assert all(run_id in output for run_id in ids)
    assert "not a regular file" in output
    assert main(["ls", "--json", "--runs-dir", str(tmp_path)]) == 0


def test_a_stranger_s_forged_end_is_not_believed_when_its_types_are_wrong(tmp_path: Path, canary: Canary) -> None:
    for variant in ("exit-forged", "exit-forged-types"):
        run = stranger(tmp_path, variant, canary)
        VARIANTS[variant](run, canary)
        assert RunWatch(tmp_path).poll()[0].state == "lost"


def test_a_folder_of_runs_that_cannot_be_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").write_text("a file")
    for command in (["ls"], ["show", "last"]):
        assert main([*command, "--runs-dir", str(tmp_path / "runs")]) == 2
        assert f"{tmp_path / 'runs'} cannot be read: Not a directory" in capsys.readouterr().err
    assert main(["ls", "--runs-dir", str(tmp_path / "none")]) == 0
    assert "no runs in" in capsys.readouterr().out


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_fifo()]


def test_a_run_in_a_folder_whose_name_is_not_utf_8_succeeds_and_is_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(fake_recipe({"max_steps": 2, "step_s": 0.0}))
    with nothing_left(folder):
        assert main(["run", str(recipe), "--runs-dir", str(folder)]) == 0
    assert main(["ls", "--runs-dir", str(folder)]) == 0
    assert "succeeded" in capsys.readouterr().out
