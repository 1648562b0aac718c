"""`cockpit run --from RUN:STAGE`, and RUN:STAGE as an input in a recipe."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cockpit.launching.launch import launch
from cockpit.launching.run_outputs import outputs_in
from cockpit.launching.start_from import recipe_from
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.artifacts.custody import ancestors
from engines.artifacts.manifest import manifest_sha256, read_manifest
from engines.run_dir.paths import RunDir
from engines.stage_file import read_stage_inputs
from recipes.load import load_recipe_text
from recipes.problems import OperatorError, RecipeError
from tests.runs.harness import fake_recipe, launch_text, state, wait_for_end

BOTH = fake_recipe(
    {"max_steps": 6, "step_s": 0.0, "save_steps": 3},
    {"max_steps": 2, "step_s": 0.0, "data": "part-1", "retry": {"max_attempts": 2}},
)


@pytest.fixture
def first(tmp_path: Path) -> RunDir:
    run = launch_text(BOTH, tmp_path)
    assert wait_for_end(run) == "succeeded"
    return run


def run_from(tmp_path: Path, wanted: str, checkpoint: int | None = None, *sets: str) -> RunDir:
    root = tmp_path / "runs"
    loaded, origin = recipe_from(root, wanted, checkpoint, sets)
    run = launch(loaded, runs_root=root, parent=origin.id)
    assert wait_for_end(run) == "succeeded"
    return run


def steps(run: RunDir, stage: str = "part-1") -> list[float]:
    return list(state(run).series(stage, "loss").x)


def test_a_checkpoint_is_continued_in_a_new_run_with_what_depends_on_it(tmp_path: Path, first: RunDir) -> None:
    run = run_from(tmp_path, f"{first.id}:part-1", 3, "part-1.max_steps=8")
    assert steps(run) == [4, 5, 6, 7, 8]
    assert steps(run, "part-2") == [1, 2]
    assert run.read_run_json()["parent"] == first.id
    checkpoint = first.checkpoint("part-1", 1, 3)
    known = {link["id"] for link in ancestors(read_manifest(run.out("part-1")))}
    assert manifest_sha256(checkpoint) in known, "custody leads to the checkpoint"


def test_a_finished_output_starts_a_new_training(tmp_path: Path, first: RunDir) -> None:
    run = run_from(tmp_path, "last:part-1", None, "part-1.max_steps=4", "part-1.seed=7")
    assert steps(run) == [1, 2, 3, 4]
    assert RunRecipe.read(run).inputs["part-1"]["start_from"].manifest_sha256 == manifest_sha256(first.out("part-1"))


def test_the_last_stage_alone_reads_the_other_stages_of_the_first_run(tmp_path: Path, first: RunDir) -> None:
    run = run_from(tmp_path, f"{first.id}:part-2", None, "part-2.max_steps=3")
    assert [stage.name for stage in RunRecipe.read(run).recipe.stage] == ["part-2"]
    given = read_stage_inputs(run.stage_json("part-2", 1))["data"]
    assert (given.path, given.manifest_sha256) == (str(first.out("part-1")), manifest_sha256(first.out("part-1")))
    assert f'data = "{first.id}:part-1"' in run.recipe_toml.read_text()
    assert "retry.max_attempts = 2" in run.recipe_toml.read_text(), "the values of the first run are kept"


def with_a_stage_left_out(tmp_path: Path) -> RunDir:
    """A run of its first stage alone; its last stage also reads a stage that was left out."""
    text = fake_recipe(*({"max_steps": 2, "step_s": 0.0} for _ in range(3)))
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace('name = "part-3"', 'name = "part-3"\ndata = "part-1"\nstart_from = "part-2"'))
    run = launch(path, runs_root=tmp_path / "runs", only=["part-1"])
    assert wait_for_end(run) == "succeeded"
    return run


def test_with_stage_nothing_is_asked_of_the_stages_that_it_leaves_out(tmp_path: Path) -> None:
    first = with_a_stage_left_out(tmp_path)
    loaded, _ = recipe_from(tmp_path / "runs", f"{first.id}:part-1", None, ["part-1.max_steps=3"], "part-1")
    assert [stage.name for stage in loaded.recipe.stage] == ["part-1"]
    run = launch(loaded, runs_root=tmp_path / "runs", only=["part-1"], parent=first.id)
    assert wait_for_end(run) == "succeeded"
    assert steps(run) == [1, 2, 3]


def test_an_input_that_is_missing_is_named_without_a_file_that_does_not_exist(tmp_path: Path) -> None:
    first = with_a_stage_left_out(tmp_path)
    with pytest.raises(OperatorError) as caught:
        recipe_from(tmp_path / "runs", "last:part-1", None, ["part-1.lerning_rate=1"])
    words = caught.value.message
    assert f"--from last:part-1: part-3.start_from — {first.id}:part-2 has no finished output" in words
    assert "recipe.toml" not in words
    assert "--stage STAGE" in caught.value.hint
    with pytest.raises(OperatorError, match="--stage — part-2 does not depend on part-1, which --from names; allowed"):
        recipe_from(tmp_path / "runs", "last:part-1", None, [], "part-2")


@pytest.mark.parametrize(
    ("wanted", "checkpoint", "sets", "message"),
    [
        ("last", None, [], "--from — got last; allowed: RUN:STAGE"),
        ("last:nothing", None, [], "has no stage nothing; allowed: part-1, part-2"),
        ("nobody:part-1", None, [], "no run 'nobody'"),
        ("last:part-1", 5, [], "no complete checkpoint of step 5"),
        ("last:part-1", 3, ["part-1.seed=3"], "part-1.seed — it changes which examples"),
        ("last:part-1", None, ["part-1.lerning_rate=3"], "no such field"),
    ],
)
def test_what_cannot_be_started_from_is_refused_by_name(
    wanted: str, checkpoint: int | None, sets: list[str], message: str, tmp_path: Path, first: RunDir
) -> None:
    with pytest.raises(OperatorError) as caught:
        recipe_from(tmp_path / "runs", wanted, checkpoint, sets)
    assert message in f"{caught.value} {caught.value.hint}"
    assert first.root.is_dir()


def recipe_with(data: str) -> str:
    return fake_recipe({"max_steps": 1, "step_s": 0.0, "data": data})


def test_run_stage_in_a_recipe_is_resolved_to_a_folder_and_its_manifest(tmp_path: Path, first: RunDir) -> None:
    run = launch_text(recipe_with(f"{first.id}:part-2"), tmp_path)
    assert wait_for_end(run) == "succeeded"
    given = read_stage_inputs(run.stage_json("part-1", 1))["data"]
    assert given.path == str(first.out("part-2"))
    assert given.manifest_sha256 == manifest_sha256(first.out("part-2"))
    assert given.name == f"{first.id}:part-2"
    assert run.read_run_json()["parent"] == first.id


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("nobody:part-1", "no run 'nobody' among"),
        ("last:nothing", "stages: part-1, part-2"),
        ("last:part-1@5", "available: 3, 6"),
    ],
)
def test_a_run_stage_that_does_not_exist_is_an_error_of_its_line(
    value: str, message: str, tmp_path: Path, first: RunDir
) -> None:
    path = tmp_path / "r.toml"
    text = recipe_with(value)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if row.startswith("data"))
    with pytest.raises(RecipeError) as caught:
        load_recipe_text(text, path, (), outputs_in(tmp_path / "runs"))
    assert str(caught.value).startswith(f"{path}:{line}  part-1.data — ")
    assert message in str(caught.value)
    assert f'got "{value}"; allowed RUN:STAGE' in str(caught.value)
    assert first.root.is_dir()


def test_an_output_of_the_wrong_kind_is_an_error_of_its_line(tmp_path: Path, first: RunDir) -> None:
    text = 'schema = 1\nname = "x"\n[[stage]]\nname = "merged"\nkind = "merge"\nmodel = "a/b"\n'
    with pytest.raises(RecipeError, match=r"r.toml:7  merged.adapter — .* has the wrong type of output; got fake"):
        load_recipe_text(
            f'{text}adapter = "{first.id}:part-1"\n', tmp_path / "r.toml", (), outputs_in(tmp_path / "runs")
        )


def test_an_output_that_a_rerun_replaced_is_still_the_one_that_was_named(tmp_path: Path, first: RunDir) -> None:
    run = launch_text(recipe_with(f"{first.id}:part-2"), tmp_path)
    assert wait_for_end(run) == "succeeded"
    named = manifest_sha256(first.out("part-2"))
    first.out("part-2").rename(first.stage_dir("part-2") / "out.1")
    shutil.copytree(first.out("part-1"), first.out("part-2"))
    given = RunRecipe.read(run).stage_inputs(run, "part-1")["data"]
    assert (given.path, given.manifest_sha256) == (str(first.stage_dir("part-2") / "out.1"), named)


def test_an_output_that_was_removed_fails_the_stage_with_its_name(tmp_path: Path, first: RunDir) -> None:
    text = fake_recipe(
        {"max_steps": 1, "step_s": 0.0, "data": f"{first.id}:part-2"}, {"max_steps": 1, "data": "part-1"}
    )
    run = launch_text(text, tmp_path)
    assert wait_for_end(run) == "succeeded"
    shutil.rmtree(first.out("part-2"))
    shutil.rmtree(run.out("part-1"))
    from cockpit.launching.launch import resume

    resume(run)
    assert wait_for_end(run) == "failed"
    assert f"part-1.data — {first.id}:part-2 is not found" in state(run).reason


def test_recipe_json_of_a_run_without_other_runs_is_as_in_older_versions(first: RunDir) -> None:
    refs = json.loads(first.recipe_json.read_text())["inputs"]["part-2"]
    assert refs == {"data": {"origin": "stage", "name": "part-1", "path": None}}
