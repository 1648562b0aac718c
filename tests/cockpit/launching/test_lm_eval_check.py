"""Whether lm_eval is there is asked before anything runs, and the answer stands at the line of the recipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cockpit.launching.lm_eval_check import lm_eval_problems, require_lm_eval
from recipes.load import load_recipe
from recipes.problems import OperatorError

RECIPE = """
schema = 1
name = "r"
[[stage]]
name = "judge"
kind = "evaluate"
model = "/m"
data = "/d"
lm_eval_tasks = ["local_cty", "mmlu"]
lm_eval_python = {python}
"""


def interpreter(folder: Path, answer: dict[str, Any] | None) -> str:
    """A program that is started like Python and answers so; None for one that fails."""
    path = folder / "python"
    says = "sys.exit('Illegal instruction')" if answer is None else f"print({json.dumps(answer)!r})"
    path.write_text(
        f"#!{sys.executable}\nimport sys\nopen({str(folder / 'asked')!r}, 'a').write(sys.argv[3])\n{says}\n"
    )
    path.chmod(0o755)
    return str(path)


def problems(folder: Path, python: str) -> list[str]:
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(python=json.dumps(python)))
    return [str(one).removeprefix(f"{file}:") for one in lm_eval_problems(load_recipe(file, paths_here=False))]


def test_each_task_that_it_does_not_have_is_named_with_the_nearest(tmp_path: Path) -> None:
    answer = {"version": "0.4.13", "unknown": ["local_cty"], "known": ["local_city", "mmlu"]}
    (found,) = problems(tmp_path, interpreter(tmp_path, answer))
    assert found.startswith("9  judge.lm_eval_tasks — lm_eval 0.4.13 has no such task; got 'local_cty'")
    assert "local_city" in found
    assert json.loads((tmp_path / "asked").read_text())["tasks"] == ["local_cty", "mmlu"]


def test_an_environment_that_has_everything_has_no_problem(tmp_path: Path) -> None:
    assert problems(tmp_path, interpreter(tmp_path, {"version": "0.4.13", "unknown": []})) == []


def test_where_it_is_missing_or_fails_the_check_and_the_launch_say_what_to_do(tmp_path: Path) -> None:
    for python, words in (
        (sys.executable, "lm_eval is not installed in"),
        (interpreter(tmp_path, {"version": "0.4.13", "lacks": "torch"}), "lm_eval 0.4.13 needs torch in"),
        (str(tmp_path / "nothing"), "lm_eval does not start in"),
    ):
        (found,) = problems(tmp_path, python)
        assert words in found
        assert "set lm_eval_python to ENVIRONMENT/bin/python" in found
        loaded = load_recipe(tmp_path / "recipe.toml", paths_here=False)
        with pytest.raises(OperatorError, match=words):
            require_lm_eval(loaded, ["judge"])
        require_lm_eval(loaded, ["another"])
    assert "Illegal instruction" in problems(tmp_path, interpreter(tmp_path, None))[0]
