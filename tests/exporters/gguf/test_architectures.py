"""The rows of model families: each is true to transformers and to llama.cpp, and new shapes of a family need only a
row."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from engines.llama.gguf_file import read_gguf
from exporters.gguf.file_names import ModelName
from exporters.gguf.metadata import model_keys
from exporters.gguf.quant_types import model_shapes
from exporters.gguf.write import read_model, write_gguf
from exporters.hf_model import architectures
from exporters.hf_model.architectures import ARCHITECTURES, change_settings, language_settings
from exporters.hf_model.families.llama import LLAMA
from exporters.hf_model.family import Architecture, Part, layer_of
from exporters.hf_model.tensor_files import SafetensorsFolder
from exporters.lora.adapter import read_adapter
from exporters.lora.merged_weights import MergedWeights
from exporters.proof import audit_families
from exporters.proof.audit import audit
from exporters.proof.audit_keys import audit_keys
from recipes.problems import OperatorError
from tests.exporters.family_models import FAMILIES
from tests.exporters.small_models import copy_folder, edit_json

pytestmark = pytest.mark.torch
EVERY_ROW = pytest.mark.parametrize(("family", "row"), ARCHITECTURES.items(), ids=ARCHITECTURES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family](tmp_path_factory.mktemp("model"), tokenizer)
        return made[family]

    return of


def test_the_audit_knows_the_families_that_are_written() -> None:
    known = {name: row.name for name, row in audit_families.FAMILIES.items()}
    assert known == {name: row.name for name, row in ARCHITECTURES.items()}


def test_each_family_has_a_small_model() -> None:
    assert FAMILIES.keys() == ARCHITECTURES.keys()


@EVERY_ROW
def test_a_row_has_the_tensors_that_transformers_gives_its_models(
    family: str, row: Architecture, model: Callable[[str], Path]
) -> None:
    folder = model(family)
    config = json.loads((folder / "config.json").read_text())
    found = SafetensorsFolder(folder).tensors
    places = {source: place for place in row.tensors(language_settings(config)).values() for source in place.sources}
    stored = row.names_in(found)
    assert {name for name, place in places.items() if not place.optional} <= set(stored) <= set(places)
    assert {name: found[file].shape for name, file in stored.items()} == {name: places[name].shape for name in stored}


@EVERY_ROW
def test_a_row_names_tensors_as_llama_cpp_does(family: str, row: Architecture, model: Callable[[str], Path]) -> None:
    config = language_settings(json.loads((model(family) / "config.json").read_text())) | {"tie_word_embeddings": False}
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == row.name)
    theirs = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    one_matrix = [problem for problem in row.problems(config) if problem.startswith("tie_word_embeddings")]
    parts = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[arch]}
    for name, place in row.tensors({**config, "tie_word_embeddings": bool(one_matrix)}).items():
        if place.packed is not None or name.endswith("attn_sinks.weight"):
            # llama.cpp's converter takes such a tensor apart, or adds the end of its name, before it looks for it
            assert re.sub(r"blk\.\d+", "blk.{bid}", name).rpartition(".")[0] in parts
            continue
        plain = [
            re.sub(r"experts\.\d+\.", "experts.", source.replace(row.prefix, "model.")) for source in place.sources
        ]
        assert {theirs.get_name(source, try_suffixes=(".weight", ".bias")) for source in plain} == {name}


@EVERY_ROW
def test_a_row_has_every_key_that_the_audit_expects(
    family: str, row: Architecture, model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = model(family)
    config = read_model(folder).config
    write_gguf(read_model(folder), read_model(folder).plan("F16"), tmp_path / "m.gguf", None)
    file = read_gguf(tmp_path / "m.gguf")
    assert audit_keys(file, config) == []
    keys = model_keys(row, config, title=ModelName("m"), file_type_id=1, parameters=5000)
    assert {key for key in file.keys if not key.startswith("tokenizer.")} == set(keys)


@EVERY_ROW
def test_an_estimate_has_the_tensors_of_the_file(family: str, row: Architecture, model: Callable[[str], Path]) -> None:
    read = read_model(model(family))
    biases = {name for name, place in row.tensors(read.config).items() if place.optional}
    estimated = {shape.name: shape for shape in model_shapes(row, read.config)}
    assert estimated == {shape.name: shape for shape in read.shapes if shape.name not in biases}


# ---- a family that keeps its language model in a table of config.json and names its tensors otherwise


@pytest.fixture
def nested(monkeypatch: pytest.MonkeyPatch, model: Callable[[str], Path], tmp_path: Path) -> Path:
    """The plain Llama's twin with nested settings and another prefix, and the row that says so."""
    from safetensors.torch import load_file, save_file

    stored = (("language_model.model.", "model.language_model."), ("language_model.lm_head.", "lm_head."))
    left_out = {"model.vision_tower.": "vision", "vision_tower.": "vision"}
    row = replace(LLAMA, prefix="model.language_model.", stored=stored, left_out=left_out)
    monkeypatch.setattr(architectures, "ARCHITECTURES", {**ARCHITECTURES, "NestedForConditionalGeneration": row})
    folder = copy_folder(model("LlamaForCausalLM"), tmp_path / "nested")
    config = json.loads((folder / "config.json").read_text())
    outer = {"architectures": ["NestedForConditionalGeneration"], "text_config": config}
    (folder / "config.json").write_text(json.dumps(outer))
    weights = load_file(folder / "model.safetensors")
    language = {f"language_model.{name}": value for name, value in weights.items()}
    eyes = {"vision_tower.patches.weight": weights["model.norm.weight"].clone()}
    save_file({**language, **eyes}, folder / "model.safetensors")
    return folder


