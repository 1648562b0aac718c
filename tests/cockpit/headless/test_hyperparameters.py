"""`cockpit show`: every field with its value and with what set it; an edited recipe.toml is noticed."""

from __future__ import annotations

import json
from pathlib import Path

from cockpit.headless.hyperparameters import EDITED, field_lines, field_values
from cockpit.launching.launch import resolve
from cockpit.schedule.recipe_changes import write_changes
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from recipes.load import load_recipe_text
from tests.recipes.recipe_texts import SOUND


def run_of(tmp_path: Path, *sets: str) -> RunDir:
    loaded = load_recipe_text(SOUND, tmp_path / "r.toml", sets)
    return create_run_dir(
        tmp_path / "runs",
        name="x",
        recipe="sound",
        recipe_toml=loaded.text,
        recipe_json=resolve(loaded).to_json(),
        plan_json={},
        version="0",
        sets=loaded.overrides,
    )


def found(run: RunDir) -> dict[str, tuple[str, str]]:
    return {f"{item.stage}.{item.field}": (item.text, item.origin) for item in field_values(run)}


SETS = ("tuned.max_steps=7", "defaults.finetune.weight_decay=0.5", "questions.retry={max_attempts=3}")


def test_recipe_defaults_set_and_schema_are_told_apart(tmp_path: Path) -> None:
    shown = found(run_of(tmp_path, *SETS))
    assert shown["tuned.lora_alpha"] == ("32.0", "recipe")
    assert shown["tuned.retry.max_attempts"] == ("2", "recipe"), "its own key wins over the defaults' table"
    assert shown["tuned.retry.learning_rate_factor"] == ("0.25", "defaults")
    assert shown["tuned.learning_rate"] == ("1e-4", "defaults")
    assert shown["second-tuned.learning_rate"] == ("2e-4", "recipe")
    assert shown["tuned.max_steps"] == ("7", "--set")
    assert shown["tuned.weight_decay"] == ("0.5", "--set")
    assert shown["questions.retry.max_attempts"] == ("3", "--set")
    assert shown["tuned.max_grad_norm"] == ("1.0", "default")


def test_a_field_that_a_resume_changed_says_so(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    write_changes(run, ["tuned.learning_rate=3e-4"])
    assert found(run)["tuned.learning_rate"] == ("3e-4", "resume")


def test_a_run_of_an_older_version_shows_the_same_from_its_recipe(tmp_path: Path) -> None:
    run = run_of(tmp_path, *SETS)
    new = found(run)
    old = json.loads(run.recipe_json.read_text())
    del old["origins"], old["changes"]
    run.recipe_json.write_text(json.dumps(old))
    assert found(run) == new


def test_show_lists_what_was_set_and_on_request_everything(tmp_path: Path) -> None:
    run = run_of(tmp_path, "tuned.max_steps=7")
    few, all_ = field_lines(run, every=False), field_lines(run, every=True)
    assert any("tuned.max_steps" in line and "7  (--set)" in line for line in few)
    assert not any("max_grad_norm" in line for line in few)
    assert any("max_grad_norm" in line and "(default)" in line for line in all_)
    assert "fields at their defaults: cockpit show" in few[-1]


def test_the_sets_of_the_launch_are_kept_beside_the_recipe_as_given(tmp_path: Path) -> None:
    run = run_of(tmp_path, *SETS)
    assert run.read_run_json()["sets"] == list(SETS)
    assert run.recipe_toml.read_text() == SOUND


def test_an_edited_recipe_is_noticed_and_an_untouched_or_old_one_is_not(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    assert not run.recipe_was_edited()
    run.recipe_toml.write_text(SOUND.replace("2e-4", "3e-4"))
    assert run.recipe_was_edited()
    facts = run.read_run_json()
    del facts["recipe_sha256"]
    run.run_json.write_text(json.dumps(facts))
    assert not run.recipe_was_edited(), "an older version recorded no hash"
    assert "recipe.json" in EDITED


def test_a_recipe_that_cannot_be_read_lists_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    run.recipe_json.write_text("{")
    assert field_lines(run, every=True) == []
