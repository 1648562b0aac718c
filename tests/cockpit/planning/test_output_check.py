"""Folders for the files of a stage are checked before a run is made."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.planning.model_check import check_models
from recipes.load import load_recipe
from recipes.problems import OperatorError, RecipeError

CONFIG = (
    '{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, '
    '"num_attention_heads": 4, "max_position_embeddings": 64, "vocab_size": 64, "rms_norm_eps": 1e-5}'
)


def recipe(tmp_path: Path, out: str, more: str = "") -> Path:
    (tmp_path / "model").mkdir(exist_ok=True)
    (tmp_path / "model" / "config.json").write_text(CONFIG)
    path = tmp_path / "r.toml"
    path.write_text(
        'schema = 1\nname = "x"\n[[stage]]\nname = "gguf"\nkind = "export"\nmodel = "./model"\n'
        f'output_dir = "{out}"\n{more}'
    )
    return path


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        check_models(load_recipe(path))
    (problem,) = caught.value.problems
    assert problem.line == 7
    return f"{problem.message}; {problem.hint}"


def test_a_new_or_empty_folder_is_taken_relative_to_the_recipes(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, "./new/gguf"))
    check_models(loaded)
    assert getattr(loaded.recipe.stage[0], "output_dir", None) == str(tmp_path / "new" / "gguf")
    (tmp_path / "empty" / ".git").mkdir(parents=True)
    check_models(load_recipe(recipe(tmp_path, "./empty")))


def test_files_in_the_folder_are_named_and_can_be_allowed(tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "model-F16.gguf").write_text("x")
    found = refusal(recipe(tmp_path, "./used"))
    assert "the folder has files: model-F16.gguf" in found
    assert "--force" in found
    check_models(load_recipe(recipe(tmp_path, "./used", "overwrite_output_dir = true\n")))


def test_the_folder_of_an_input_is_refused_even_with_permission(tmp_path: Path) -> None:
    assert "folder of an input" in refusal(recipe(tmp_path, "./model", "overwrite_output_dir = true\n"))
    assert "folder of an input" in refusal(recipe(tmp_path, "./model/gguf"))


def test_a_file_is_not_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "this is not a folder" in refusal(recipe(tmp_path, "./file"))


def test_two_stages_do_not_share_a_folder(tmp_path: Path) -> None:
    path = recipe(tmp_path, "./new")
    stage = path.read_text().partition("[[stage]]")[2]
    path.write_text(f"{path.read_text()}[[stage]]{stage.replace('gguf', 'second')}")
    with pytest.raises(RecipeError, match="stage gguf has the same folder"):
        check_models(load_recipe(path))


def test_a_recipe_without_a_file_gets_the_same_words(tmp_path: Path) -> None:
    from recipes.load import load_recipe_text

    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "a").write_text("x")
    text = recipe(tmp_path, "./used").read_text()
    (tmp_path / "r.toml").unlink()
    with pytest.raises(OperatorError, match=r"gguf\.output_dir — the folder has files: a"):
        check_models(load_recipe_text(text, tmp_path / "other.toml"))
