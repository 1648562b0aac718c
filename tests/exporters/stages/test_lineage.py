"""The name of an export's files: from the base model and the runs that trained it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from engines.artifacts.custody import Parent, custody_of
from engines.artifacts.manifest import manifest_sha256, write_manifest
from engines.context import Input
from engines.llama.gguf_file import read_gguf
from exporters.stages.lineage import folder_name, hub_id, lineage_of
from recipes.stages.export import ExportStage
from tests.exporters.exporting import export
from tests.exporters.small_models import copy_folder


def made(folder: Path, run: str, stage: str, kind: str, *parents: Path) -> Path:
    """A finished output of a stage."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    custody = custody_of([Parent(path.name, path) for path in parents])
    write_manifest(folder, run=run, stage=stage, kind=kind, attempt=1, custody=custody)
    return folder


def item(field: str, folder: Path) -> Input:
    sha256 = manifest_sha256(folder) if (folder / "manifest.json").exists() else None
    return Input(field, "path", folder.name, folder, None, sha256)


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Path]:
    """A base from elsewhere, data, an adapter that a run trained, and its merge in another run."""
    for name in ("SmolLM2-135M-Instruct", "questions"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    base, data = tmp_path / "SmolLM2-135M-Instruct", tmp_path / "questions"
    tuned = made(tmp_path / "a/stages/tuned/out", "20261120-2130-assistant", "tuned", "finetune", base, data)
    merged = made(tmp_path / "b/stages/merged/out", "20261121-0900-assistant-merged", "merged", "merge", base, tuned)
    return {"base": base, "tuned": tuned, "merged": merged}


def test_a_merged_model_is_named_after_its_base_and_the_run_that_trained_it(trained: dict[str, Path]) -> None:
    found = lineage_of({"model": item("model", trained["merged"])})
    assert (found.base, found.trained) == ("SmolLM2-135M-Instruct", ("assistant",))


def test_merging_while_writing_gives_the_same_name(trained: dict[str, Path]) -> None:
    found = lineage_of({"model": item("model", trained["base"]), "adapter": item("adapter", trained["tuned"])})
    assert (found.base, found.trained) == ("SmolLM2-135M-Instruct", ("assistant",))


def test_a_model_pretrained_here_is_named_after_its_run_without_the_time(tmp_path: Path) -> None:
    first = made(tmp_path / "r/stages/base/out", "20261120-2130-demo", "base", "pretrain")
    tuned = made(tmp_path / "r/stages/tuned/out", "20261120-2130-demo", "tuned", "finetune", first)
    merged = made(tmp_path / "r/stages/merged/out", "20261120-2130-demo", "merged", "merge", first, tuned)
    found = lineage_of({"model": item("model", merged)})
    assert (found.base, found.trained) == ("demo", ())


def test_a_folder_without_a_name_of_its_own_takes_the_one_above(tmp_path: Path) -> None:
    cached = tmp_path / "models--HuggingFaceTB--SmolLM2-135M" / "snapshots" / "0f3a"
    assert (folder_name(cached), hub_id(cached)) == ("SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M")
    assert folder_name(tmp_path / "tiny" / "merged") == "tiny"
    assert folder_name(tmp_path / "tiny" / "checkpoint-500") == "tiny"
    assert folder_name(tmp_path / "tiny") == "tiny"


def test_an_export_names_its_files_and_says_the_parts_of_the_name_in_them(base: Path, tmp_path: Path) -> None:
    folder = copy_folder(base, tmp_path / "Smol-Instruct")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nbase_model:\n- org/smol\n---\n# Smol\n")
    ctx, _ = export(tmp_path, folder, "F16", parity_positions=0, file_name=None)
    (path,) = ctx.out.glob("*.gguf")
    size = re.fullmatch(r"Smol-(\d+K|\d\.\dM)-Instruct-F16\.gguf", path.name)
    assert size, path.name
    file = read_gguf(path)
    facts = {key: file.scalar(f"general.{key}") for key in ("name", "basename", "finetune", "size_label", "license")}
    assert facts == {
        "name": f"Smol-{size[1]}-Instruct", "basename": "Smol", "finetune": "Instruct", "size_label": size[1],
        "license": "apache-2.0",
    }  # fmt: skip


def test_an_operator_names_the_files(base: Path, tmp_path: Path) -> None:
    ctx, _ = export(tmp_path, base, "F16", parity_positions=0, file_name="my.model-v2")
    assert [path.name for path in ctx.out.glob("*.gguf")] == ["my.model-v2-F16.gguf"]


@pytest.mark.parametrize("wrong", ["", "a/b", "../x", "-x", "x.gguf", "a b", "x" * 121])
def test_a_name_that_is_no_part_of_a_file_name_is_refused(wrong: str) -> None:
    stage: dict[str, Any] = {"name": "x", "kind": "export", "model": "m", "file_name": wrong}
    with pytest.raises(ValueError, match=r"file_name — not the beginning of a file's name"):
        ExportStage.model_validate(stage)
