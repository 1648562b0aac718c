"""Which fields a resume may change: every field of a training stage says so; a refusal has the reason and the way."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest

from recipes.fields import fields_of, recipe_fields
from recipes.load import load_recipe_text
from recipes.problems import RecipeError
from recipes.resume_changes import (
    REASONS,
    FieldChange,
    change_recipe,
    refuse_at_resume,
    refuse_for_weights,
    refused_at_resume,
)
from recipes.setting import AtResume
from recipes.stages.registry import STAGE_KINDS
from tests.recipes.recipe_texts import SOUND

RESOLVED = load_recipe_text(SOUND, Path("/nowhere/r.toml")).resolved
TRAINING_TAGS = [tag for row in STAGE_KINDS.values() if row.trains for tag in row.tags]


def changes(*sets: str) -> list[FieldChange]:
    return change_recipe(RESOLVED, sets).changes


def refused(*sets: str) -> str:
    changed = change_recipe(RESOLVED, sets)
    with pytest.raises(RecipeError) as caught:
        refuse_at_resume(changed.changes, changed.recipe, "20261120-2130-x")
    return str(caught.value)


@pytest.mark.parametrize("tag", TRAINING_TAGS)
def test_every_field_of_a_training_stage_says_whether_a_resume_may_change_it(tag: str) -> None:
    silent = [spec.path for spec in fields_of(tag) if spec.at_resume is None]
    silent += [f"{spec.path}[].{item.path}" for spec in fields_of(tag) for item in spec.items if item.at_resume is None]
    assert silent == []


def test_every_field_of_the_recipe_itself_says_it_too() -> None:
    assert [spec.path for spec in recipe_fields() if spec.at_resume is None] == []


def test_every_reason_has_a_sentence() -> None:
    assert set(REASONS) == set(typing.get_args(AtResume)) - {"change"}


@pytest.mark.parametrize("tag", TRAINING_TAGS)
def test_an_input_of_a_training_stage_never_changes_at_a_resume(tag: str) -> None:
    assert {spec.at_resume for spec in fields_of(tag) if spec.accepts} <= {"input"}


def test_a_change_has_both_values_and_only_what_differs_is_one() -> None:
    before = next(stage for stage in RESOLVED["stage"] if stage["name"] == "tuned")
    same = f"tuned.r={before['r']}"
    assert changes("tuned.learning_rate=3e-4", "tuned.guards.grad_norm=7", same) == [
        FieldChange("tuned", "learning_rate", "1e-4", "3e-4"),
        FieldChange("tuned", "guards.grad_norm", "1000.0", "7.0"),
    ]
    assert changes("stop_grace_s=3") == [FieldChange("", "stop_grace_s", "120.0", "3.0")]


def test_a_value_that_other_fields_exclude_is_a_problem_of_its_override() -> None:
    with pytest.raises(RecipeError) as caught:
        change_recipe(RESOLVED, ["stop_grace_s=3", "tuned.early_stopping_patience=2"])
    [problem] = caught.value.problems
    assert problem.where == "--set tuned.early_stopping_patience=2"
    assert "recipe.json" not in str(caught.value)


def test_the_resolved_recipe_that_is_given_is_not_changed() -> None:
    before: dict[str, Any] = load_recipe_text(SOUND, Path("/nowhere/r.toml")).resolved
    change_recipe(before, ["tuned.learning_rate=3e-4"])
    assert before == RESOLVED


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("tuned.r=7", "shapes"),
        ("tuned.seed=7", "order"),
        ("tuned.per_device_train_batch_size=3", "order"),
        ("tuned.gradient_accumulation_steps=3", "order"),
        ("tuned.max_length=99", "order"),
        ("tuned.lora_alpha=1", "arithmetic"),
        ("tuned.optim=adamw_8bit", "optimizer"),
        ("tuned.eval_max_tokens=9", "comparison"),
        ("tuned.data=elsewhere", "input"),
        ("questions.data=elsewhere", "input"),
        ("name=other", "identity"),
    ],
)
def test_a_refusal_names_the_field_the_reason_and_the_way(text: str, reason: AtResume) -> None:
    message = refused(text)
    assert f"{text.partition('=')[0]} — {REASONS[reason]}" in message
    assert "cockpit run" in message
    assert "as now" in message


def test_a_stage_that_has_not_begun_takes_every_value_but_other_inputs() -> None:
    changed = change_recipe(RESOLVED, ["tuned.r=7", "tuned.seed=7", "tuned.optim=adamw_8bit", "tuned.data=elsewhere"])
    [problem] = refused_at_resume(changed.changes, changed.recipe, "20261120-2130-x", {"tuned"})
    assert problem.key == "tuned.data"
    assert problem.hint == "a new run can have it: cockpit run RECIPE", "the stage has no output to start from"


def test_a_new_run_starts_from_a_stage_only_where_that_has_left_an_output() -> None:
    changed = change_recipe(RESOLVED, ["tuned.seed=7"])
    hints = [
        refused_at_resume(changed.changes, changed.recipe, "20261120-2130-x", finished=finished)[0].hint
        for finished in ((), ("tuned",))
    ]
    assert hints[0].endswith(": cockpit run RECIPE")
    assert hints[1].endswith(": cockpit run --from 20261120-2130-x:tuned --set tuned.seed=…")


def test_all_refusals_come_at_once() -> None:
    message = refused("tuned.r=7", "tuned.seed=7", "tuned.learning_rate=1e-3")
    assert "tuned.r" in message
    assert "tuned.seed" in message
    assert "learning_rate" not in message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuned.learning_rate=2", "allowed a number > 0 and ≤ 1"),
        ("tuned.lerning_rate=1e-4", "did you mean learning_rate?"),
        ("nobody.learning_rate=1e-4", "no stage has this name"),
        ("defaults.finetune.learning_rate=1e-4", "name the stage"),
        ("tuned.name=x", "cannot change the name"),
        ("stop_grace_s=0", "out of range"),
    ],
)
def test_a_wrong_override_is_located_at_its_text(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        change_recipe(RESOLVED, [text])
    assert f"--set {text}" in str(caught.value)
    assert message in str(caught.value)


def test_weights_can_be_used_with_another_order_but_not_with_other_shapes() -> None:
    changed = change_recipe(RESOLVED, ["tuned.seed=7", "tuned.data=questions"])
    refuse_for_weights(changed.changes, changed.recipe)
    changed = change_recipe(RESOLVED, ["tuned.r=7"])
    with pytest.raises(RecipeError, match=r"tuned\.r — it changes the shapes"):
        refuse_for_weights(changed.changes, changed.recipe)


def test_values_too_long_for_one_record_of_the_journal_are_refused() -> None:
    text = "x" * 20_000
    with pytest.raises(RecipeError, match="too long"):
        change_recipe(RESOLVED, [f'tuned.gate=[{{metric = "{text}", op = "<", value = 1.0}}]'])
