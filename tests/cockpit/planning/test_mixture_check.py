"""The check of a recipe says what its sources will give, and which one has too little text for its weight."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from cockpit.forms.values import TEXT_OR_TABLES, read_value, show_value
from cockpit.planning.mixture_check import mixtures
from cockpit.planning.model_check import check_models
from recipes.load import load_recipe
from recipes.problems import RecipeError

HEAD = 'schema = 1\nname = "x"\n[[stage]]\nname = "text"\nkind = "prepare"\noutput = "text"\nval_fraction = 0\n'
HEAD += "test_fraction = 0\n"


def recipe(tmp_path: Path, tables: str) -> Path:
    (tmp_path / "large.txt").write_text("x" * 9000)
    (tmp_path / "small.txt.gz").write_bytes(gzip.compress(b"y" * 1000))
    path = tmp_path / "r.toml"
    path.write_text(HEAD + tables)
    return path


SMALL = '[[stage.source]]\npath = "./small.txt.gz"\nweight = 1\n'
LARGE = '[[stage.source]]\npath = "./large.txt"\nweight = 1\n'
GONE = '[[stage.source]]\npath = "./gone"\nweight = 8\noptional = true\n'


def test_the_source_that_limits_a_text_is_named_before_a_run_by_its_unpacked_size(tmp_path: Path) -> None:
    (found,) = mixtures(load_recipe(recipe(tmp_path, SMALL + LARGE + GONE)))
    assert [(one.bytes, one.epochs, one.limits) for one in found.sources] == [
        (1000, 1.0, True),
        (9000, pytest.approx(1 / 9), False),
        (None, 0.0, False),
    ]
    assert (found.train_bytes, found.available_bytes) == (2000, 10_000)
    assert found.lines()[2] == "text: gone is missing and will be left out"
    (warning,) = found.warnings()
    assert warning.startswith("small-txt-gz is too small for its weight")
    (repeated,) = mixtures(load_recipe(recipe(tmp_path, SMALL + "epochs = 9\n" + LARGE)))
    assert repeated.train_bytes == 18_000
    assert repeated.warnings() == []


def test_an_empty_source_is_warned_of_and_the_end_of_a_cut_gzip_file_is_no_size(tmp_path: Path) -> None:
    path = recipe(tmp_path, SMALL + LARGE)
    (tmp_path / "large.txt").write_text("")
    (tmp_path / "small.txt.gz").write_bytes(gzip.compress(b"y" * 1000)[:12] + b"\xff" * 8)
    (found,) = mixtures(load_recipe(path))
    assert [one.bytes for one in found.sources] == [20 * 1032, 0]
    assert found.warnings() == ["large-txt has no file with text that the stage reads: the stage will end there"]


@pytest.mark.parametrize("weight", ["1e308", "1.1e9"])
def test_weights_whose_sum_would_not_be_a_number_are_refused(tmp_path: Path, weight: str) -> None:
    with pytest.raises(RecipeError, match="out of range"):
        load_recipe(recipe(tmp_path, SMALL.replace("weight = 1", f"weight = {weight}") + LARGE))


def test_all_problems_of_source_tables_are_reported_at_their_lines(tmp_path: Path) -> None:
    wrong = SMALL + "weigth = 3\nepochs = 0\n" + LARGE.replace("large", "missing") + "[[stage.source]]\npath = 3\n"
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe(tmp_path, wrong))
    found = {(problem.line, problem.key, problem.message) for problem in caught.value.problems}
    assert found == {
        (12, "text.source[0].weigth", "source has no such key"),
        (13, "text.source[0].epochs", "out of range"),
        (15, "text.source[1].path", "there is no such file or folder"),
        (18, "text.source[2].path", "wrong type"),
    }


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (SMALL + LARGE.replace("weight = 1\n", ""), "some sources have no weight"),
        (SMALL + SMALL, "two sources have one name"),
        (GONE, "no source exists"),
        ('[[stage.source]]\npath = "."\ninclude = ["*.nope"]\n', "has no file that include matches"),
        ("source = []\n", "too short"),
    ],
)
def test_sources_that_give_no_mixture_are_refused(tmp_path: Path, tables: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_models(load_recipe(recipe(tmp_path, tables)))


def test_paths_of_sources_are_absolute_in_the_resolved_recipe(tmp_path: Path) -> None:
    loaded = load_recipe(recipe(tmp_path, SMALL))
    assert loaded.resolved["stage"][0]["source"][0]["path"] == str(tmp_path / "small.txt.gz")


def test_a_form_shows_tables_on_one_line_and_reads_them_back(tmp_path: Path) -> None:
    tables = load_recipe(recipe(tmp_path, SMALL + LARGE)).resolved["stage"][0]["source"]
    given = [{"path": one["path"], "weight": one["weight"]} for one in tables]
    assert read_value(show_value(given), TEXT_OR_TABLES) == given
    assert read_value("./texts", TEXT_OR_TABLES) == "./texts"
    assert read_value("[odd", TEXT_OR_TABLES) == "[odd"