def test_a_family_with_nested_settings_is_written_as_its_plain_twin(
    nested: Path, model: Callable[[str], Path], tmp_path: Path
) -> None:
    for name, folder in (("nested", nested), ("plain", model("LlamaForCausalLM"))):
        (tmp_path / f"{name}-out").mkdir()
        read = read_model(folder)
        left_out = "1 tensors of vision are left out: the files contain the language model only"
        assert read.warnings == ([left_out] if name == "nested" else [])
        write_gguf(read, read.plan("F16"), tmp_path / f"{name}-out" / "m.gguf", None)
    assert (tmp_path / "nested-out" / "m.gguf").read_bytes() == (tmp_path / "plain-out" / "m.gguf").read_bytes()


def test_a_merge_changes_nested_settings_where_they_are(nested: Path) -> None:
    config = json.loads((nested / "config.json").read_text())
    assert language_settings(config)["hidden_size"] == 256
    changed = change_settings(config, tie_word_embeddings=False)
    assert changed["text_config"]["tie_word_embeddings"] is False
    assert changed["tie_word_embeddings"] is False, "transformers reads the outermost"
    assert set(changed) == {"architectures", "text_config", "tie_word_embeddings"}
    weights = MergedWeights(SafetensorsFolder(nested), config, [])
    assert "language_model.model.embed_tokens.weight" in weights.tensors


@pytest.mark.parametrize("named", ["model.language_model.layers.1", "language_model.model.layers.1"])
def test_an_adapter_names_tensors_as_transformers_does_or_as_the_files_do(
    nested: Path, model: Callable[[str], Path], adapter: Path, tmp_path: Path, named: str
) -> None:
    from safetensors.torch import load_file, save_file

    from exporters.lora.merge_plan import Weighted

    found = load_file(adapter / "adapter_model.safetensors")
    of_one = {name: value for name, value in found.items() if ".layers.1." in name}
    spoken = copy_folder(adapter, tmp_path / "spoken")
    renamed = {name.replace("model.layers.1", named): value for name, value in of_one.items()}
    save_file(renamed, spoken / "adapter_model.safetensors")
    plain = copy_folder(adapter, tmp_path / "plain")
    save_file(of_one, plain / "adapter_model.safetensors")
    merged = [
        MergedWeights(SafetensorsFolder(folder), json.loads((folder / "config.json").read_text()), [Weighted(given)])
        for folder, given in ((nested, read_adapter(spoken)), (model("LlamaForCausalLM"), read_adapter(plain)))
    ]
    assert merged[0].changed == [f"language_model.{name}" for name in merged[1].changed]
    for name in merged[1].changed:
        assert (merged[0].read(f"language_model.{name}") == merged[1].read(name)).all()


