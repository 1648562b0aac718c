"""Every kind of LoRA adapter that PEFT makes, against PEFT's own merge and against the formula."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from exporters.hf_model.tensor_files import SafetensorsFolder
from exporters.lora.merge import merge, open_merged
from recipes.problems import OperatorError
from tests.exporters import exporting
from tests.exporters.lora.adapting import EMBEDDING, LINEAR, adapt, distance, ours, peft_weights
from tests.exporters.small_models import build_model, copy_folder, edit_json

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Callable[[bool, str], Path]:
    made: dict[tuple[bool, str], Path] = {}

    def of(tied: bool, dtype: str = "float32") -> Path:
        if (tied, dtype) not in made:
            folder = tmp_path_factory.mktemp("base")
            made[tied, dtype] = build_model(
                folder, tokenizer, hidden_size=64, intermediate_size=96, tie_word_embeddings=tied, dtype=dtype
            )
        return made[tied, dtype]

    return of


KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 4, "layers.1.self_attn.v_proj": 16}, "alpha_pattern": {"down_proj": 3}},
    "saved head": {"modules_to_save": ["lm_head"]},
    "saved embedding": {"modules_to_save": ["embed_tokens"]},
    "saved both": {"modules_to_save": ["embed_tokens", "lm_head"]},
    "saved norm": {"modules_to_save": ["input_layernorm", "norm"]},
    "embedding": {"target_modules": [*LINEAR, "embed_tokens"]},
    "embedding dora": {"target_modules": [*LINEAR, "embed_tokens"], "use_dora": True},
    "head": {"target_modules": [*LINEAR, "lm_head"]},
    "head rslora saved norm": {"target_modules": ["lm_head"], "use_rslora": True, "modules_to_save": ["norm"]},
    "resized": {"vocab": 704},
    "shrunk": {"vocab": 576},
    "everything": {
        "use_rslora": True, "use_dora": True, "rank_pattern": {"q_proj": 2}, "modules_to_save": ["lm_head", "norm"],
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_float32_merge_is_pefts_bit_for_bit(kind: str, tied: bool, bases: Any, tmp_path: Path) -> None:
    base, settings = bases(tied), KINDS[kind]
    adapted = adapt(tmp_path / "adapter", base, **settings)
    (tmp_path / "out").mkdir()
    merge(base, [(tmp_path / "adapter", 1.0)], tmp_path / "out", chunk_bytes=64 * 64 * 4)
    limit = 1e-7 if settings.get("use_dora") else 0.0
    assert distance(ours(tmp_path / "out"), peft_weights(adapted)) <= limit
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vocab_size"] == settings.get("vocab", 640)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_folder_answers_as_the_adapter_did(kind: str, bases: Any, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    for tied in (True, False):
        base, folder = bases(tied), tmp_path / str(tied)
        adapted = adapt(folder / "adapter", base, **KINDS[kind]).eval()
        ids = torch.arange(3, 60)[None]
        with torch.no_grad():
            wanted = adapted(ids).logits
        (folder / "out").mkdir()
        merge(base, [(folder / "adapter", 1.0)], folder / "out", untie=True)
        with torch.no_grad():
            found = AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32)(ids).logits
        assert found.shape == wanted.shape
        assert float((found - wanted).abs().max()) < 1e-3 * float(wanted.abs().max()), (kind, tied)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["lora", "dora", "saved both", "embedding", "everything"])
def test_on_a_bfloat16_base_the_sum_is_made_in_float32_and_rounded_once(kind: str, bases: Any, tmp_path: Path) -> None:
    import torch

    half = bases(False, "bfloat16")
    adapted = adapt(tmp_path / "adapter", half, **KINDS[kind])  # the live model holds the bfloat16 weights as float32
    exact = {name: value.to(torch.bfloat16).float() for name, value in peft_weights(adapted).items()}
    (tmp_path / "out").mkdir()
    merge(half, [(tmp_path / "adapter", 1.0)], tmp_path / "out")
    assert distance(ours(tmp_path / "out"), exact) == 0.0
    assert {info.dtype for info in SafetensorsFolder(tmp_path / "out").tensors.values()} == {"BF16"}


def delta(adapter: Path, module: str) -> Any:
    """scale * B A of the default adapter above, by hand."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(adapter / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.{module}.lora_{side}.weight"] for side in "AB")
    return torch.as_tensor((b @ a) * (12 / 8))


def test_weights_scale_the_full_rank_changes_and_not_the_factors(bases: Any, tmp_path: Path) -> None:
    base = bases(False)
    for seed, name in ((3, "one"), (4, "two")):
        adapt(tmp_path / name, base, seed=seed)
    before, module = ours(base), "model.layers.1.self_attn.q_proj"
    for weights in ([0.5], [1.0, 1.0], [0.3, -0.7], [1.0, 0.0]):
        folders = [tmp_path / name for name in ("one", "two")][: len(weights)]
        out = tmp_path / f"out{weights}"
        out.mkdir()
        merge(base, list(zip(folders, weights, strict=True)), out)
        expected = before[f"{module}.weight"]
        for folder, weight in zip(folders, weights, strict=True):
            expected = expected + weight * delta(folder, module)
        found = ours(out)
        assert (found[f"{module}.weight"] == expected).all(), weights
        assert (
            found["model.layers.1.self_attn.o_proj.weight"] == before["model.layers.1.self_attn.o_proj.weight"]
        ).all()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["dora", "saved head", "embedding"])
