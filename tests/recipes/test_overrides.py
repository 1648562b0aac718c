"""`--set`: values reach their field, and errors have the same messages as those of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recipes.load import load_recipe_text
from recipes.overrides import belongs, parse_value
from recipes.problems import OperatorError
from tests.recipes.recipe_texts import SOUND, problems_of

HERE = Path("/nowhere/r.toml")


def stages(*sets: str) -> dict[str, Any]:
    loaded = load_recipe_text(SOUND, HERE, sets)
    return {stage["name"]: stage for stage in loaded.resolved["stage"]} | {"": loaded.resolved}


def test_overrides_reach_stages_defaults_nested_tables_and_the_recipe() -> None:
    found = stages(
        "second-tuned.learning_rate=3e-4",
        "defaults.finetune.learning_rate=5e-5",
        "tuned.retry.max_attempts=1",
        "tuned.guards.grad_norm=5",
        "name=other",
        "corpus.source=/",
        "tuned.bf16=true",
        'tuned.target_modules=["o_proj"]',
        "tuned.lr_scheduler_type=linear",
        "questions.max_examples = 5",
    )
    assert found["second-tuned"]["learning_rate"] == 3e-4
    assert found["tuned"]["learning_rate"] == 5e-5
    assert found["tuned"]["retry"] == {
        "max_attempts": 1,
        "learning_rate_factor": 0.25,
        "out_of_memory_halvings": 3,
        "warmup_steps": 0.02,
    }
    assert found["tuned"]["guards"]["grad_norm"] == 5
    assert found[""]["name"] == "other"
    assert found["corpus"]["source"] == "/"
    assert found["tuned"]["bf16"] is True
    assert found["tuned"]["target_modules"] == ["o_proj"]
    assert found["tuned"]["lr_scheduler_type"] == "linear"
    assert found["questions"]["max_examples"] == 5


def test_the_last_override_of_a_field_wins_and_a_whole_table_can_be_set() -> None:
    assert stages("tuned.r=4", "tuned.r=8")["tuned"]["r"] == 8
    assert stages("questions.retry={max_attempts=3}")["questions"]["retry"]["max_attempts"] == 3
    assert stages("second-tuned.gate=[]")["second-tuned"]["gate"] == []


def test_a_text_field_takes_text_that_looks_like_something_else() -> None:
    assert stages("name=2026-11-20")[""]["name"] == "2026-11-20"
    assert stages("name=42")[""]["name"] == "42"


def test_a_field_of_one_output_is_named_with_its_output() -> None:
    assert belongs("load_in_4bit") == (
        'it is a field of finetune with output = "adapter", dpo with output = "adapter" and evaluate'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tuned.lr=1", "no such field; did you mean learning_rate?"),
        ("tund.r=1", "no stage has this name; did you mean tuned?"),
        ("tuned.hidden_size=1", "it is a field of pretrain"),
        ("tuned.retry.max_attempt=1", "did you mean retry.max_attempts?"),
        ("defaults.finetun.r=1", "did you mean finetune?"),
        ("defaults.finetune=1", "this is a stage kind, not a field; write defaults.finetune.FIELD=VALUE"),
        ("defaults.distill.r=1", "unknown stage kind; kinds: prepare"),
        ("defaults.finetune.rr=1", "no such field"),
        ("nam=x", "did you mean name?"),
        ("tuned=x", "this is a stage"),
        ("tuned.kind=fake", "cannot change the name, kind or output of a stage"),
        ("tuned.r", "not an override"),
        ("=1", "not an override"),
        ("tuned..r=1", "not an override"),
        ("a." * 40 + "b=1", "not an override"),
        ("tuned.r=", "no value"),
        ("tuned.target_modules=[q_proj]", "not TOML"),
        ("tuned.target_modules=" + "[" * 5_000, "nested more than"),
        ("tuned.r=" + "9" * 5_000, "wrong type"),
        ("tuned.r=four", 'wrong type; got "four"; allowed a whole number ≥ 1'),
        ("tuned.r=0", "out of range; got 0"),
        ("tuned.r=1e400", "got inf"),
        ("tuned.data=question", "did you mean questions?"),
        ("tuned.retry.max_attempts=9", "out of range; got 9; allowed a whole number ≥ 1 and ≤ 3"),
        ("defaults.finetune.learning_rate=9", "out of range; got 9"),
        ("defaults.merge.dtype=float8", "not one of the choices"),
        ("questions.retry={max_attempts=9}", "out of range"),
        ("schema=2", "got 2; allowed 1"),
        ("tuned.r=\x1b[31m", "wrong type"),
    ],
)
def test_a_wrong_override_is_shown_as_it_was_typed(text: str, message: str) -> None:
    problems = problems_of(SOUND, HERE, [text])
    assert len(problems) == 1
    shown = str(problems[0])
    assert shown.startswith("--set ")
    assert message in shown
    assert "\x1b" not in shown


def test_overrides_and_file_are_reported_together() -> None:
    problems = problems_of(SOUND.replace("seed = 7", "seed = -7"), HERE, ["tuned.r=0", "x.y=1"])
    assert [problem.line for problem in problems] == [10, 0, 0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("5", 5),
        ("true", True),
        ('"5"', "5"),
        ("org/name", "org/name"),
        ("./a b", "./a b"),
        ('["Q8_0", "F16"]', ["Q8_0", "F16"]),
        ("5 # five", "5 # five"),
        ('"a # b"', "a # b"),
        ("a\nb = 1", "a\nb = 1"),
        ("1\nb = 1", "1\nb = 1"),
        ("/home/somebody" + "/folder" * 12 + "/x.jsonl", "/home/somebody" + "/folder" * 12 + "/x.jsonl"),
    ],
)
def test_a_value_is_toml_or_else_text(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_what_begins_like_a_list_must_be_one() -> None:
    with pytest.raises(OperatorError, match="not TOML"):
        parse_value("[a")
