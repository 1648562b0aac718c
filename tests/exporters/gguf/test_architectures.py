"""The rows of model families: each is true to transformers and to llama.cpp, and new shapes of a family need only a
row."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from engines.llama.gguf_file import read_gguf
from exporters.gguf.metadata import model_keys
from exporters.gguf.quant_types import model_shapes
from exporters.gguf.write import read_model, write_gguf
from exporters.hf_model import architectures
from exporters.hf_model.architectures import ARCHITECTURES, LLAMA, Architecture, change_settings, language_settings
from exporters.hf_model.tensor_files import SafetensorsFolder
from exporters.lora.merged_weights import MergedWeights
from exporters.proof.audit_families import FAMILIES
from exporters.proof.audit_keys import audit_keys
from recipes.problems import OperatorError
from tests.exporters.small_models import build_model, copy_folder

pytestmark = pytest.mark.torch
EVERY_ROW = pytest.mark.parametrize(("family", "row"), ARCHITECTURES.items(), ids=ARCHITECTURES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            folder = tmp_path_factory.mktemp("model")
            made[family] = build_model(
                folder, tokenizer, family=family.removesuffix("ForCausalLM"), sliding_window=None
            )
        return made[family]

    return of


def test_the_audit_knows_the_families_that_are_written() -> None:
    assert {name: known.name for name, known in FAMILIES.items()} == {n: row.name for n, row in ARCHITECTURES.items()}


@EVERY_ROW
def test_a_row_has_the_tensors_that_transformers_gives_its_models(
    family: str, row: Architecture, model: Callable[[str], Path]
) -> None:
    folder = model(family)
    config = json.loads((folder / "config.json").read_text())
    places, found = row.tensors(config), SafetensorsFolder(folder).tensors
    assert {name for name, place in places.items() if not place.optional} <= set(found) <= set(places)
    assert {name: info.shape for name, info in found.items()} == {name: places[name].shape for name in found}


@EVERY_ROW
def test_a_row_names_tensors_as_llama_cpp_does(family: str, row: Architecture, model: Callable[[str], Path]) -> None:
    config = json.loads((model(family) / "config.json").read_text()) | {"tie_word_embeddings": False}
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == row.name)
    theirs = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for name, place in row.tensors(config).items():
        assert place.name == theirs.get_name(name, try_suffixes=(".weight", ".bias"))


@EVERY_ROW
def test_a_row_has_every_key_that_the_audit_expects(
    family: str, row: Architecture, model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = model(family)
    config = read_model(folder).config
    write_gguf(read_model(folder), read_model(folder).plan("F16"), tmp_path / "m.gguf", None)
    file = read_gguf(tmp_path / "m.gguf")
    assert audit_keys(file, config) == []
    keys = model_keys(row, config, name="m", file_type_id=1, parameters=1)
    assert {key for key in file.keys if not key.startswith("tokenizer.")} == set(keys)


@EVERY_ROW
def test_an_estimate_has_the_tensors_of_the_file(family: str, row: Architecture, model: Callable[[str], Path]) -> None:
    read = read_model(model(family))
    biases = {shape.name for shape in read.shapes if shape.name.endswith(".bias")}
    estimated = {shape.name: shape for shape in model_shapes(row, read.config)}
    assert estimated == {shape.name: shape for shape in read.shapes if shape.name not in biases}


# ---- a family that keeps its language model in a table of config.json and names its tensors otherwise


@pytest.fixture
def nested(monkeypatch: pytest.MonkeyPatch, model: Callable[[str], Path], tmp_path: Path) -> Path:
    """The plain Llama's twin with nested settings and another prefix, and the row that says so."""
    from safetensors.torch import load_file, save_file

    row = replace(LLAMA, settings="text_config", prefix="language_model.model.", head="language_model.lm_head.weight")
    monkeypatch.setattr(architectures, "ARCHITECTURES", {**ARCHITECTURES, "NestedForConditionalGeneration": row})
    folder = copy_folder(model("LlamaForCausalLM"), tmp_path / "nested")
    config = json.loads((folder / "config.json").read_text())
    outer = {"architectures": ["NestedForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(outer))
    weights = load_file(folder / "model.safetensors")
    save_file({f"language_model.{name}": value for name, value in weights.items()}, folder / "model.safetensors")
    return folder


def test_a_family_with_nested_settings_is_written_as_its_plain_twin(
    nested: Path, model: Callable[[str], Path], tmp_path: Path
) -> None:
    for name, folder in (("nested", nested), ("plain", model("LlamaForCausalLM"))):
        (tmp_path / f"{name}-out").mkdir()
        read = read_model(folder)
        write_gguf(read, read.plan("F16"), tmp_path / f"{name}-out" / "m.gguf", None)
    assert (tmp_path / "nested-out" / "m.gguf").read_bytes() == (tmp_path / "plain-out" / "m.gguf").read_bytes()


def test_a_merge_changes_nested_settings_where_they_are(nested: Path) -> None:
    config = json.loads((nested / "config.json").read_text())
    assert language_settings(config)["hidden_size"] == 256
    changed = change_settings(config, tie_word_embeddings=False)
    assert changed["text_config"]["tie_word_embeddings"] is False
    assert set(changed) == {"architectures", "text_config"}
    weights = MergedWeights(SafetensorsFolder(nested), {"tie_word_embeddings": False, **config}, [])
    assert "language_model.model.embed_tokens.weight" in weights.tensors


def test_a_tokenizer_of_a_kind_that_the_family_does_not_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: Callable[[str], Path]
) -> None:
    rows = {**ARCHITECTURES, "LlamaForCausalLM": replace(LLAMA, vocabularies=("gpt2",))}
    monkeypatch.setattr(architectures, "ARCHITECTURES", rows)
    with pytest.raises(OperatorError, match='got llama; allowed for llama: "gpt2"'):
        read_model(model("LlamaForCausalLM"))
