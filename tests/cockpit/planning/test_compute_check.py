"""A recipe that runs code of answers is refused at its line on a machine that cannot confine it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.planning.compute_check import compute_problems
from cockpit.planning.memory_check import Memory
from engines.judging.sandbox.sandbox import Sandbox
from recipes.load import LoadedRecipe, load_recipe


def recipe(tmp_path: Path, allowed: str) -> LoadedRecipe:
    for name in "mdt":
        (tmp_path / name).mkdir(exist_ok=True)
    path = tmp_path / "r.toml"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "e"\nkind = "evaluate"\nmodel = "./m"\ndata = "./d"\n'
        f'test_data = "./t"\nallow_code_execution = {allowed}\n'
    )
    return load_recipe(path)


def test_a_machine_without_a_sandbox_refuses_code_of_answers_at_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compute_problems(recipe(tmp_path, "true")) == []
    monkeypatch.setattr(Sandbox, "why_not", lambda _self: "no user namespaces")
    assert compute_problems(recipe(tmp_path, "false")) == []
    (problem,) = compute_problems(recipe(tmp_path, "true"))
    assert (problem.line, problem.message) == (9, "no user namespaces")


def test_more_processes_than_gpus_are_refused_where_there_are_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "t").mkdir()
    path = tmp_path / "r.toml"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "p"\nkind = "pretrain"\ndata = "./t"\nhidden_size = 64\n'
        "intermediate_size = 64\nnum_hidden_layers = 1\nnum_attention_heads = 2\nnum_key_value_heads = 2\n"
        '[stage.launch]\nprocesses = 4\nstrategy = "ddp"\n'
    )
    loaded = load_recipe(path)
    assert compute_problems(loaded) == [], "processes of a processor share its cores"
    monkeypatch.setattr("cockpit.planning.compute_check.nvidia_gpus", lambda: 2)
    (problem,) = compute_problems(loaded)
    assert (problem.line, problem.key) == (13, "p.launch.processes")
    assert problem.message == "each process needs a GPU of its own; got 4 processes for 2"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "j"\nkind = "evaluate"\nmodel = "org/m"\ndata = "./t"\n'
        '[stage.launch]\nprocesses = 4\nstrategy = "ddp"\n'
    )
    (problem,) = compute_problems(load_recipe(path))
    assert problem.key == "j.launch.processes"


def test_processes_whose_own_memory_exceeds_that_of_the_machine_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "md":
        (tmp_path / name).mkdir()
    path = tmp_path / "r.toml"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "e"\nkind = "evaluate"\nmodel = "./m"\ndata = "./d"\n'
        '[stage.launch]\nprocesses = 99\nstrategy = "ddp"\n'
    )
    loaded = load_recipe(path)
    has = {"bytes": 64 << 30}
    monkeypatch.setattr(Memory, "here", lambda: None if not has["bytes"] else Memory(has["bytes"], 0))
    assert compute_problems(loaded) == [], "memory that is not free may become free"
    has["bytes"] = 16 << 30
    (problem,) = compute_problems(loaded)
    assert (problem.line, problem.key) == (9, "e.launch.processes")
    assert problem.message == "99 processes take at least 29.0 GiB for themselves; this machine has 16 GiB"
    assert problem.hint == "set launch.processes to at most 54; processes on a CPU share its cores"
    has["bytes"] = 0
    assert compute_problems(loaded) == [], "with a GPU, other memory counts"
