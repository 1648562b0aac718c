from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cockpit.one_stage.from_words import export_text, merge_text, stage_sets
from cockpit.one_stage.recipe import OneStageRecipe
from engines.events.runs import RunEnded, RunStarted, StageStarted, StageSucceeded
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason
from recipes.load import load_recipe_text
from recipes.problems import OperatorError
from tests.tui.journals import Journal


def stage_of(made: OneStageRecipe, folder: Path) -> dict[str, Any]:
    """The made recipe's one stage, as a launch would resolve it."""
    (stage,) = load_recipe_text(made.text, folder / "recipe.toml").resolved["stage"]
    return dict(stage)


def finished_run(root: Path) -> RunDir:
    """A run with a finished model `base` and a finished adapter `tuned`."""
    run = RunDir(root / "20261120-2130-csdl")
    journal = Journal()
    journal.open("s", "supervisor")
    kinds = {"base": "pretrain", "tuned": "finetune"}
    journal.say(
        "s",
        RunStarted(
            run=run.id, recipe="csdl", reason=StartReason.LAUNCH, stages=list(kinds), kinds=list(kinds.values())
        ),
    )
    for stage, kind in kinds.items():
        run.out(stage).mkdir(parents=True)
        run.attempt_dir(stage, 1).mkdir()
        journal.say("s", StageStarted(stage=stage, kind=kind), after_s=1.0)
        journal.open(f"e-{stage}", "engine", stage, 1)
        journal.say(
            f"e-{stage}", StageSucceeded(stage=stage, attempt=1, fingerprint="f", manifest_sha256="abc"), after_s=1.0
        )
    journal.say("s", RunEnded(state=RunStatus.SUCCEEDED), after_s=1.0)
    inputs = {"model": {"origin": "stage", "name": "base", "path": str(run.out("base")), "manifest_sha256": "abc"}}
    run.stage_json("tuned", 1).write_text(json.dumps({"inputs": inputs}))
    run.run_json.write_text(json.dumps({"format": 1, "id": run.id, "recipe": "csdl"}))
    journal.write(run.root)
    return run


