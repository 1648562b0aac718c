"""An edit changes one value: comments, order and the spelling of every other value stay."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recipes.edit import EditError, diff_lines, set_value, unset_value
from recipes.fields import fields_of
from recipes.shipped import shipped_recipes
from tests.recipes.recipe_texts import FAKE, SOUND

TEXTS = [SOUND, FAKE, SOUND.replace("\n", "\r\n"), FAKE.rstrip("\n"), *(path.read_text() for path in shipped_recipes())]
FIELDS = sorted(
    {spec.path for tag in ("finetune", "prepare-text", "fake") for spec in fields_of(tag)} - {"name", "gate"}
)
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.booleans(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.lists(st.sampled_from(["a", 'b"', "#", "\u2028", 2.5]), max_size=3),
)


def field_key(text: str, stage: str | None, field: str) -> tuple[str | int, ...]:
    """The path of a field; the stage None means the recipe's own keys."""
    parts = tuple(field.split("."))
    return parts if stage is None else ("stage", stage_names(text).index(stage), *parts)


def set_field(text: str, stage: str | None, field: str, value: Any) -> str:
    return set_value(text, field_key(text, stage, field), value)


def unset_field(text: str, stage: str, field: str) -> str:
    return unset_value(text, field_key(text, stage, field))


def at(data: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        data = data[part]
    return data


def without(text: str, path: tuple[str | int, ...]) -> Any:
    """The data without one value and without tables that are then empty."""
    data = tomllib.loads(text)
    for length in range(len(path) - 1, 1, -1):
        try:
            table = at(data, path[:length])
        except (KeyError, TypeError):
            continue
        if isinstance(table, dict) and (length == len(path) - 1 or table.get(path[length]) == {}):
            table.pop(path[length], None)
    return data


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    return type(one) is type(other) and bool(one == other)


def stage_names(text: str) -> list[str]:
    return [stage["name"] for stage in tomllib.loads(text)["stage"]]


@settings(max_examples=250)
@given(st.sampled_from(TEXTS), st.data(), VALUES)
def test_setting_a_value_changes_that_value_only(text: str, data: st.DataObject, value: Any) -> None:
    stage, field = data.draw(st.sampled_from(stage_names(text))), data.draw(st.sampled_from(FIELDS))
    path = field_key(text, stage, field)
    new = set_field(text, stage, field, value)
    assert equal(at(tomllib.loads(new), path), value) or value == at(tomllib.loads(new), path)
    assert without(new, path) == without(text, path)
    old_lines, new_lines = text.splitlines(), new.splitlines()
    assert len(new_lines) - len(old_lines) in (0, 1)
    changed = [line for line in diff_lines(text, new) if not line.startswith("  ")]
    assert len(changed) <= 2
    assert new.count("#") >= text.count("#")
    assert ("\r\n" in new) == ("\r\n" in text)


@settings(max_examples=150)
@given(st.sampled_from(TEXTS), st.data(), VALUES)
def test_removing_a_new_key_restores_the_text(text: str, data: st.DataObject, value: Any) -> None:
    stage, field = data.draw(st.sampled_from(stage_names(text))), data.draw(st.sampled_from(FIELDS))
    path = field_key(text, stage, field)
    try:
        at(tomllib.loads(text), path)
    except (KeyError, TypeError):
        new = set_value(text, path, value)
        assert unset_value(new, path).rstrip("\r\n") == text.rstrip("\r\n")
    else:
        assume(False)


@settings(max_examples=100)
@given(st.sampled_from(TEXTS), st.data())
def test_removing_a_key_removes_that_key_only(text: str, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(stage_names(text)) - 1))
    key = data.draw(st.sampled_from(sorted(tomllib.loads(text)["stage"][number])))
    new = unset_value(text, ("stage", number, key))
    expected = tomllib.loads(text)
    del expected["stage"][number][key]
    assert tomllib.loads(new) == expected
    kept = new.splitlines()
    rest = iter(text.splitlines())
    assert all(line in rest for line in kept)


