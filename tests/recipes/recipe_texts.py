"""Recipes that the tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from recipes.load import load_recipe_text
from recipes.problems import Problem, RecipeError

SOUND = """\
schema = 1            # the format
name = "sound"

[defaults.finetune]
learning_rate = 1e-4  # for all
retry = { max_attempts = 3, learning_rate_factor = 0.25 }
target_modules = ["q_proj", "v_proj"]

[defaults.prepare]
seed = 7

[[stage]]
name = "tuned"        # comes first in the file, last in the graph
kind = "finetune"
model = "org/name"
data = "questions"
lora_alpha = 3.2e1
retry.max_attempts = 2

[[stage]]
name = "corpus"
kind = "prepare"
output = "text"
source = "python-stdlib"

[[stage]]
name = "questions"
kind = "prepare"
output = "messages"
data = "corpus"
  [stage.retry]
  max_attempts = 2

[[stage]]
name = "second-tuned"
kind = "finetune"
model = "org/name"
data = "questions"
learning_rate = 2e-4
target_modules = ["k_proj"]

[[stage.gate]]
metric = "loss"
op = "<"
value = 3.0
"""

FAKE = 'schema = 1\nname = "x"\n\n[[stage]]\nname = "one"\nkind = "fake"\n'


def problems_of(text: str, path: Path, sets: Sequence[str] = ()) -> list[Problem]:
    """The problems of a recipe; none for a valid one."""
    try:
        load_recipe_text(text, path, sets)
    except RecipeError as error:
        return error.problems
    return []


def found(text: str, *sets: str) -> dict[tuple[int, str], Problem]:
    """The problems of a text, by line and key."""
    return {(problem.line, problem.key): problem for problem in problems_of(text, Path("/nowhere/r.toml"), sets)}
