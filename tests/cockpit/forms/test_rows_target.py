"""TARGET of `cockpit rows`: a stage of a recipe or of a run, or data."""

from __future__ import annotations

from pathlib import Path

import pytest

from cockpit.forms.rows_target import find_rows
from recipes.problems import OperatorError
from tests.engines.look.looked_at import row, write_data, write_model

TUNE = '[[stage]]\nname = "{name}"\nkind = "finetune"\nmodel = "./model"\ndata = "{data}"\n'
HEAD = 'schema = 1\nname = "x"\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_data(tmp_path / "data", [row("q", "a")])
    return tmp_path


def test_a_recipe_with_one_stage_that_reads_rows_needs_no_name(place: Path) -> None:
    recipe = place / "r.toml"
    recipe.write_text(HEAD + TUNE.format(name="tuned", data="./data"))
    for target in (str(recipe), f"{recipe}:tuned"):
        found = find_rows(target, place / "runs")
        assert (Path(found.job.data), found.job.model) == (place / "data", str(place / "model"))
        assert found.job.prepare is None
    recipe.write_text(recipe.read_text() + TUNE.format(name="more", data="./data"))
    with pytest.raises(OperatorError, match="2 stages that read rows: tuned, more"):
        find_rows(str(recipe), place / "runs")
    with pytest.raises(OperatorError, match="no stage 'other' that reads rows; allowed: tuned, more"):
        find_rows(f"{recipe}:other", place / "runs")


def test_rows_of_a_prepare_stage_are_divided_in_advance_and_a_commands_are_unknown(place: Path) -> None:
    recipe = place / "r.toml"
    prepare = '[[stage]]\nname = "rows"\nkind = "prepare"\noutput = "messages"\n'
    tune = TUNE.format(name="tuned", data="rows")
    recipe.write_text(f'{HEAD}{prepare}data = "./data"\n{tune}')
    found = find_rows(f"{recipe}:tuned", place / "runs")
    assert found.job.prepare is not None
    assert found.job.prepare["name"] == "rows"
    recipe.write_text(f'{HEAD}{prepare}command = ["python", "make.py"]\n{tune}')
    with pytest.raises(OperatorError, match="the output of rows, which does not exist yet"):
        find_rows(f"{recipe}:tuned", place / "runs")


def test_data_is_shown_with_the_tokens_of_a_model_or_without(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    found = find_rows("data", place / "runs", model="model", sets=["max_length=77"])
    assert (found.job.model, found.job.stage["max_length"]) == (str(place / "model"), 77)
    assert find_rows("./data", place / "runs").job.model is None
    with pytest.raises(OperatorError, match="no run 'nothing'"):
        find_rows("nothing:tuned", place / "runs")
