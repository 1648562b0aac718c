"""A recipe as a form: rows are derived from the text, and every edit changes one value of it."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cockpit.forms.model import FormModel
from cockpit.forms.recipe_data import RECIPE
from cockpit.forms.rows import Spot, ordered_sections
from cockpit.forms.values import NO_VALUE, read_value, show_value
from recipes.fields import fields_of
from recipes.shipped import shipped_recipe, shipped_recipes
from recipes.stages.registry import STAGE_TYPES, kind_of, tags_of

TEXT = """# what this is for
schema = 1
name = "two"  # short

[defaults.fake]
learning_rate = 2e-4   # measured

[[stage]]
name = "one"
kind = "fake"
max_steps = 20   # quick

[stage.retry]
max_attempts = 2

[[stage]]
name = "two"
kind = "fake"
data = "one"
"""


@pytest.fixture
def model(tmp_path: Path) -> FormModel:
    return FormModel(TEXT, tmp_path / "two.toml")


def test_every_stage_type_has_rows_for_all_its_fields_in_sections_that_fit_a_screen() -> None:
    for tag in STAGE_TYPES:
        sections = ordered_sections(tag)
        output = ["output"] if len(tags_of(kind_of(tag))) > 1 else []
        rows = [s.path for specs in sections.values() for s in specs]
        assert sorted(rows) == sorted([*(s.path for s in fields_of(tag)), *output])
        assert max(len(specs) for specs in sections.values()) <= 12


def test_the_name_and_the_inputs_come_first() -> None:
    names = list(ordered_sections("finetune"))
    assert names[:3] == ["Stage", "Inputs", "LoRA"]
    assert names[-1] in {"Launch", "Gates", "Retry"}


def test_a_row_shows_the_origin_of_its_value(model: FormModel) -> None:
    rows = {row.key: row for name in ordered_sections("fake") for row in model.rows(0, name)}
    assert (rows["max_steps"].text, rows["max_steps"].origin) == ("20", "stage")
    assert (rows["learning_rate"].text, rows["learning_rate"].origin) == ("2e-4", "defaults")
    assert (rows["seed"].text, rows["seed"].origin) == ("42", "default")
    assert (rows["retry.max_attempts"].text, rows["retry.max_attempts"].origin) == ("2", "stage")
    assert rows["nan_at_step"].origin == ""


def test_an_edit_changes_one_value_and_keeps_comments(model: FormModel) -> None:
    model.set(0, "max_steps", "50")
    model.check()
    assert model.text == TEXT.replace("max_steps = 20   # quick", "max_steps = 50   # quick")
    assert not model.problems
    row = model.row(0, "max_steps")
    assert row is not None
    assert row.was == "20"


def test_undo_restores_the_bytes_and_redo_does_it_again(model: FormModel) -> None:
    model.set(0, "max_steps", "5")
    model.set(0, "max_steps", "50")  # one visit of a row is one step
    model.close_edit()
    model.set(1, "seed", "7")
    after = model.text
    assert model.undo() == (1, "seed")
    assert model.undo() == (0, "max_steps")
    assert model.text == TEXT
    assert model.undo() is None
    model.redo()
    model.redo()
    assert model.text == after


EDITS = st.tuples(
    st.sampled_from(["max_steps", "learning_rate", "seed"]), st.sampled_from(["", "1", "3e-4", "x", "20"])
)


@settings(max_examples=50)
@given(st.lists(EDITS, max_size=8), st.booleans())
def test_undoing_every_edit_restores_the_bytes_and_redoing_every_one_the_end(
    edits: list[tuple[str, str]], leaves_rows: bool
) -> None:
    model = FormModel(TEXT, Path("two.toml"))
    for key, typed in edits:
        model.set(1, key, typed)
        if leaves_rows:
            model.close_edit()
    model.close_edit()
    after = model.text
    while model.undo():
        pass
    assert model.text == TEXT
    while model.redo():
        pass
    assert model.text == after


def test_a_value_cleared_and_typed_again_keeps_its_place_and_comment(model: FormModel) -> None:
    for typed in ("2", "", "3", "30"):
        model.set(0, "max_steps", typed)
    assert model.text == TEXT.replace("max_steps = 20 ", "max_steps = 30 ")
    assert model.undo() == (0, "max_steps")
    assert model.text == TEXT


def test_typing_back_what_was_there_leaves_the_file_as_it_is(model: FormModel) -> None:
    model.set(0, "max_steps", "2")
    model.set(0, "max_steps", "20")
    assert model.text == TEXT
    assert not model.dirty


def test_a_cleared_row_has_its_default(model: FormModel) -> None:
    model.set(0, "max_steps", "")
    row = model.row(0, "max_steps")
    assert row is not None
    assert (row.text, row.origin) == ("100", "default")
    assert "max_steps" not in model.text


@pytest.mark.parametrize(
    ("key", "typed"),
    [
        ("max_steps", "0"),
        ("max_steps", "x"),
        ("step_s", "-1"),
        ("retry.max_attempts", "9"),
        ("data", "nobody"),
        ("name", "A b"),
    ],
)
def test_a_wrong_value_is_a_problem_of_its_own_row(model: FormModel, key: str, typed: str) -> None:
    model.set(1, key, typed)
    model.check()
    row = model.row(1, key)
    assert row is not None
    assert row.problems
    assert model.loaded is None
    assert sum(head.problems for head in model.heads()) == 1
    assert model.next_problem(Spot(RECIPE, "", "")) == Spot(1, model.section_of(1, key), key)


def test_a_problem_of_the_defaults_shows_in_every_stage_that_takes_it(tmp_path: Path) -> None:
    model = FormModel(TEXT.replace("2e-4", "7.0"), tmp_path / "two.toml")
    for place in (0, 1):
        row = model.row(place, "learning_rate")
        assert row is not None
        assert row.problems


def test_a_stage_named_like_a_field_does_not_draw_its_problems_to_it(tmp_path: Path) -> None:
    text = 'schema = 1\nname = "x"\n[[stage]]\nname = "data"\nkind = "fake"\nmax_steps = 0\n'
    model = FormModel(text, tmp_path / "x.toml")
    data, steps = model.row(0, "data"), model.row(0, "max_steps")
    assert data is not None
    assert steps is not None
    assert (len(data.problems), len(steps.problems)) == (0, 1)


def test_next_problem_wraps_around(model: FormModel) -> None:
    model.set(0, "max_steps", "0")
    model.set(1, "seed", "-1")
    model.check()
    first = model.next_problem(Spot(RECIPE, "", ""))
    assert first is not None
    second = model.next_problem(first)
    assert second is not None
    assert (first.key, second.key) == ("max_steps", "seed")
    assert model.next_problem(second) == first


def test_text_that_is_not_toml_is_one_problem_and_no_rows(tmp_path: Path) -> None:
    model = FormModel("name = \n", tmp_path / "broken.toml")
    assert model.broken is not None
    assert model.broken.line == 1


def test_an_unknown_kind_is_reported_and_has_no_rows(tmp_path: Path) -> None:
    model = FormModel('schema = 1\nname = "x"\n[[stage]]\nname = "a"\nkind = "bake"\n', tmp_path / "x.toml")
    assert model.sections(0) == []
    assert model.loose_problems(0)


def test_candidates_are_the_stages_whose_output_fits() -> None:
    path = shipped_recipe("demo")
    assert path is not None
    model = FormModel(path.read_text(), path)
    names = {head.name: head.place for head in model.heads()}
    assert model.candidates(names["tuned"], "model") == ["base", "merged"]
    assert model.candidates(names["tuned"], "data") == ["corpus", "shards", "questions"]


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_every_value_of_every_shipped_recipe_survives_its_row(path: Path) -> None:
    model = FormModel(path.read_text(), path)
    for head in model.heads():
        for section in model.sections(head.place):
            for row in model.rows(head.place, section.name):
                if row.origin == "stage":
                    model.set(head.place, row.key, row.text)
    assert model.text == path.read_text()
    assert not model.refusal


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (1e-4, "float"),
        (0.00025, "float"),
        (3, "int"),
        (True, "bool"),
        ("plain", "str"),
        ("two\nlines\t\x1b[31m", "str"),
        (' "quoted" ', "str"),
        (["a", "b"], "list"),
        (["a, b", ""], "list"),
        (["[x"], "list"),
        (
            [{"metric": "loss", "op": "<", "value": 2.5}, {"metric": "x", "op": ">=", "value": 1, "stretch": 2.0}],
            "tables",
        ),
    ],
)
def test_a_value_shown_on_one_line_reads_back_as_itself(value: object, kind: str) -> None:
    shown = show_value(value)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert read_value(shown, kind) == value


def test_numbers_are_written_as_people_do() -> None:
    assert [show_value(x) for x in (2e-4, 3e-4, 0.05, 32.0, 1e-8, 1048576)] == [
        *("2e-4", "3e-4", "0.05", "32", "1e-8", "1048576")
    ]
    assert read_value("", "float") is NO_VALUE
    assert read_value("1_000", "int") == 1000
    assert read_value("abc", "int") == "abc"


@settings(max_examples=200)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_the_file_holds_the_number_that_its_row_shows(value: float) -> None:
    model = FormModel(TEXT, Path("two.toml"))
    model.set(1, "learning_rate", show_value(value))
    row = model.row(1, "learning_rate")
    assert row is not None
    assert (row.text, row.origin) == (show_value(value), "stage")
    written = tomllib.loads(model.text)["stage"][1]["learning_rate"]
    assert isinstance(written, float)
    assert written == value


def test_an_output_of_another_run_that_does_not_exist_is_a_problem_of_its_row(tmp_path: Path) -> None:
    text = 'schema = 1\nname = "x"\n[[stage]]\nname = "a"\nkind = "fake"\ndata = "nobody:base"\n'
    (tmp_path / "runs").mkdir()
    model = FormModel(text, tmp_path / "r.toml", runs=tmp_path / "runs")
    [problem] = model.problems
    assert (problem.line, problem.key) == (6, "a.data")
    assert "no run 'nobody'" in problem.message
    assert FormModel(text, tmp_path / "r.toml").problems == [], "without a folder of runs nothing is looked up"


TUNE = """schema = 1
name = "tune"

