"""A gate that so few test rows cannot reach is refused before anything runs, with the rows that it needs."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.planning.data_look import look_at_data
from cockpit.planning.judging.gate_check import gate_notes, gate_problems
from engines.judging.shares.counts import wilson
from recipes.load import LoadedRecipe, load_recipe
from recipes.quantities import percent


def recipe(folder: Path, metric: str, op: str, value: float, rows: int = 31) -> LoadedRecipe:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text('{"question": "?", "answer": "1"}\n\n' * rows)
    file = folder / "r.toml"
    file.write_text(
        'schema = 1\nname = "r"\n[[stage]]\nname = "judge"\nkind = "evaluate"\nmodel = "./model"\n'
        'data = "./rows.jsonl"\ntest_data = "./rows.jsonl"\nchecks = ["number"]\n'
        f'[[stage.gate]]\nmetric = "{metric}"\nop = "{op}"\nvalue = {value}\n'
    )
    return load_recipe(file)


@pytest.mark.parametrize(
    ("metric", "op", "value", "refused"),
    [
        ("success_low", ">=", 0.98, True),
        ("success_low", ">=", 0.88, False),
        ("success_low", ">", 1.0, True),
        ("success_low", "<", 0.99, False),
        ("success", ">=", 1.0, False),
        ("success_high", ">=", 0.99, False),
    ],
)
def test_a_gate_that_no_model_can_pass_is_refused(
    tmp_path: Path, metric: str, op: str, value: float, refused: bool
) -> None:
    found = gate_problems(recipe(tmp_path, metric, op, value))
    assert bool(found) == refused
    if value == 0.98:
        [problem] = found
        assert (problem.line, problem.message) == (13, "31 of 31 test rows mean at least 88.9% at 95 %")
        assert "give at least 189 rows" in problem.hint
        assert gate_problems(recipe(tmp_path, metric, op, value, rows=189)) == []


@pytest.mark.parametrize(("value", "least"), [(0.98, 31), (0.9, 28), (0.5, 16)])
def test_a_gate_on_a_share_says_what_its_rows_prove(tmp_path: Path, value: float, least: int) -> None:
    [note] = gate_notes(recipe(tmp_path, "success", ">=", value), {})
    low = wilson(least, 31).low
    assert f"needs {least} of 31 rows, which proves at least {percent(low, 1)}" in note


def test_rows_that_a_stage_of_the_recipe_will_hold_out_are_counted_too(tmp_path: Path) -> None:
    """They are divided as the stage will do it; 100 rows leave 5 for the test."""
    rows = "".join(f'{{"question": "q{n}?", "answer": "{n}"}}\n' for n in range(100))
    (tmp_path / "all.jsonl").write_text(rows)
    loaded = recipe(tmp_path, "success_low", ">=", 0.9)
    text = loaded.text.replace("[[stage]]", PREPARED, 1).replace('test_data = "./rows.jsonl"', 'test_data = "divided"')
    (tmp_path / "r.toml").write_text(text)
    loaded = load_recipe(tmp_path / "r.toml")
    assert gate_problems(loaded) == [], "nothing is known without a look"
    looks = look_at_data(loaded)
    assert looks["divided"].divided == {"train": 90, "val": 5, "test": 5}
    [problem] = gate_problems(loaded, looks)
    assert problem.message == "5 of 5 test rows mean at least 56.5% at 95 %"
    assert problem.hint == "give at least 35 rows, or a gate that they can reach"
    enough = text.replace('output = "messages"', 'output = "messages"\ntest_rows = 35')
    (tmp_path / "r.toml").write_text(enough)
    loaded = load_recipe(tmp_path / "r.toml")
    assert gate_problems(loaded, look_at_data(loaded)) == []


PREPARED = """[[stage]]
name = "divided"
kind = "prepare"
output = "messages"
data = "./all.jsonl"
columns = { user = "question", assistant = "answer" }

[[stage]]"""
