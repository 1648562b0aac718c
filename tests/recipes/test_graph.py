"""The stage graph: order, references, and every error in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recipes.graph import Graph, resolve_graph
from recipes.load import load_recipe_text
from recipes.problems import RecipeError
from recipes.schema import Recipe
from recipes.stages.fake import FakeStage
from tests.recipes.recipe_texts import SOUND, found, problems_of

HERE = Path("/nowhere/r.toml")


def recipe_of(*stages: FakeStage) -> Recipe:
    return Recipe.model_validate({"schema": 1, "name": "g", "stage": list(stages)})


def fakes(*stages: tuple[str, str | None]) -> str:
    text = 'schema = 1\nname = "g"\n'
    for name, data in stages:
        text += f'[[stage]]\nname = "{name}"\nkind = "fake"\n' + (f'data = "{data}"\n' if data else "")
    return text


def graph_of(text: str) -> Graph:
    return load_recipe_text(text, HERE).graph


def test_stages_run_after_their_inputs_and_else_in_the_order_of_the_file() -> None:
    graph = graph_of(SOUND)
    assert graph.order == ["corpus", "questions", "tuned", "second-tuned"]
    assert graph.parents["tuned"] == ["questions"]
    assert graph.descendants["corpus"] == {"questions", "tuned", "second-tuned"}
    assert graph.ancestors("tuned") == {"corpus", "questions"}
    assert graph.inputs["tuned"]["model"].origin == "hub"
    assert graph.inputs["tuned"]["data"].name == "questions"
    assert graph_of(fakes(("d", "a"), ("c", None), ("a", None), ("b", "a"))).order == ["c", "a", "d", "b"]


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=12), st.randoms())
def test_any_graph_without_cycle_is_ordered(parents: list[int], random: object) -> None:
    names = [f"s{number}" for number in range(len(parents))]
    stages = [
        FakeStage(name=name, data=names[parent % number] if number and parent % 3 else None)
        for number, (name, parent) in enumerate(zip(names, parents, strict=True))
    ]
    random.shuffle(stages)  # type: ignore[attr-defined]
    graph = resolve_graph(recipe_of(*stages), Path("/"))
    place = {name: number for number, name in enumerate(graph.order)}
    assert sorted(place) == sorted(names)
    for name, above in graph.parents.items():
        assert all(place[parent] < place[name] for parent in above)
        assert all(name in graph.descendants[parent] for parent in above)


def test_a_cycle_is_named_at_the_input_that_closes_it() -> None:
    problems = found(fakes(("a", "c"), ("b", "a"), ("c", "b"), ("d", "c")))
    assert list(problems) == [(6, "a.data")]
    assert "a → b → c → a" in str(problems[6, "a.data"])
    assert "a → a" in str(found(fakes(("a", "a")))[6, "a.data"])


def test_two_cycles_are_two_problems() -> None:
    assert list(found(fakes(("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")))) == [(6, "a.data"), (14, "c.data")]


def test_a_long_chain_does_not_recurse_and_the_message_of_a_long_cycle_is_short() -> None:
    names = [f"s{number}" for number in range(250)]
    chain: list[tuple[str, str | None]] = [(name, names[number + 1]) for number, name in enumerate(names[:-1])]
    assert graph_of(fakes(*chain, (names[-1], None))).order == names[::-1]
    ((_, problem),) = found(fakes(*chain, (names[-1], names[0]))).items()
    assert len(str(problem)) < 400


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "message"),
    [
        ('data = "questions"', 'data = "question"', 16, "tuned.data", "did you mean questions?"),
        ('data = "questions"', 'data = "zzz"', 16, "tuned.data", "possible stages: corpus, questions"),
        (
            'data = "questions"',
            'data = "second-tuned"',
            16,
            "tuned.data",
            "got adapter; allowed messages, text, tokens; possible stages: corpus, questions",
        ),
        (
            'data = "questions"',
            'data = "questions"\nstart_from = "org/name"',
            17,
            "tuned.start_from",
            "a hub id can only be a model or a dataset",
        ),
        ('data = "questions"', 'data = "./none"', 16, "tuned.data", "there is no such path"),
        ('data = "questions"', 'data = "~/\\u0000"', 16, "tuned.data", "there is no such path"),
        ('data = "questions"', 'data = "a/b/c"', 16, "tuned.data", "no stage has this name"),
        ('data = "questions"', 'data = ""', 16, "tuned.data", "no stage has this name"),
        ('model = "org/name"', 'model = "second-tuned"', 15, "tuned.model", "got adapter; allowed model"),
    ],
)
def test_a_wrong_input_is_located(old: str, new: str, line: int, key: str, message: str) -> None:
    problems = found(SOUND.replace(old, new, 1))
    assert (line, key) in problems, list(problems)
    assert message in str(problems[line, key])


def test_a_bad_input_in_the_defaults_is_located_there() -> None:
    text = SOUND.replace("learning_rate = 1e-4", 'data = "question"').replace('data = "questions"\n', "")
    assert list(found(text)) == [(5, "defaults.finetune.data")]


def test_graph_and_fields_are_reported_together() -> None:
    text = SOUND.replace('data = "questions"', 'data = "question"').replace("seed = 7", "seed = -1")
    assert len(problems_of(text, HERE)) == 3


def test_a_stage_of_unknown_kind_is_one_problem_though_others_name_it() -> None:
    assert list(found(SOUND.replace('kind = "prepare"\noutput = "messages"', 'kind = "prep"'))) == [
        (28, "questions.kind")
    ]


def test_resolve_graph_raises_for_what_a_loader_would_refuse() -> None:
    with pytest.raises(RecipeError, match="a → b → a"):
        resolve_graph(recipe_of(FakeStage(name="a", data="b"), FakeStage(name="b", data="a")), Path("/"))
    recipe = recipe_of(FakeStage(name="a", data="/nowhere/at/all"))
    with pytest.raises(RecipeError, match="there is no such path"):
        resolve_graph(recipe, Path("/"))
    assert resolve_graph(recipe, Path("/"), check_paths=False).order == ["a"]
