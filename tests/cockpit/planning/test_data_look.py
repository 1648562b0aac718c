"""`check` and a launch look at data in a helper process, and refuse what the engine would refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest

from cockpit.headless.look_lines import look_lines
from cockpit.launching.launch import launch
from cockpit.planning.data_look import data_problems, look_at_data
from cockpit.planning.stages import plan
from engines.data.preparing.command import run_command
from engines.look.answer import Defect, StageLook
from recipes.load import load_recipe, load_recipe_text
from recipes.problems import OperatorError, RecipeError
from tests.cockpit.command_line import CommandLine
from tests.engines.look.looked_at import row, write_data, write_model

RECIPE = """schema = 1
name = "x"
[[stage]]
name = "rows"
kind = "prepare"
output = "messages"
data = "./data/train.jsonl"
val_fraction = 0.2
[[stage]]
name = "tuned"
kind = "finetune"
model = "./model"
data = "rows"
max_length = 96
per_device_train_batch_size = 4
eval_steps = 2
[[stage]]
name = "score"
kind = "evaluate"
model = "./model"
data = "./held-out.jsonl"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_model(tmp_path / "model")
    write_data(tmp_path / "data", [row(f"q{n}", f"a{n}") for n in range(20)])
    (tmp_path / "held-out.jsonl").write_text(row("q", "a") + "\n")
    (tmp_path / "r.toml").write_text(RECIPE)
    return tmp_path


def test_check_shows_what_each_stage_will_read(place: Path) -> None:
    answer = CommandLine(place).json("check", "r.toml", "--json")
    (tuned,) = [stage for stage in answer["plan"]["stages"] if stage["name"] == "tuned"]
    assert (tuned["examples"], tuned["steps"], tuned["evaluations"], tuned["checkpoints"]) == (15, 4, 2, 1)
    looks = {name: msgspec.convert(look, StageLook) for name, look in answer["data"].items()}
    assert looks["tuned"].tokens == tuned["tokens"]
    stages = {stage.name: stage for stage in load_recipe(place / "r.toml").recipe.stage}
    lines = [line for name in ("rows", "tuned", "score") for line in look_lines(looks[name], stages[name])]
    assert "4 steps; evaluations at: 2, 4; checkpoints at: 4" in lines
    for words in ("data of rows:", "data of tuned:", "data of score:"):
        assert words in lines
    assert sum("messages in JSON Lines" in line for line in lines) == 4


def test_defects_of_all_stages_are_located_and_no_run_is_made(place: Path) -> None:
    write_data(place / "data", [row("q", "a"), "{"])
    (place / "held-out.jsonl").write_text('{"messages": []}\n')
    loaded = load_recipe(place / "r.toml")
    found = data_problems(loaded, look_at_data(loaded))
    assert [(problem.line, problem.key) for problem in found] == [(7, "rows.data"), (21, "score.data")]
    assert "train.jsonl:2" in found[0].message
    with pytest.raises(RecipeError, match=r"held-out\.jsonl:1"):
        launch(place / "r.toml", runs_root=place / "runs")
    assert not (place / "runs").exists()


def test_a_helper_that_cannot_run_is_a_warning_and_no_defect(place: Path) -> None:
    broken = place / "python"
    broken.write_text("#!/bin/sh\necho 'no such module' >&2\nexit 3\n")
    broken.chmod(0o700)
    (place / "r.toml").write_text(RECIPE.replace("[[stage]]\n", f"[[stage]]\npython = {json.dumps(str(broken))}\n"))
    loaded = load_recipe(place / "r.toml")
    looks = look_at_data(loaded)
    assert data_problems(loaded, looks) == []
    assert all("could not be examined before the start: no such module" in look.warnings[0] for look in looks.values())
    assert plan(loaded.recipe, loaded.graph, looks).stages[1].steps is None


ONE_STAGE = 'schema = 1\nname = "x"\n[[stage]]\nname = "tuned"\nkind = "finetune"\nmodel = "./m"\ndata = "./d"\n'


def test_rows_with_the_same_defect_are_shown_three_times_and_then_listed(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "d").mkdir()
    loaded = load_recipe_text(ONE_STAGE, tmp_path / "recipe.toml")
    same = [Defect("data", f"/d/train.jsonl:{number}: a turn has no content", "see") for number in range(1, 9)]
    other = Defect("data", "/d/train.jsonl:5: not JSON", "see")
    found = data_problems(loaded, {"tuned": StageLook("tuned", defects=[*same[:4], other, *same[4:]], more_defects=7)})
    assert [problem.message for problem in found] == [
        *(f"/d/train.jsonl:{number}: a turn has no content" for number in (1, 2, 3)),
        "5 more rows for the same reason: train.jsonl:4, train.jsonl:5, train.jsonl:6, train.jsonl:7, train.jsonl:8",
        "/d/train.jsonl:5: not JSON",
        "and 7 more rows",
    ]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["python", "nofile.py"], "'nofile.py' does not exist in"),
        (["python3", "-u", "-W", "ignore", "no/file.py", "-c"], "'no/file.py' does not exist in"),
        (["no-such-program-here"], "'no-such-program-here' is not a program on this machine"),
        (["./make.py"], "'./make.py' is not a program on this machine"),
        (["python", "-m", "nofile"], "-m finds no module 'nofile'"),
        (["python", "-u", "-m", "nofile.part"], "-m finds no module 'nofile.part'"),
        (["python", "-m", "json.tool"], ""),
        (["python", "-m", "make"], ""),
        (["python3.11", "-m", "nofile"], ""),
        (["python", "-Ic", "print(1)"], ""),
        (["python", "make.py", "nofile.txt"], ""),
        (["ls", "nofile"], ""),
    ],
)
def test_a_command_whose_program_or_script_is_missing_is_a_problem_before_the_start(
    tmp_path: Path, command: list[str], words: str
) -> None:
    (tmp_path / "make.py").write_text("")  # not executable
    stage = '[[stage]]\nname = "rows"\nkind = "prepare"\noutput = "messages"\n'
    text = f'schema = 1\nname = "x"\n{stage}command = {command}\n'
    loaded = load_recipe_text(text, tmp_path / "recipe.toml")
    found = data_problems(loaded, look_at_data(loaded))
    assert [(one.line, one.key, words in one.message) for one in found] == [(7, "rows.command", True)] * bool(words)
    if words:
        with pytest.raises(OperatorError, match=re.escape(words)):
            run_command(command, tmp_path, tmp_path, lambda _bytes: None)
