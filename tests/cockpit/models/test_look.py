"""The list of models says what is there and what can be done with it, whatever the folders contain."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.models.look import kind_of, look
from cockpit.models.places import Search
from engines.words import ExitCode

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64, "hidden_act": "silu", "torch_dtype": "bfloat16", "tie_word_embeddings": True,
    "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def safetensors(file: Path, shape: Any = (4, 8)) -> None:
    header = json.dumps({"w": {"dtype": "BF16", "shape": shape, "data_offsets": [0, 64]}}).encode()
    file.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))


def model(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**LLAMA, **fields}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    safetensors(folder / "model.safetensors")
    return folder


def test_a_model_folder_is_described_by_its_small_files(tmp_path: Path) -> None:
    found = look("m", model(tmp_path / "m"))
    assert (found.kind, found.family, found.parameters, found.dtype) == ("model", "LlamaForCausalLM", 32, "bfloat16")
    assert (found.template, found.licence, found.problem) == (True, "apache-2.0", "")
    assert found.size_bytes == sum(file.stat().st_size for file in (tmp_path / "m").iterdir())
    assert found.uses == {"finetune": "", "qlora": "", "export": "", "evaluate": ""}


@pytest.mark.parametrize(
    ("fields", "use", "reason"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "finetune", "does not generate text"),
        ({"quantization_config": {"quant_method": "gptq"}}, "qlora", "quantized weights (gptq)"),
        ({"quantization_config": {"quant_method": "gptq"}}, "export", "quantized weights (gptq)"),
        ({"architectures": ["OddForCausalLM"]}, "export", "architectures"),
        ({"architectures": ["OddForCausalLM"], "auto_map": {"A": "x.OddForCausalLM"}}, "evaluate", "code of its own"),
        ({"hidden_size": 10**30}, "evaluate", "hidden_size"),
    ],
)
def test_what_cannot_be_done_has_the_reason_of_the_stage_that_refuses_it(
    tmp_path: Path, fields: dict[str, Any], use: str, reason: str
) -> None:
    assert reason in look("m", model(tmp_path / "m", **fields)).uses[use]


def test_an_adapter_is_no_model_to_train(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
    )
    safetensors(folder / "adapter_model.safetensors")
    found = look("a", folder)
    assert (found.kind, found.family, found.parameters) == ("adapter", "over org/base", 32)
    assert [use for use, against in found.uses.items() if not against] == ["export", "evaluate"]


def hostile(folder: Path) -> None:
    model(folder / "cut").joinpath("model.safetensors").write_bytes(b"\xff" * 20)
    model(folder / "huge", num_hidden_layers=2)
    safetensors(folder / "huge" / "model.safetensors", [10**300, 10**300])
    model(folder / "deep").joinpath("config.json").write_text("[" * 100_000)
    model(folder / "words").joinpath("config.json").write_text('{"architectures": [{"\\u001b[31m": 1}]}')
    (folder / "deep.gguf").write_bytes(b"GGUF" + b"\xff" * 60)
    os.mkfifo(folder / "pipe.gguf")
    model(folder / "pipe").joinpath("README.md").unlink()
    os.mkfifo(folder / "pipe" / "README.md")
    (folder / "loop").symlink_to(folder)
    model(folder / "list").joinpath("tokenizer_config.json").write_text("[1]")
    (folder / "list" / "chat_template.jinja").unlink()


def test_a_hostile_folder_is_listed_with_its_problem_and_nothing_hangs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile(tmp_path)
    assert main(["models", str(tmp_path), "--why"]) == ExitCode.DONE
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert f"{tmp_path}/deep.gguf: cannot be read" in said
    assert main(["models", str(tmp_path), "--json"]) == ExitCode.DONE
    found = {Path(one["path"]).name: one for one in json.loads(capsys.readouterr().out)["models"]}
    assert found.keys() == {"cut", "huge", "deep", "words", "deep.gguf", "pipe", "list"}
    assert found["huge"]["parameters"] is None
    assert all(found[name]["problem"] for name in ("deep", "deep.gguf", "list"))


def test_the_cache_lists_each_revision_by_the_id_that_a_recipe_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "hub" / "models--org--name"
    for commit in ("a" * 40, "b" * 40):
        model(home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("b" * 40)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("COCKPIT_MODELS", str(tmp_path / "none"))
    assert main(["--runs-dir", str(tmp_path / "runs"), "models", "--json"]) == ExitCode.DONE
    found = json.loads(capsys.readouterr().out)["models"]
    assert [one["name"] for one in found] == ["org/name", f"org/name@{'a' * 40}"]
    assert found[1]["revision"] == "a" * 40


def test_a_search_has_a_bound_and_says_that_it_was_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        (tmp_path / f"f{number:02d}" / "inner").mkdir(parents=True)
    model(tmp_path / "f19" / "inner" / "m")
    monkeypatch.setattr("cockpit.models.places.MAX_FOLDERS", 10)
    search = Search()
    search.folders([tmp_path])
    assert (search.found, search.whole) == ([], False)
    assert kind_of(tmp_path / "f19" / "inner" / "m") == "model"
