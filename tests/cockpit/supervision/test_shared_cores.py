"""Engines that share cores: how their threads wait, how many others run, and what a launch says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.supervision import engine_process
from cockpit.supervision.engine_process import engine_environment, engine_threads
from cockpit.supervision.shared_cores import other_engines, sharing_words, thread_waits
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from recipes.stages.registry import STAGE_TYPES
from tests.runs.harness import events, fake_recipe, launch_text, nothing_left, wait_for, wait_for_step

STAGES: dict[str, dict[str, Any]] = {
    "finetune": {"name": "tuned", "kind": "finetune", "model": "base", "data": "rows", "max_steps": 1},
    "evaluate": {"name": "held-out", "kind": "evaluate", "model": "base", "data": "tokens"},
}


def test_engines_of_other_runs_are_counted_and_the_launch_and_the_log_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")  # more than any machine has cores, so that two engines share them
    with nothing_left(tmp_path / "runs"):
        first = launch_text(fake_recipe({"max_steps": 100_000, "step_s": 0.05}), tmp_path)
        wait_for_step(first)
        elsewhere = RunDir(tmp_path / "elsewhere")
        wait_for(lambda: other_engines(elsewhere) - other_engines(first) == 1, "the first run's engine to be counted")
        recipe = tmp_path / "third.toml"
        recipe.write_text(fake_recipe({"max_steps": 1, "step_s": 0.0}))
        assert main(["run", str(recipe), "--detach", "--runs-dir", str(tmp_path / "runs")]) == 0
        assert "on this machine: they share its" in capsys.readouterr().err
        second = launch_text(fake_recipe({"max_steps": 3, "step_s": 0.0}), tmp_path)
        wait_for_step(second)
        said = [e.message for e in events(second) if isinstance(e, Warned)]
        assert any("on this machine: they share its" in message for message in said)


def test_nothing_is_said_while_there_are_cores_for_all() -> None:
    assert sharing_words(0, 2, 2) == ""
    assert sharing_words(3, 8, 2) == ""
    assert sharing_words(1, 2, 2).startswith("1 other engine runs on this machine: they share its 2 cores")
    assert sharing_words(4, 2, 1).startswith("4 other engines run")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    with nothing_left(tmp_path / "runs"):
        made = launch_text(fake_recipe({"max_steps": 1, "step_s": 0.0}, {"threads": 3, "max_steps": 1}), tmp_path)
        wait_for_step(made, stage="part-2")
        return made


def test_threads_that_wait_do_not_spin_and_the_operator_s_setting_has_priority(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = RunRecipe.read(run)
    first, second = plan.stage("part-1"), plan.stage("part-2")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert engine_environment(run, first)["OMP_WAIT_POLICY"] == "PASSIVE"
    assert (engine_threads(first), engine_threads(second)) == (2, 3)
    assert engine_environment(run, second)["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert engine_environment(run, first)["OMP_WAIT_POLICY"] == "ACTIVE"
    assert "GOMP_SPINCOUNT" not in engine_environment(run, first)


def test_threads_spin_briefly_where_no_other_engine_runs_and_sleep_at_once_beside_one() -> None:
    assert thread_waits({}, 0) == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    assert thread_waits({}, 1) == {"OMP_WAIT_POLICY": "PASSIVE"}
    assert thread_waits({"GOMP_SPINCOUNT": "5"}, 0) == {}
    assert thread_waits({"OMP_WAIT_POLICY": "ACTIVE"}, 0) == {}


def test_torch_s_allocator_joins_its_pieces_unless_the_operator_has_set_it(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, names = RunRecipe.read(run).stage("part-1"), ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert engine_environment(run, stage)[names[0]] == "expandable_segments:True"
    monkeypatch.setenv(names[1], "max_split_size_mb:128")
    assert names[0] not in engine_environment(run, stage)


def test_a_training_on_a_processor_keeps_what_it_frees_and_the_operator_s_setting_has_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained, other = (STAGE_TYPES[kind].model_validate(fields) for kind, fields in STAGES.items())
    monkeypatch.setattr(engine_process, "DRIVER", tmp_path / "no-driver")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    run = RunDir(tmp_path)
    assert "GLIBC_TUNABLES" not in engine_environment(run, other)
    kept = dict(part.split("=") for part in engine_environment(run, trained)["GLIBC_TUNABLES"].split(":"))
    assert kept["glibc.malloc.hugetlb"] == "1"
    assert int(kept["glibc.malloc.trim_threshold"]) > 1 << 36
    monkeypatch.setattr(engine_process, "DRIVER", tmp_path)
    assert "GLIBC_TUNABLES" not in engine_environment(run, trained), "the buffers of a training on a GPU lie on the GPU"
    monkeypatch.setattr(engine_process, "DRIVER", tmp_path / "no-driver")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    assert engine_environment(run, trained)["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"