def test_a_weight_of_one_half_gives_half_of_a_change_that_is_not_a_product(
    kind: str, bases: Any, tmp_path: Path
) -> None:
    base = bases(False)
    whole = peft_weights(adapt(tmp_path / "adapter", base, **KINDS[kind]))
    (tmp_path / "out").mkdir()
    merge(base, [(tmp_path / "adapter", 0.5)], tmp_path / "out")
    before, found = ours(base), ours(tmp_path / "out")
    expected = {name: before[name] + 0.5 * (whole[name] - before[name]) for name in before}
    assert distance(found, expected) < 1e-6


def test_an_adapter_that_changes_a_tied_embedding_gives_a_warning(bases: Any, tmp_path: Path) -> None:
    adapt(tmp_path / "adapter", bases(True), **KINDS["embedding"])
    (warning,) = open_merged(bases(True), [(tmp_path / "adapter", 1.0)]).warnings
    assert "untie_word_embeddings = true" in warning
    assert open_merged(bases(True), [(tmp_path / "adapter", 1.0)], untie=True).warnings == []


def test_a_resized_vocabulary_is_merged_alone_and_with_weight_1(bases: Any, tmp_path: Path) -> None:
    for name, vocab in (("wide", 704), ("plain", 0)):
        adapt(tmp_path / name, bases(False), vocab=vocab)
    with pytest.raises(OperatorError, match="640 rows in the base model and 704 in the adapter") as caught:
        open_merged(bases(False), [(tmp_path / "wide", 1.0), (tmp_path / "plain", 1.0)])
    assert "alone and with weight 1" in caught.value.hint
    with pytest.raises(OperatorError, match="704"):
        open_merged(bases(False), [(tmp_path / "wide", 0.5)])


@pytest.mark.parametrize("rounding", ["nf4", "nf4-double"])
def test_a_base_rounded_to_nf4_equals_bitsandbytes_result(rounding: Any, bases: Any, tmp_path: Path) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    base = bases(True)
    adapt(tmp_path / "adapter", base)
    (tmp_path / "out").mkdir()
    merge(base, [(tmp_path / "adapter", 1.0)], tmp_path / "out", base_rounding=rounding)
    before, found = ours(base), ours(tmp_path / "out")
    for module in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj"):
        weight = before[f"{module}.weight"]
        packed, state = quantize_4bit(
            weight, blocksize=64, compress_statistics=rounding == "nf4-double", quant_type="nf4"
        )
        expected = torch.as_tensor(dequantize_4bit(packed, state)).float()
        if module.endswith("q_proj"):
            expected = expected + delta(tmp_path / "adapter", module)
        assert (found[f"{module}.weight"] == expected).all()
        assert not torch.equal(found[f"{module}.weight"], weight)
    for name in (EMBEDDING, "model.norm.weight"):
        assert torch.equal(found[name], before[name]), "embeddings, head and norms stay 16-bit in a 4-bit copy"


def test_the_stages_fields_reach_the_merge(bases: Any, tmp_path: Path) -> None:
    base = bases(False)
    for seed, name in ((3, "one"), (4, "two")):
        adapt(tmp_path / name, base, seed=seed)
    module = "model.layers.0.mlp.down_proj.weight"
    ctx, result = exporting.merge_several(tmp_path, base, [tmp_path / "one", tmp_path / "two"], weights=[0.25, 2.0])
    expected = (
        ours(base)[module] + 0.25 * delta(tmp_path / "one", module[:-7]) + 2.0 * delta(tmp_path / "two", module[:-7])
    )
    assert (ours(ctx.out)[module] == expected).all()
    assert result.metrics["tensors"] == 6
    ctx, _ = exporting.merge(tmp_path / "a", base, tmp_path / "one", base_rounding="nf4")
    assert not (
        ours(ctx.out)["model.layers.0.mlp.up_proj.weight"] == ours(base)["model.layers.0.mlp.up_proj.weight"]
    ).all()
    adapt(tmp_path / "embedding", bases(True), **KINDS["embedding"])
    ctx, _ = exporting.merge(tmp_path / "b", bases(True), tmp_path / "embedding", untie_word_embeddings=True)
    assert json.loads((ctx.out / "config.json").read_text())["tie_word_embeddings"] is False


def test_weights_that_others_pickled_are_not_read(bases: Any, tmp_path: Path) -> None:
    adapt(tmp_path / "adapter", bases(False))
    spoiled = copy_folder(tmp_path / "adapter", tmp_path / "pickled")
    (spoiled / "adapter_model.safetensors").rename(spoiled / "adapter_model.bin")
    with pytest.raises(OperatorError, match=r"adapter_model\.bin is a pickle"):
        open_merged(bases(False), [(spoiled, 1.0)])
    model = copy_folder(bases(False), tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(OperatorError, match=r"pytorch_model\.bin"):
        open_merged(model, [(tmp_path / "adapter", 1.0)])


def test_dora_settings_and_magnitudes_go_together(bases: Any, tmp_path: Path) -> None:
    adapt(tmp_path / "adapter", bases(False))
    edit_json(tmp_path / "adapter" / "adapter_config.json", use_dora=True)
    with pytest.raises(OperatorError, match="lacks its lora_magnitude_vector, but use_dora is true"):
        open_merged(bases(False), [(tmp_path / "adapter", 1.0)])