def test_two_values_of_one_setting_are_refused_with_both(nested: Path) -> None:
    edit_json(nested / "config.json", vocab_size=1024, num_hidden_layers=2)
    with pytest.raises(OperatorError, match="vocab_size — got 1024, and 640 in text_config; allowed one value"):
        read_model(nested)


# ---- what a row can say about a tensor


def test_experts_are_stacked_in_one_tensor_and_norms_get_their_offset(
    monkeypatch: pytest.MonkeyPatch, model: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_folder(model("LlamaForCausalLM"), tmp_path / "experts")
    edit_json(folder / "config.json", architectures=["Several"], num_experts=3)
    gates = Part(
        "ffn_gate_exps", "mlp.experts.{expert}.gate_proj", ("intermediate_size", "hidden_size"), experts="num_experts"
    )
    others = layer_of(without=("ffn_gate", "attn_norm"))
    norm = Part("attn_norm", "input_layernorm", ("hidden_size",), offset=1.0)
    row = replace(LLAMA, layer=(norm, *others, gates))
    monkeypatch.setattr(architectures, "ARCHITECTURES", {"Several": row})
    weights = load_file(folder / "model.safetensors")
    for layer in range(2):
        gate = weights.pop(f"model.layers.{layer}.mlp.gate_proj.weight")
        weights |= {f"model.layers.{layer}.mlp.experts.{n}.gate_proj.weight": gate * (n + 1) for n in range(3)}
    save_file(weights, folder / "model.safetensors")
    read = read_model(folder)
    write_gguf(read, read.plan("F32"), tmp_path / "m.gguf", None)
    file = gguf.GGUFReader(tmp_path / "m.gguf")
    found = {tensor.name: tensor for tensor in file.tensors}
    stacked, gate = found["blk.1.ffn_gate_exps.weight"], weights["model.layers.1.mlp.experts.0.gate_proj.weight"]
    assert list(stacked.shape) == [256, 512, 3]
    assert (stacked.data == np.stack([gate.numpy() * (n + 1) for n in range(3)])).all()
    norm_of_folder = weights["model.layers.1.input_layernorm.weight"].numpy()
    assert (found["blk.1.attn_norm.weight"].data == norm_of_folder + np.float32(1)).all()
    assert {shape.name: shape for shape in model_shapes(row, read.config)} == {s.name: s for s in read.shapes}


def test_a_missing_expert_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy_folder(model("LlamaForCausalLM"), tmp_path / "experts")
    edit_json(folder / "config.json", architectures=["Several"], num_experts=2)
    gates = Part(
        "ffn_up_exps", "mlp.experts.{expert}.up_proj", ("intermediate_size", "hidden_size"), experts="num_experts"
    )
    monkeypatch.setattr(architectures, "ARCHITECTURES", {"Several": replace(LLAMA, layer=(*LLAMA.layer, gates))})
    with pytest.raises(OperatorError, match=r"model\.layers\.0\.mlp\.experts\.0\.up_proj\.weight — got no tensor"):
        read_model(folder)


def test_a_tokenizer_of_a_kind_that_the_family_does_not_have_is_refused(
    monkeypatch: pytest.MonkeyPatch, model: Callable[[str], Path]
) -> None:
    rows = {**ARCHITECTURES, "LlamaForCausalLM": replace(LLAMA, vocabularies=("gpt2",))}
    monkeypatch.setattr(architectures, "ARCHITECTURES", rows)
    with pytest.raises(OperatorError, match='got llama; allowed for llama: "gpt2"'):
        read_model(model("LlamaForCausalLM"))


@pytest.mark.parametrize("equal", [True, False])
def test_a_separate_head_is_written_although_config_json_ties_it_as_transformers_loads_it(
    equal: bool, model: Callable[[str], Path], tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    folder = copy_folder(model("LlamaForCausalLM"), tmp_path / "own-head")
    weights = load_file(folder / "model.safetensors")
    head = weights["model.embed_tokens.weight"] * (1 if equal else 2)
    save_file({**weights, "lm_head.weight": head.clone()}, folder / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(loaded.lm_head.weight, head)
    read = read_model(folder)
    assert ("output.weight" in read.sources) is not equal
    write_gguf(read, read.plan("F16"), tmp_path / "m.gguf", None)
    assert audit(tmp_path / "m.gguf", folder) == []
