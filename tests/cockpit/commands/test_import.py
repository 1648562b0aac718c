"""`cockpit import` as an operator uses it: where the recipe goes, what the report says, which exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cockpit.cli import main
from engines.words import ExitCode
from recipes.load import load_recipe_text
from tests.cockpit.importing.configurations import LLAMA_FACTORY, registry


@pytest.fixture
def config(tmp_path: Path) -> Path:
    registry(tmp_path, pets={"file_name": "pets.json"})
    path = tmp_path / "tiny lora.yaml"
    path.write_text(LLAMA_FACTORY + "mine: 1\n")
    return path


def test_the_recipe_is_the_output_and_the_report_a_diagnostic(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(config)]) == ExitCode.DONE
    out, err = capsys.readouterr()
    assert load_recipe_text(out, config.parent / "recipe.toml").recipe.name == "tiny-lora"
    for key in ("lora_rank", "quantization_bit", "logging_steps", "resume_from_checkpoint", "mine", "lora_alpha"):
        assert key in err


def test_a_file_for_the_recipe_is_written_once_and_never_replaced(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = config.with_name("mine.toml")
    assert main(["import", str(config), "--out", str(out)]) == ExitCode.DONE
    assert f"cockpit check {out}" in capsys.readouterr().out
    text = out.read_text()
    assert main(["import", str(config), "--out", str(out)]) == ExitCode.MISTAKE
    assert out.read_text() == text


def test_without_a_recipe_the_exit_code_is_1_and_nothing_is_written(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(LLAMA_FACTORY.replace("stage: sft", "stage: ppo"))
    out = config.with_name("mine.toml")
    assert main(["import", str(config), "--out", str(out)]) == ExitCode.FAILED
    assert not out.exists()
    assert ":6  stage" in capsys.readouterr().out


def test_json_has_every_key_with_its_line_status_and_fields(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["import", str(config), "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)
    keys = {one["key"]: one for one in found["keys"]}
    assert (
        keys["lora_rank"] | {"line": 9, "value": 12, "status": "imported", "fields": ["tuned.r"]} == keys["lora_rank"]
    )
    assert keys["mine"]["status"] == "unknown"
    assert found["ok"] is True
    assert found["recipe"].startswith("# Imported")


def test_data_sets_of_a_registry_are_chosen_by_name(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(config.parent / "data" / "dataset_info.json")
    assert main(["import", path, "--dataset", "pets"]) == ExitCode.DONE
    assert 'name = "pets"' in capsys.readouterr().out
    assert main(["import", path, "--dataset", "pet"]) == ExitCode.MISTAKE
    assert "did you mean pets?" in capsys.readouterr().err
