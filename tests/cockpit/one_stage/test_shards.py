"""A checkpoint in shards is no model: what reads whole weights refuses it, and names the command that writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cockpit.models.look import kind_of
from cockpit.one_stage.fits import WHY_SHARDS, why_no_export
from cockpit.one_stage.sources import Source
from cockpit.planning.base_check import check_base
from cockpit.talking.model_place import model_place
from engines.words import RunStatus
from exporters.hf_model.tensor_files import SafetensorsFolder
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneStage


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "step-8"
    (folder / "shards").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "shards/shards.json"):
        (folder / name).write_text("{}")
    (folder / "shards" / "shard-00001-of-00001.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    "read",
    [
        lambda folder: check_base(folder, FinetuneStage(name="a", kind="finetune", model="x", data="y")),
        lambda folder: model_place(str(folder), folder),
        SafetensorsFolder,
    ],
)
def test_a_checkpoint_in_shards_is_refused_with_the_command(checkpoint: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(OperatorError, match="is a checkpoint in shards") as refused:
        read(checkpoint)
    assert f"cockpit consolidate {checkpoint} --out FOLDER" in str(refused.value.hint)


def test_lists_of_models_and_buttons_know_that_it_is_none(checkpoint: Path) -> None:
    assert kind_of(checkpoint) == ""
    source = Source("model", "base", checkpoint, "", 8, 1)
    assert why_no_export(RunStatus.SUCCEEDED, source) == WHY_SHARDS
