"""Inputs that are lists: several adapters of one merge."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.forms.values import read_value, show_value
from cockpit.launching.launch import resolve
from recipes.fields import fields_of
from recipes.load import load_recipe_text
from recipes.stages.merge import MergeStage
from tests.recipes.recipe_texts import problems_of

HERE = Path("/nowhere/r.toml")
MERGE = (
    """
schema = 1
name = "m"
[[stage]]
name = "base"
kind = "merge"
model = "org/model"
adapter = "org-adapter"
[[stage]]
name = "both"
kind = "merge"
model = "base"
adapters = ["one", "two"]
weights = [0.5, 2]
[[stage]]
name = "one"
kind = "finetune"
model = "base"
data = "questions"
[[stage]]
name = "two"
kind = "finetune"
model = "base"
data = "questions"
[[stage]]
name = "questions"
kind = "prepare"
output = "messages"
data = "text"
[[stage]]
name = "text"
kind = "prepare"
output = "text"
source = "python-stdlib"
""".replace('adapter = "org-adapter"', 'adapter = "first"')
    + """
[[stage]]
name = "first"
kind = "finetune"
model = "org/model"
data = "questions"
"""
)


def test_a_stage_waits_for_every_item_of_its_lists() -> None:
    graph = load_recipe_text(MERGE, HERE).graph
    assert graph.parents["both"] == ["base", "one", "two"]
    assert graph.order.index("both") > max(graph.order.index("one"), graph.order.index("two"))
    assert [graph.inputs["both"][f"adapters[{n}]"].name for n in (0, 1)] == ["one", "two"]


def test_each_item_is_a_separate_input_of_a_run() -> None:
    plan = resolve(load_recipe_text(MERGE, HERE))
    assert set(plan.inputs["both"]) == {"model", "adapters[0]", "adapters[1]"}
    assert plan.descendants({"one"}) == {"one", "both"}


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ('["one", "two"]', '["one", "too"]', 13, "both.adapters[1] — no stage has this name"),
        (
            '["one", "two"]',
            '["one", "questions"]',
            13,
            "adapters[1] — stage questions has the wrong type of output",
        ),
        ('["one", "two"]', '["one", "./gone"]', 13, "both.adapters[1] — there is no such path"),
        ('["one", "two"]', '["one", 3]', 13, "both.adapters[1]"),
        ('["one", "two"]', '"one"', 13, 'did you mean ["one"]?'),
        ("weights = [0.5, 2]", "weights = [0.5]", 14, "weights — one number for each adapter is required; got 1 for 2"),
        ("weights = [0.5, 2]", "weights = 0.5", 14, "did you mean [0.5]?"),
        ("weights = [0.5, 2]", 'weights = [0.5, "x"]', 14, "both.weights[1]"),
        ("weights = [0.5, 2]", "weights = [0.5, nan]", 14, "both.weights[1]"),
        ('adapters = ["one", "two"]', "adapters = []", 9, "neither adapter nor adapters"),
        ('adapters = ["one", "two"]', 'adapter = "one"\nadapters = ["two"]', 13, "both adapter and adapters"),
    ],
)
def test_a_wrong_item_is_located(old: str, new: str, line: int, message: str) -> None:
    problems = problems_of(MERGE.replace(old, new, 1), HERE)
    assert problems
    assert any(message in str(problem) for problem in problems), [str(problem) for problem in problems]
    assert all(problem.line == line for problem in problems), [str(problem) for problem in problems]


def test_paths_in_a_list_are_relative_to_the_recipes_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    text = MERGE.replace('["one", "two"]', '["./a", "./b"]')
    loaded = load_recipe_text(text, tmp_path / "r.toml")
    stage = next(stage for stage in loaded.recipe.stage if stage.name == "both")
    assert isinstance(stage, MergeStage)
    assert stage.adapters == [str(tmp_path / "a"), str(tmp_path / "b")]


def test_a_form_reads_numbers_as_they_are_typed() -> None:
    spec = next(spec for spec in fields_of("merge") if spec.path == "weights")
    assert (spec.kind, spec.allowed) == ("numbers", "a list of numbers")
    assert read_value("0.5, 2", spec.kind) == [0.5, 2.0]
    assert read_value("[0.5, 2]", spec.kind) == [0.5, 2]
    assert read_value("half", spec.kind) == ["half"], "validation says what is wrong with it"
    assert read_value(show_value([0.5, 2.0]), spec.kind) == [0.5, 2.0]