[[stage]]
name = "tuned"
kind = "finetune"
model = "./model"
data = "./text"
r = 8   # small
"""


def test_another_output_gives_a_stage_other_fields_and_undo_restores_them(tmp_path: Path) -> None:
    model = FormModel(TUNE, tmp_path / "tune.toml")
    row = model.row(0, "output")
    assert row is not None
    assert (row.text, row.origin, row.spec.choices) == ("adapter", "default", ("adapter", "model"))
    assert "LoRA" in [section.name for section in model.sections(0)]
    model.set(0, "output", "model")
    model.check()
    assert 'output = "model"\n' in model.text
    assert "LoRA" not in [section.name for section in model.sections(0)]
    assert [row.key for row in model.rows(0, "Stage")] == ["name", "output"]
    assert model.unknown_keys(0) == ["r"]
    assert model.undo() == (0, "output")
    assert model.text == TUNE
    assert model.row(0, "r") is not None


@pytest.mark.parametrize("line", ["", 'output = "modle"\n'])
def test_a_stage_without_its_output_has_the_row_that_sets_it(tmp_path: Path, line: str) -> None:
    model = FormModel(f'schema = 1\nname = "x"\n[[stage]]\nname = "a"\nkind = "prepare"\n{line}', tmp_path / "x.toml")
    [row] = model.rows(0, "Stage")
    assert (row.key, row.spec.required, len(row.problems)) == ("output", True, 1)
    model.set(0, "output", "messages")
    assert model.row(0, "data") is not None


def test_a_kind_of_one_type_has_no_row_for_its_output(tmp_path: Path) -> None:
    model = FormModel(TEXT, tmp_path / "two.toml")
    assert [row.key for row in model.rows(0, "Stage")] == ["name"]


def test_pairs_train_an_adapter_or_all_weights(tmp_path: Path) -> None:
    model = FormModel(TUNE.replace('"finetune"', '"dpo"'), tmp_path / "tune.toml")
    assert [row.key for row in model.rows(0, "Stage")] == ["name", "output"]
    assert {"beta", "loss_type"} <= {row.key for row in model.rows(0, "Preference")}
    assert model.row(0, "r") is not None
    model.set(0, "output", "model")
    assert model.row(0, "r") is None
    assert {"beta", "loss_type"} <= {row.key for row in model.rows(0, "Preference")}
