"""`rm`, `du`, `prune`, `note` and `mv` as an operator uses them: what they print, ask and refuse."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from cockpit.cli import main
from cockpit.runs.find import run_ids
from engines.run_dir.paths import RunDir
from engines.words import ExitCode
from tests.cockpit.keeping.finished_runs import made_run


class Command:
    """Commands on one folder of runs, without a terminal."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[ExitCode, str, str]:
        code = main([*words, "--runs-dir", str(self.root)])
        out, err = self._capsys.readouterr()
        return code, out, err


@pytest.fixture
def cockpit(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return Command(tmp_path / "runs", capsys)


@pytest.fixture
def run(cockpit: Command) -> RunDir:
    return made_run(cockpit.root, "a", steps=(10, 20, 30))


def test_rm_without_a_terminal_asks_for_yes_and_removes_nothing(cockpit: Command, run: RunDir) -> None:
    code, _, err = cockpit("rm", run.id)
    assert code == ExitCode.MISTAKE
    assert "--yes" in err
    assert "checkpoints" in err, "what goes is listed with its size"
    assert run.run_json.is_file()
    code, out, _ = cockpit("rm", run.id, "--yes")
    assert (code, run_ids(cockpit.root)) == (ExitCode.DONE, [])
    assert f"removed {run.id}" in out


def test_rm_of_several_runs_removes_none_if_one_is_live_and_does_not_ask(cockpit: Command, run: RunDir) -> None:
    live = made_run(cockpit.root, "b", steps=(10,))
    lines = (
        "import fcntl, sys",
        f"lock = open({str(live.supervisor_lock)!r}, 'w')",
        "fcntl.flock(lock, fcntl.LOCK_EX)",
        "print('held', flush=True)",
        "sys.stdin.read()",
    )
    with subprocess.Popen(
        [sys.executable, "-c", "\n".join(lines)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        for words in ((run.id, live.id, "--yes"), (run.id, live.id, "--yes", "--force"), (run.id, live.id)):
            code, out, err = cockpit("rm", *words)
            assert (code, out) == (ExitCode.MISTAKE, "")
            assert f"{live.id} is running" in err
            assert "nothing was removed" in err
            assert "remove 2 runs" not in err
    assert sorted(run_ids(cockpit.root)) == sorted([run.id, live.id])


def test_rm_refuses_last_and_an_ancestor_and_removes_it_with_force(cockpit: Command, run: RunDir) -> None:
    other = made_run(cockpit.root, "b", parents=[run.out("train")])
    assert cockpit("rm", "last", "--yes")[0] == ExitCode.MISTAKE
    code, _, err = cockpit("rm", run.id, "--yes")
    assert code == ExitCode.MISTAKE
    assert f"{other.id}:train" in err
    assert cockpit("rm", run.id, "--yes", "--force")[0] == ExitCode.DONE
    assert run_ids(cockpit.root) == [other.id]


def test_du_lists_runs_by_size_and_gives_bytes_as_json(cockpit: Command, run: RunDir) -> None:
    small = made_run(cockpit.root, "b")
    _, out, _ = cockpit("du")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[-3:]] == [run.id, small.id, "total"]
    _, out, _ = cockpit("du", run.id, "--json")
    [row] = json.loads(out)["runs"]
    assert row["checkpoints_bytes"] > 3000
    assert row["total_bytes"] == sum(v for k, v in row.items() if k.endswith("_bytes") and k != "total_bytes")


def test_prune_lists_first_and_show_then_says_which_checkpoints_are_gone(cockpit: Command, run: RunDir) -> None:
    code, out, _ = cockpit("prune", "--dry-run")
    assert code == ExitCode.DONE
    assert "step-10" in out
    assert "2 folders" in out
    assert run.checkpoint("train", 1, 10).is_dir()
    assert cockpit("prune")[0] == ExitCode.MISTAKE, "no terminal to ask on"
    assert cockpit("prune", "--yes")[0] == ExitCode.DONE
    assert not run.checkpoint("train", 1, 10).exists()
    assert "checkpoints of train: 30 (removed: 10, 20)" in cockpit("show", run.id)[1]
    shown = json.loads(cockpit("show", run.id, "--json")[1])
    assert [c["exists"] for c in shown["stages"][0]["checkpoints"]] == [False, False, True]
    assert "nothing to remove" in cockpit("prune", "--yes")[1]


def test_a_note_is_written_printed_and_listed(cockpit: Command, run: RunDir) -> None:
    assert cockpit("note", run.id, "baseline\tfor the paper")[0] == ExitCode.DONE
    assert cockpit("note", run.id)[1] == "baseline for the paper\n"
    assert "baseline for the paper" in cockpit("ls")[1]
    assert "note: baseline for the paper" in cockpit("show", run.id)[1]
    assert json.loads(cockpit("show", run.id, "--json")[1])["note"] == "baseline for the paper"


def test_mv_prints_the_new_id(cockpit: Command, run: RunDir) -> None:
    code, out, _ = cockpit("mv", run.id, "baseline")
    assert code == ExitCode.DONE
    assert run_ids(cockpit.root) == [out.strip()]
    assert out.strip().endswith("-baseline")
    assert cockpit("show", run.id)[0] == ExitCode.DONE, "the old id is found"


def test_one_bad_run_does_not_keep_the_others_from_being_pruned(cockpit: Command, run: RunDir) -> None:
    bad = made_run(cockpit.root, "b", steps=(10, 20))
    bad.journal.unlink()
    bad.journal.mkdir()
    (bad.checkpoint("train", 1, 10) / "manifest.json").write_text("[" * 100_000)
    code, out, _ = cockpit("prune", "--yes")
    assert code == ExitCode.DONE
    assert "removed" in out
    assert not run.checkpoint("train", 1, 10).exists()
    assert cockpit("du")[0] == ExitCode.DONE
