"""Two launches that train together: one run with the results, one that says where they are.

Both are on this machine, as on two hosts: each has its own folder of runs, and they meet at a port.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from cockpit.launching.launch import launch
from engines.events.attempts import AttemptEnded, RankReport, RanksPlaced
from engines.events.steps import Step
from engines.journal import read_journal
from engines.run_dir.paths import RunDir
from recipes.load import load_recipe_text
from tests.runs.harness import assert_no_process_left, events, fake_recipe, nothing_left, wait_for_end

pytestmark = pytest.mark.torch


def free_port() -> int:
    """A port that nobody has, below those that the system gives to whoever asks for any: it is taken seconds later."""
    begin = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    count = min(begin, 32_768) - 20_000
    for place in range(count) if count > 0 else ():
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", 20_000 + (os.getpid() + place) % count))
            return int(probe.getsockname()[1])
    pytest.skip("this system gives all its ports to whoever asks for any")


def launched(folder: Path, table: dict[str, object], steps: int = 4) -> RunDir:
    folder.mkdir()
    text = fake_recipe({"max_steps": steps, "step_s": 0.0, "launch": table})
    return launch(load_recipe_text(text, folder / "recipe.toml"), runs_root=folder / "runs")


def test_two_hosts_make_one_run_and_the_other_one_names_it(tmp_path: Path) -> None:
    table: dict[str, object] = {"nodes": 2, "strategy": "ddp", "rendezvous": f"127.0.0.1:{free_port()}"}
    folders = [tmp_path / name for name in ("a", "b")]
    with nothing_left(*(folder / "runs" for folder in folders)):
        runs = [launched(folder, table) for folder in folders]
        states = {wait_for_end(run): run for run in runs}
        assert set(states) == {"succeeded", "stopped"}
        first, other = states["succeeded"], states["stopped"]
        assert [e.step for e in events(first) if isinstance(e, Step)] == [1, 2, 3, 4]
        assert not [e for e in events(other) if isinstance(e, Step)]
        (end,) = [e for e in events(other) if isinstance(e, AttemptEnded)]
        assert end.detail.startswith("rank 0 is on host ")
        assert end.detail.endswith(f"its run {first.id} has the results")
        own = list(read_journal(other.rank_journal("part-1", 1, 1)))
        assert [e.run for e in own if isinstance(e, RanksPlaced)] == [first.id]
        assert [e for e in own if isinstance(e, RankReport)]
        for run in runs:
            assert_no_process_left(run)


def test_a_port_that_another_program_has_is_named(tmp_path: Path) -> None:
    with socket.socket() as other, nothing_left(tmp_path / "a" / "runs"):
        other.bind(("127.0.0.1", 0))
        other.listen()
        place = f"127.0.0.1:{other.getsockname()[1]}"
        run = launched(tmp_path / "a", {"processes": 2, "strategy": "ddp", "rendezvous": place})
        assert wait_for_end(run) == "failed"
    (end,) = [e for e in events(run) if isinstance(e, AttemptEnded)]
    assert f"cannot listen at {place}: Address already in use" in end.detail