def test_a_merge_of_a_runs_adapter_knows_its_base_and_its_parent(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    made = merge_text(tmp_path, ["last:tuned"], None, None)
    stage = stage_of(made, tmp_path)
    assert made.parent == run.id
    assert (stage["kind"], stage["model"], stage["adapter"]) == ("merge", str(run.out("base")), str(run.out("tuned")))


def test_an_export_of_a_runs_model_names_the_requested_file_types(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    made = export_text(tmp_path, f"{run.id}:base", "F16, Q6_K", None)
    stage = stage_of(made, tmp_path)
    assert made.parent == run.id
    assert (stage["kind"], stage["model"], stage["file_types"]) == ("export", str(run.out("base")), ["F16", "Q6_K"])
    with pytest.raises(OperatorError, match="Q7"):
        stage_of(export_text(tmp_path, "last:base", "Q7", None), tmp_path)


def test_a_run_alone_means_its_only_result_of_the_kind(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    assert stage_of(export_text(tmp_path, "last", None, None), tmp_path)["model"] == str(run.out("base"))
    assert stage_of(merge_text(tmp_path, [run.id[:9]], None, None), tmp_path)["adapter"] == str(run.out("tuned"))
    run.out("base").rename(run.out("base").with_name("moved"))
    stage = stage_of(merge_text(tmp_path, ["last"], str(tmp_path), None), tmp_path)
    assert stage["adapter"] == str(run.out("tuned"))
    with pytest.raises(OperatorError, match="has 0 finished results of the kind model"):
        merge_text(tmp_path, ["last"], "last", None)


def test_folders_have_no_parent_and_an_adapter_may_name_its_base(tmp_path: Path) -> None:
    base, adapter = tmp_path / 'my "base" model', tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    with pytest.raises(OperatorError, match="--model"):
        merge_text(tmp_path, [str(adapter)], None, None)
    (adapter / "base.json").write_text(json.dumps({"path": str(base), "manifest_sha256": None}))
    made = merge_text(tmp_path, [str(adapter)], None, "bfloat16")
    stage = stage_of(made, tmp_path)
    assert (made.parent, stage["model"], stage["dtype"]) == ("", str(base), "bfloat16")
    assert stage_of(export_text(tmp_path, str(base), None, None), tmp_path)["model"] == str(base)


@pytest.mark.parametrize("wanted", ["last:base", "last:nosuch", "nosuch:tuned", "./nowhere", "nowhere"])
def test_an_input_that_is_not_an_adapter_is_refused(tmp_path: Path, wanted: str) -> None:
    finished_run(tmp_path)
    with pytest.raises(OperatorError):
        merge_text(tmp_path, [wanted], None, None)


def adapters_of(tmp_path: Path, *bases: dict[str, Any] | None) -> list[str]:
    folders = []
    for number, base in enumerate(bases):
        folder = tmp_path / f"adapter-{number}"
        folder.mkdir()
        if base is not None:
            (folder / "base.json").write_text(json.dumps(base))
        folders.append(str(folder))
    return folders


def test_several_adapters_are_merged_together_with_weights(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    base = {"path": str(tmp_path / "base"), "manifest_sha256": "aa"}
    folders = adapters_of(tmp_path, base, None, base)
    made = merge_text(tmp_path, folders, None, None)
    text = load_recipe_text(made.text, tmp_path / "recipe.toml", stage_sets("merged", ["weights=[0.5, 0.25, 1.0]"]))
    stage = text.recipe.stage[0].model_dump()
    assert stage["adapters"] == folders
    assert stage["weights"] == [0.5, 0.25, 1.0]
    assert stage["model"] == str(tmp_path / "base")


def test_adapters_of_different_bases_are_refused_with_both(tmp_path: Path) -> None:
    one, two = ({"path": f"/base-{name}", "manifest_sha256": name} for name in ("aa", "bb"))
    with pytest.raises(OperatorError, match=r"trained on /base-aa, .*adapter-1 on /base-bb"):
        merge_text(tmp_path, adapters_of(tmp_path, one, two), None, None)


def test_all_missing_adapters_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(OperatorError) as caught:
        merge_text(tmp_path, ["./one", "./two"], "./three", None)
    assert all(name in str(caught.value) for name in ("./one", "./two", "./three"))


def test_an_export_takes_an_adapter_to_merge_or_adapters_to_write(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    one, two = adapters_of(tmp_path, None, None)
    stage = stage_of(export_text(tmp_path, str(tmp_path / "base"), None, None, adapter=one), tmp_path)
    assert stage["adapter"] == one
    stage = stage_of(export_text(tmp_path, str(tmp_path / "base"), None, None, adapters=[one, two]), tmp_path)
    assert stage["adapters"] == [one, two]


def test_an_export_of_an_adapter_merges_it_on_the_way(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    stage = stage_of(export_text(tmp_path, "last:tuned", "F16", None), tmp_path)
    assert (stage["model"], stage["adapter"]) == (str(run.out("base")), str(run.out("tuned")))
    (tmp_path / "base").mkdir()
    (folder,) = adapters_of(tmp_path, {"path": str(tmp_path / "base"), "manifest_sha256": None})
    (Path(folder) / "adapter_config.json").write_text("{}")
    stage = stage_of(export_text(tmp_path, folder, None, None), tmp_path)
    assert (stage["model"], stage["adapter"]) == (str(tmp_path / "base"), folder)
    with pytest.raises(OperatorError, match="MODEL is an adapter itself"):
        export_text(tmp_path, folder, None, None, adapter=folder)
    with pytest.raises(OperatorError, match="nosuch"):
        export_text(tmp_path, "last:nosuch", None, None)


def test_an_adapter_without_its_base_model_is_refused_before_a_run_is_created(tmp_path: Path) -> None:
    run = finished_run(tmp_path)
    run.out("base").rmdir()
    for make in (
        lambda: merge_text(tmp_path, ["last:tuned"], None, None),
        lambda: export_text(tmp_path, "last:tuned", None, None),
    ):
        with pytest.raises(OperatorError, match=r"does not exist: .*stages/base/out") as caught:
            make()
        assert "cockpit resume" in caught.value.hint
