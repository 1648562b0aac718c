"""Adapters of several runs are exported together: each name comes from run and stage, and none is used twice."""

from __future__ import annotations

from pathlib import Path

from engines.artifacts.manifest import write_manifest
from engines.context import Input
from exporters.stages.adapter_names import adapter_names


def of_run(root: Path, run: str, stage: str, step: int | None = None) -> tuple[Input, Path]:
    folder = root / run / "stages" / stage / ("out" if step is None else f"1/checkpoints/step-{step}")
    folder.mkdir(parents=True)
    write_manifest(folder, run=run, stage=stage, **({} if step is None else {"step": step}))
    return Input("adapters[0]", "path", str(folder), folder), folder


def foreign(root: Path, name: str) -> tuple[Input, Path]:
    folder = root / name
    folder.mkdir(parents=True)
    return Input("adapters[0]", "path", str(folder), folder), folder


def test_one_adapter_has_the_name_of_its_stage_and_not_of_its_folder(tmp_path: Path) -> None:
    assert adapter_names([of_run(tmp_path, "20261120-2130-atlas", "tuned")]) == ["tuned"]


def test_the_same_stage_of_three_recipes_has_the_recipe_in_its_name(tmp_path: Path) -> None:
    runs = [of_run(tmp_path, f"20261120-213{n}-{name}", "tuned") for n, name in enumerate(("style", "facts", "code"))]
    assert adapter_names(runs) == ["style-tuned", "facts-tuned", "code-tuned"]


def test_the_same_stage_of_three_runs_of_a_recipe_has_the_run_in_its_name(tmp_path: Path) -> None:
    runs = [of_run(tmp_path, f"20261120-213{n}-atlas", "tuned") for n in range(3)]
    assert adapter_names(runs) == [f"20261120-213{n}-atlas-tuned" for n in range(3)]


def test_checkpoints_of_one_stage_have_their_steps(tmp_path: Path) -> None:
    steps = [of_run(tmp_path, "20261120-2130-atlas", "tuned", step) for step in (100, 200)]
    assert adapter_names(steps) == ["tuned-100", "tuned-200"]


def test_folders_of_one_name_have_the_folder_above_in_their_names(tmp_path: Path) -> None:
    assert adapter_names([foreign(tmp_path, "a/lora"), foreign(tmp_path, "b/lora"), foreign(tmp_path, "other")]) == [
        "a-lora",
        "b-lora",
        "other",
    ]


def test_the_same_folder_twice_and_names_that_differ_only_in_signs_are_still_told_apart(tmp_path: Path) -> None:
    one = of_run(tmp_path, "20261120-2130-atlas", "tuned")
    first, second = adapter_names([one, one])
    assert first != second
    names = adapter_names([foreign(tmp_path, "x/a.b"), foreign(tmp_path, "x/a-b")])
    assert len({name.lower().replace("-", "_").replace(".", "_") for name in names}) == 2
