"""A field that is a name or a file: `chat_template`."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.load import load_recipe_text
from tests.recipes.recipe_texts import problems_of

RECIPE = (
    'schema = 1\nname = "x"\n[[stage]]\nname = "a"\nkind = "finetune"\nmodel = "org/m"\ndata = "./d"\nchat_template = '
)


@pytest.mark.parametrize(
    ("value", "message", "hint"),
    [
        ("chatmi", "no such name", "did you mean chatml?"),
        ("./none.jinja", "there is no such file", ""),
        ("./d", "there is no such file", ""),
    ],
)
def test_a_wrong_name_and_a_missing_file_are_problems_of_their_line(
    tmp_path: Path, value: str, message: str, hint: str
) -> None:
    (tmp_path / "d").mkdir()
    (problem,) = problems_of(f'{RECIPE}"{value}"\n', tmp_path / "r.toml")
    assert (problem.line, problem.message, problem.hint) == (8, message, hint)
    assert "chatml" in problem.allowed


def test_a_path_is_relative_to_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "own.jinja").write_text("{{ messages }}")
    path = tmp_path / "r.toml"
    values = {value: load_recipe_text(f'{RECIPE}"{value}"\n', path) for value in ("chatml", "", "./own.jinja")}
    found = {value: loaded.resolved["stage"][0]["chat_template"] for value, loaded in values.items()}
    assert found == {"chatml": "chatml", "": "", "./own.jinja": str(tmp_path / "own.jinja")}
