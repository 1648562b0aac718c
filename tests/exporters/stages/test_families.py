"""Each family, from a model and its adapter to files: merged, written, proven, and answering like the model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engines.llama.process import LlamaProcess
from exporters.gguf.importance import load_importance
from exporters.gguf.write import read_model, write_gguf
from exporters.hf_model.architectures import ARCHITECTURES, exact_context
from exporters.hf_model.model_folder import read_settings
from exporters.reference.reference_model import TorchLogits, load_reference
from exporters.stages.serving_files import served
from tests.exporters.exporting import export, merge, parity
from tests.exporters.family_models import FAMILIES, TARGETS
from tests.exporters.gguf.test_adapter import export_with
from tests.exporters.small_models import build_adapter, edit_json

pytestmark = pytest.mark.torch
TYPES = ("F16", "Q8_0", "Q4_K_M")


PROVEN_ELSEWHERE = (
    "LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM", "Ministral3ForCausalLM",
)  # fmt: skip
"""Other tests of the suite export them, or a family with the same language model."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=[pytest.mark.thorough] if name in PROVEN_ELSEWHERE else []) for name in FAMILIES],
)
def test_a_family_is_trained_merged_written_and_proven(family: str, tokenizer: Path, tmp_path: Path) -> None:
    base = FAMILIES[family](tmp_path / "base", tokenizer)
    targets = TARGETS.get(family, ("q_proj", "v_proj", "down_proj"))
    adapter = build_adapter(tmp_path / "adapter", base, targets=targets)
    merged, _ = merge(tmp_path / "m", base, adapter, parity_positions=64)
    ctx, result = export(tmp_path / "e", merged.out, *TYPES, parity_positions=160, max_length=80)
    record = parity(ctx)
    config = json.loads((merged.out / "config.json").read_text())
    assert record["data"]["max_length"] == min(80, exact_context(config))
    assert record["model"]["architecture"] == ARCHITECTURES[family].name
    for file in record["files"]:
        assert (file["meaning"]["findings"], file["bytes"]["findings"]) == ([], []), file["file"]
        assert file["bytes"]["equal"] == file["bytes"]["tensors"], "every tensor is byte-equal to the second path's"
    assert [file["file_type"] for file in record["files"]] == list(TYPES)
    assert result.metrics["f16_top1"] > 0.98


def test_a_window_that_llama_cpp_does_not_apply_is_said_with_its_length(tokenizer: Path, tmp_path: Path) -> None:
    folder = FAMILIES["MistralForCausalLM"](tmp_path / "model", tokenizer)
    (warning,) = read_model(folder).warnings
    assert "each token of the model sees 60 tokens, but in llama.cpp all of them" in warning
    assert "the files have the model's context, 512" in warning
    edit_json(folder / "config.json", sliding_window=512)
    assert read_model(folder).warnings == []


@pytest.mark.parametrize(("family", "exact"), [("MistralForCausalLM", 60), ("Phi3ForCausalLM", 256)])
def test_the_served_context_is_one_in_which_llama_cpp_answers_like_the_model(
    family: str, exact: int, tokenizer: Path, tmp_path: Path
) -> None:
    folder = FAMILIES[family](tmp_path / "model", tokenizer)
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert served(folder, read_settings(folder), words).context == exact


def test_a_text_above_the_original_context_gets_the_long_factors(tokenizer: Path, tmp_path: Path) -> None:
    folder = FAMILIES["Phi3ForCausalLM"](tmp_path / "model", tokenizer)
    model = read_model(folder)
    assert "takes the long rotary factors in every context above 256 tokens" in model.warnings[0]
    write_gguf(model, model.plan("F32"), tmp_path / "m.gguf", None)
    ids = [1, *(3 + 7 * n % 600 for n in range(300))]
    expected = TorchLogits(load_reference(folder, 1)).logits(ids)
    with LlamaProcess(tmp_path / "m.gguf", 320, 1) as llama:
        found = llama.logits(ids)
    assert np.abs(found - expected).max() < 0.01 * np.abs(expected).max()


@pytest.mark.parametrize(
    "family", ["Phi3ForCausalLM", pytest.param("Gemma3ForConditionalGeneration", marks=pytest.mark.thorough)]
)
def test_an_importance_matrix_weighs_every_matrix_of_every_layer(family: str, tokenizer: Path, tmp_path: Path) -> None:
    base = FAMILIES[family](tmp_path / "base", tokenizer)
    (tmp_path / "e").mkdir()
    ctx, _ = export(
        tmp_path / "e", base, "Q4_K_M", imatrix="always", imatrix_tokens=256, parity_positions=100, max_length=80
    )
    weighed = load_importance(ctx.out / "imatrix.gguf").values
    inside = {shape.name for shape in read_model(base).shapes if shape.layer is not None and shape.dimensions == 2}
    assert set(weighed) == inside
    (record,) = parity(ctx)["files"]
    assert record["bytes"]["equal"] == record["bytes"]["tensors"]


@pytest.mark.parametrize("family", ["Phi3ForCausalLM", pytest.param("Gemma2ForCausalLM", marks=pytest.mark.thorough)])
def test_an_adapter_as_a_file_of_its_own_answers_like_peft(family: str, tokenizer: Path, tmp_path: Path) -> None:
    base = FAMILIES[family](tmp_path / "base", tokenizer)
    adapter = build_adapter(tmp_path / "tuned", base, targets=TARGETS.get(family, ("q_proj", "v_proj", "down_proj")))
    (tmp_path / "work").mkdir()
    ctx = export_with(tmp_path / "work", base, {"tuned": adapter}, parity_positions=100, max_length=80)
    (record,) = parity(ctx)["adapters"]
    assert record["over"][0]["mean_kl"] < 1e-6
