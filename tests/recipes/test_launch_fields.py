"""The table `[stage.launch]`: what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.fingerprint import fingerprint
from recipes.load import load_recipe_text
from recipes.problems import RecipeError
from recipes.stages.launch.fields import Launch

TWO: dict[str, Any] = {"processes": 2, "strategy": "ddp"}
ABLE = ("single", "ddp")


def problems(**fields: Any) -> str:
    return "\n".join(Launch(**fields).problems(ABLE, "fake"))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"processes": 2}, "launch.strategy — 2 processes need a strategy; got single; allowed: ddp"),
        ({"strategy": "ddp"}, "launch.strategy — one process shares nothing; got ddp"),
        ({"processes": 2, "strategy": "fsdp2"}, "launch.strategy — the engine of fake does not have it; got fsdp2"),
        ({"nodes": 2, "strategy": "ddp"}, "launch.rendezvous — needed for several hosts"),
        ({**TWO, "rendezvous": "here"}, "launch.rendezvous — not an address with a port"),
        ({**TWO, "rendezvous": "h:70000"}, "a port up to 65535"),
        ({"rendezvous": "h:7000"}, "launch.rendezvous — one process meets no other"),
    ],
)
def test_a_launch_that_cannot_be_is_refused(fields: dict[str, Any], words: str) -> None:
    assert words in problems(**fields)


def test_a_strategy_that_a_stage_does_not_have_is_refused_at_its_line() -> None:
    text = 'schema = 1\nname = "x"\n\n[[stage]]\nname = "a"\nkind = "fake"\n\n[stage.launch]\nstrategy = "fsdp2"\n'
    with pytest.raises(RecipeError) as refused:
        load_recipe_text(text, Path("r.toml"))
    assert "r.toml:9  a.launch.strategy" in str(refused.value.problems[0])


def test_ternary_layers_are_not_divided(tmp_path: Path) -> None:
    """The check refuses it, and not the engine after the stages before it have run."""
    shape = "hidden_size = 64\nintermediate_size = 128\nnum_hidden_layers = 2\nnum_attention_heads = 2\n"
    stage = (
        f'[[stage]]\nname = "a"\nkind = "pretrain"\ndata = "./t"\nlinear = "ternary"\n{shape}num_key_value_heads = 2\n'
    )
    text = f'schema = 1\nname = "x"\n\n{stage}\n[stage.launch]\nprocesses = 2\nstrategy = "fsdp2"\n'
    with pytest.raises(RecipeError) as refused:
        load_recipe_text(text, tmp_path / "r.toml")
    assert "a.linear — ternary layers need whole matrices" in " ".join(map(str, refused.value.problems))


def test_two_processes_of_a_strategy_that_the_engine_has_are_accepted() -> None:
    assert problems(**TWO) == ""
    assert (Launch(**TWO).world_size, Launch(**TWO).words) == (2, "2 processes, ddp")


@pytest.mark.parametrize("rendezvous", ["node-0:29400", "10.0.0.1:1", "[fe80::1%eth0]:29400", "h:65535"])
def test_a_rendezvous_is_a_name_or_an_address_with_a_port(rendezvous: str) -> None:
    launch = Launch(processes=2, nodes=2, strategy="ddp", rendezvous=rendezvous)
    assert not list(launch.problems(ABLE, "fake"))
    assert launch.words == "4 processes on 2 hosts, ddp"


def test_where_processes_meet_is_not_part_of_a_fingerprint() -> None:
    stage = {"kind": "pretrain", "launch": Launch(processes=2, strategy="ddp").model_dump()}
    moved = {**stage, "launch": {**stage["launch"], "rendezvous": "h:1"}}  # type: ignore[dict-item]
    alone = {"kind": "pretrain", "launch": Launch().model_dump()}
    assert fingerprint(stage, []) == fingerprint(moved, [])
    assert fingerprint(alone, []) == fingerprint({"kind": "pretrain"}, [])
    assert fingerprint(alone, []) != fingerprint(stage, [])


@pytest.mark.parametrize(
    ("launcher", "says"),
    [
        (["docker", "image"], "launch.launcher — docker needs run and an image"),
        (["docker", "run"], "launch.launcher — docker needs run and an image"),
        (["/usr/bin/apptainer", "run", "image"], "launch.launcher — apptainer needs exec and an image"),
        (["./wrap", "a"], "launch.launcher — the program is neither a name nor a whole path"),
        (["numactl", ""], "launch.launcher — not a word of a command"),
        (["numactl", "a\0b"], "launch.launcher — not a word of a command"),
    ],
)
def test_a_launcher_that_cannot_start_an_engine_is_refused(launcher: list[str], says: str) -> None:
    (problem,) = Launch(launcher=launcher).problems(ABLE, "fake")
    assert problem.startswith(says)


def test_a_launcher_is_not_part_of_a_fingerprint() -> None:
    alone = {"kind": "pretrain", "launch": Launch().model_dump()}
    launched = {"kind": "pretrain", "launch": Launch(launcher=["docker", "run", "image"]).model_dump()}
    assert fingerprint(launched, []) == fingerprint(alone, []) == fingerprint({"kind": "pretrain"}, [])
