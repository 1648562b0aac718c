"""A name in a recipe is never a path: it names folders of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.launching.launch import launch, resume
from recipes.load import load_recipe_text
from recipes.problems import OperatorError
from recipes.spelling import spell
from tests.recipes.recipe_texts import problems_of
from tests.runs.harness import fake_recipe, launch_text, nothing_left, wait_for_end

HERE = Path("/nowhere/r.toml")
NAMES = [
    "", ".", "..", "../up", "../../etc/passwd", "/etc/passwd", "a/b", "a\\b", "~", "~root", "$HOME", "${HOME}", "`id`",
    "$(id)", "a;id", "a|id", "a&id", "a b", "a\nb", "a\0b", "a\x1b[2J", "\u202egpj", "CON", "a" * 41, "A",
    "é", "a.", ".hidden", "out.1/../../x", "%2e%2e", "*", "?", "[a]", "'", '"', "a\tb", "step-1/..", "\ud7ff\u0301",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_could_be_a_path_or_a_command_is_refused_at_its_line(name: str) -> None:
    text = "'''\"'''" if name == '"' else spell(name)
    whole = f'schema = 1\nname = {text}\n[[stage]]\nname = "a"\nkind = "fake"\n'
    stage = f'schema = 1\nname = "x"\n[[stage]]\nname = {text}\nkind = "fake"\n'
    assert {problem.line for problem in problems_of(whole, HERE)} == {2}
    assert {problem.line for problem in problems_of(stage, HERE)} == {4}


@pytest.mark.parametrize("name", ["../up", "/tmp/x", "a/b", ".", "..", "-rf", "", "a b", "a\nb", "a" * 61, "\u202ex"])
def test_the_name_of_a_run_is_never_a_path(tmp_path: Path, name: str) -> None:
    loaded = load_recipe_text(fake_recipe({"max_steps": 1}), tmp_path / "r.toml")
    with pytest.raises(OperatorError, match="--name — got"):
        launch(loaded, runs_root=tmp_path / "runs", name=name)
    assert not (tmp_path / "runs").exists()


def test_a_stage_whose_name_looks_like_an_option_is_run_and_rerun(tmp_path: Path) -> None:
    stages = [{"name": name, "max_steps": 2, "step_s": 0.0} for name in ("--help", "-c")]
    with nothing_left(tmp_path / "runs"):
        run = launch_text(fake_recipe(*stages), tmp_path, only=["--help"])
        assert wait_for_end(run) == "succeeded"
        resume(run, stage="-c")
        assert wait_for_end(run) == "succeeded"
        assert (run.attempts("--help"), run.attempts("-c")) == ([1], [1])
        resume(run, stage="--help", checkpoint=2)
        assert wait_for_end(run) == "succeeded"
        assert run.attempts("--help") == [1, 2]
