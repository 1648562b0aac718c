"""The texts around a form's rows say what is known of its recipe."""

from pathlib import Path

from cockpit.planning.stages import plan
from cockpit.tui.screens.form_text import NO_ESTIMATE, cost
from recipes.load import load_recipe_text

CORPUS = """schema = 1
name = "r"
[[stage]]
name = "corpus"
kind = "prepare"
output = "text"
source = "python-stdlib"
"""


def test_a_recipe_without_steps_is_not_said_to_have_problems(tmp_path: Path) -> None:
    loaded = load_recipe_text(CORPUS, tmp_path / "r.toml")
    assert cost(plan(loaded.recipe, loaded.graph, {})) == "no stage has steps to estimate"
    assert cost(None) == NO_ESTIMATE