def test_untouched_spellings_and_comments_stay() -> None:
    new = set_field(SOUND, "second-tuned", "learning_rate", 3e-4)
    assert new == SOUND.replace("learning_rate = 2e-4", "learning_rate = 3e-4")
    new = set_field(SOUND, "tuned", "lora_alpha", 32)
    assert new == SOUND.replace("lora_alpha = 3.2e1", "lora_alpha = 32")


def test_setting_the_present_value_changes_nothing() -> None:
    assert set_field(SOUND, "tuned", "lora_alpha", 32.0) == SOUND
    assert set_field(SOUND, "second-tuned", "learning_rate", 0.0002) == SOUND


def test_a_value_goes_to_the_stages_own_table_and_leaves_the_defaults() -> None:
    new = set_field(SOUND, "tuned", "learning_rate", 5e-5)
    assert "learning_rate = 1e-4  # for all" in new
    assert diff_lines(SOUND, new) == ["  retry.max_attempts = 2", "+ learning_rate = 5e-5", "  "]


def test_nested_values_go_where_their_table_is_written() -> None:
    assert "  max_attempts = 2\n  learning_rate_factor = 0.1\n" in set_field(
        SOUND, "questions", "retry.learning_rate_factor", 0.1
    )
    assert "retry.max_attempts = 2\nretry.learning_rate_factor = 0.1\n" in set_field(
        SOUND, "tuned", "retry.learning_rate_factor", 0.1
    )
    inline = FAKE + "retry = { max_attempts = 2 } # twice\n"
    assert set_field(inline, "one", "retry.learning_rate_factor", 0.1).endswith(
        "retry = { max_attempts = 2, learning_rate_factor = 0.1 } # twice\n"
    )
    both = set_field(inline, "one", "retry.learning_rate_factor", 0.1)
    assert unset_field(both, "one", "retry.max_attempts").endswith("retry = { learning_rate_factor = 0.1 } # twice\n")
    assert unset_field(both, "one", "retry.learning_rate_factor") == inline
    assert unset_field(inline, "one", "retry.max_attempts").endswith("retry = {} # twice\n")


def test_keys_of_the_recipe_go_before_the_first_table() -> None:
    new = set_field(SOUND, None, "sample_interval_s", 1.0)
    assert new.startswith('schema = 1            # the format\nname = "sound"\nsample_interval_s = 1.0\n')
    assert set_value("[[stage]]\n", ("schema",), 1) == "schema = 1\n[[stage]]\n"


def test_gates_written_as_tables_are_replaced_as_a_whole() -> None:
    gates = [{"metric": "loss", "op": "<", "value": 2.0}]
    new = set_field(SOUND, "second-tuned", "gate", gates)
    assert tomllib.loads(new)["stage"][3]["gate"] == gates
    assert "[[stage.gate]]" not in new
    assert "gate" not in tomllib.loads(unset_field(SOUND, "second-tuned", "gate"))["stage"][3]


def test_stages_written_on_one_line_can_be_edited() -> None:
    text = "stage = [{name = 'a', kind = 'fake'}, {name = 'b', kind = 'fake'}] # both\n"
    new = set_field(text, "b", "seed", 3)
    assert new == "stage = [{name = 'a', kind = 'fake'}, { name = 'b', kind = 'fake', seed = 3 }] # both\n"


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        (FAKE, ("stage", 5, "seed"), 1),
        (FAKE, ("name", "x"), 1),
        (FAKE, ("stage", 0, "seed"), None),
        (FAKE, ("stage", 0, "seed"), object()),
    ],
)
def test_what_cannot_be_written_is_refused(text: str, path: tuple[str | int, ...], value: Any) -> None:
    with pytest.raises(EditError):
        set_value(text, path, value)


def test_removing_a_missing_key_changes_nothing() -> None:
    assert unset_field(FAKE, "one", "seed") == FAKE
