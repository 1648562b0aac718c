"""A merge equals PEFT's merge, bit for bit; unsupported adapters are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.artifacts.manifest import manifest_sha256, write_manifest
from engines.events.attempts import Progress
from engines.events.writers import Warned
from exporters.hf_model.tensor_files import SafetensorsFolder, SafetensorsWriter, read_header
from exporters.lora import merge as merging
from exporters.lora.adapter import read_matrix
from exporters.lora.merge import open_merged
from recipes.problems import OperatorError
from tests.exporters.exporting import merge
from tests.exporters.small_models import build_adapter, build_model, copy_folder, edit_json

pytestmark = pytest.mark.torch


def peft_merge(base: Path, adapter: Path, dtype: str = "float32") -> dict[str, Any]:
    """The weights after PEFT's own merge."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype))
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    return {
        name: tensor
        for name, tensor in merged.state_dict().items()
        if name != "lm_head.weight" or "lm_head.weight" in SafetensorsFolder(base).tensors
    }


def weights(folder: Path) -> dict[str, Any]:
    """The weights of a folder, by safetensors' own reader."""
    from safetensors.torch import load_file

    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert (ours[name].float() - tensor.float()).abs().max().item() == 0, name


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_rslora": True},
        {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]},
        {"rank_pattern": {"layers.1.self_attn.q_proj": 4}, "alpha_pattern": {"down_proj": 3}},
    ],
    ids=["lora", "rslora", "all-linear", "patterns"],
)
def test_equals_peft(tmp_path: Path, base: Path, fields: dict[str, Any]) -> None:
    adapter = build_adapter(tmp_path / "adapter", base, **fields)
    ctx, result = merge(tmp_path, base, adapter)
    ours = weights(ctx.out)
    assert_same(ours, peft_merge(base, adapter))
    assert any((ours[name] != tensor).any() for name, tensor in weights(base).items())
    assert result.metrics["parameters"] == sum(tensor.numel() for tensor in ours.values())
    assert any(isinstance(event, Progress) and event.done == event.total for event in ctx.events())


def test_chunks_of_rows_change_nothing(tmp_path: Path, base: Path, adapter: Path) -> None:
    merging.merge(base, [(adapter, 1.0)], tmp_path, chunk_bytes=64 * 256 * 4)
    assert_same(weights(tmp_path), peft_merge(base, adapter))


def test_a_sharded_base_stays_sharded(tmp_path: Path, tokenizer: Path, adapter: Path, base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    sharded = build_model(tmp_path / "sharded", tokenizer, shards="1MB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    ctx, _ = merge(tmp_path, sharded, adapter)
    assert not (ctx.out / "model.safetensors").exists()
    assert_same(weights(ctx.out), peft_merge(base, adapter))
    index = json.loads((ctx.out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights(ctx.out).keys()
    loaded = AutoModelForCausalLM.from_pretrained(ctx.out, dtype=torch.float32)
    expected = peft_merge(base, adapter)
    assert all((loaded.state_dict()[name] == tensor).all() for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", ["base", "float32", "bfloat16", "float16"])
def test_rounds_once_to_the_requested_type(tmp_path: Path, tokenizer: Path, adapter: Path, dtype: str) -> None:
    import torch

    half = build_model(tmp_path / "half", tokenizer, dtype="bfloat16")
    ctx, _ = merge(tmp_path, half, adapter, dtype=dtype)
    wanted = torch.bfloat16 if dtype == "base" else getattr(torch, dtype)
    exact = peft_merge(half, adapter)  # bfloat16 weights, the sum in float32
    assert_same(weights(ctx.out), {name: tensor.to(wanted) for name, tensor in exact.items()})
    assert json.loads((ctx.out / "config.json").read_text())["dtype"] == str(wanted).removeprefix("torch.")


def test_tokenizer_and_generation_settings_come_along(tmp_path: Path, base: Path, adapter: Path) -> None:
    ctx, _ = merge(tmp_path, base, adapter)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (ctx.out / name).read_bytes() == (base / name).read_bytes()
    before, after = (json.loads((folder / "generation_config.json").read_text()) for folder in (base, ctx.out))
    assert after == {**before, "eos_token_id": [2, 4]}, (
        "an answer ends with <|im_end|> too, as the chat template has it"
    )
    assert not list(ctx.out.glob("*.partial"))
    assert not (ctx.out / "adapter_config.json").exists()


def test_another_base_is_refused_with_both_hashes(tmp_path: Path, base: Path, adapter: Path) -> None:
    mine, other = copy_folder(base, tmp_path / "mine"), copy_folder(base, tmp_path / "other")
    write_manifest(mine, stage="mine")
    write_manifest(other, stage="other")
    trained = copy_folder(adapter, tmp_path / "trained")
    (trained / "base.json").write_text(json.dumps({"path": str(mine), "manifest_sha256": manifest_sha256(mine)}))
    ctx, _ = merge(tmp_path / "right", mine, trained)
    assert not [event for event in ctx.events() if isinstance(event, Warned)]
    assert not (ctx.out / "manifest.json").exists()
    with pytest.raises(OperatorError) as caught:
        merge(tmp_path / "wrong", other, trained)
    assert manifest_sha256(mine) in str(caught.value)
    assert manifest_sha256(other) in str(caught.value)
    ctx, _ = merge(tmp_path / "unknown", base, trained)
    assert any(
        "could not check that the adapter was trained on this base model" in event.message
        for event in ctx.events()
        if isinstance(event, Warned)
    )


def rewrite(adapter: Path, rename: dict[str, str | None], extra: dict[str, tuple[int, int]] | None = None) -> None:
    """Rename (or, with None, remove) tensors of an adapter, and add others of zeros."""
    path = adapter / "adapter_model.safetensors"
    kept = {info: rename.get(info.name, info.name) for info in read_header(path)[0]}
    data = {new: read_matrix(info) for info, new in kept.items() if new}
    data |= {name: np.zeros(shape, np.float32) for name, shape in (extra or {}).items()}
    with SafetensorsWriter(
        path, {name: ("F32", values.shape) for name, values in data.items()}, {"format": "pt"}
    ) as writer:
        for values in data.values():
            writer.write(values.tobytes())


Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("rename", "extra", "named"),
    [
        ({f"{Q}.lora_A.weight": None}, {}, "model.layers.0.self_attn.q_proj lacks lora_A.weight"),
        ({f"{Q}.lora_B.weight": None}, {}, "model.layers.0.self_attn.q_proj lacks lora_B.weight"),
        ({}, {f"{Q}.lora_magnitude_vector": (256,)}, "q_proj has a lora_magnitude_vector, but use_dora is false"),
        ({}, {f"{Q}.lora_magnitude_vector": (1, 256)}, "q_proj has lora_magnitude_vector"),
        (
            {},
            {"base_model.model.model.norm.weight": (256,)},
            "base_model.model.model.norm.weight is not supported by merge",
        ),
        ({}, {"base_model.model.model.embed_tokens.weight": (4, 4)}, "embed_tokens.weight is"),
        ({}, {"elsewhere.weight": (4, 4)}, "elsewhere.weight is not supported by merge"),
        ({}, {f"{Q}.lora_C.weight": (4, 4)}, "lora_C.weight is not supported by merge"),
        ({}, {f"{Q}.base_layer.bias": (4,)}, "q_proj is not in modules_to_save"),
        ({}, {f"{Q}.lora_B.bias": (256,)}, "lora_bias is not set"),
        ({}, {f"{Q}.token_adapter.trainable_tokens_delta": (2, 256)}, "trainable_token_indices does not name"),
        ({}, {f"{Q}.original_module.weight": (4, 4)}, "is the state before training, but not the trained"),
        ({}, {f"{Q}.lora_A.other.weight": (8, 256)}, "q_proj, with different values"),
        (
            {f"{Q}.lora_A.weight": f"{Q}.lora_A.one.weight", f"{Q}.lora_B.weight": f"{Q}.lora_B.two.weight"},
            {},
            r"contains several adapters \(one, two\)",
        ),
        (
            {f"{Q}.lora_{side}.weight": f"{Q.replace('q_proj', 'z_proj')}.lora_{side}.weight" for side in "AB"},
            {},
            "changes model.layers.0.self_attn.z_proj, which the base",
        ),
        (
            {f"{Q}.lora_{side}.weight": f"{Q.replace('q_proj', 'k_proj')}.lora_{side}.weight" for side in "AB"},
            {},
            r"k_proj is \(64, 256\) in the base model and \(256, 256\) in the adapter",
        ),
        ({f"{Q}.lora_B.weight": None}, {f"{Q}.lora_B.weight": (256, 4)}, "with incompatible shapes"),
    ],
    ids=[
        "no-a",
        "no-b",
        "magnitude",
        "magnitude-shape",
        "full-weight",
        "embedding-shape",
        "foreign",
        "lora-c",
        "bias",
        "lora-bias",
        "tokens",
        "original-alone",
        "matrix-twice",
        "two-adapters",
        "unknown-module",
        "wrong-shape",
        "ranks",
    ],
)
def test_every_adapter_tensor_has_its_place(
    tmp_path: Path,
    base: Path,
    adapter: Path,
    rename: dict[str, str | None],
    extra: dict[str, tuple[int, int]],
    named: str,
) -> None:
    spoiled = copy_folder(adapter, tmp_path / "adapter")
    rewrite(spoiled, rename, extra)
    with pytest.raises(OperatorError, match=named):
        open_merged(base, [(spoiled, 1.0)])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bias", "some"),
        ("lora_bias", True),
        ("use_dora", True),
        ("layer_replication", [[0, 2]]),
        ("target_parameters", ["x"]),
        ("trainable_token_indices", [1]),
        ("trainable_token_indices", [-1]),
        ("trainable_token_indices", [1, 1]),
        ("trainable_token_indices", {"embed_tokens": "1"}),
        ("modules_to_save", ["lm_head"]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("use_bdlora", {"nblocks": 2}),
        ("kasa_config", {"beta": 1}),
        ("monteclora_config", {"x": 1}),
        ("velora_config", {"x": 1}),
        ("arrow_config", {"top_k": 1}),
        ("init_lora_weights", "pissa_niter_4"),
        ("init_lora_weights", "corda"),
        ("init_lora_weights", "loftq"),
        ("init_lora_weights", "lora_ga"),
        ("peft_type", "LOHA"),
        ("invented_tomorrow", 1),
    ],
)
def test_unknown_features_are_refused_by_name(
    tmp_path: Path, base: Path, adapter: Path, field: str, value: Any
) -> None:
    spoiled = copy_folder(adapter, tmp_path / "adapter")
    edit_json(spoiled / "adapter_config.json", **{field: value})
    with pytest.raises(OperatorError, match=field):
        open_merged(base, [(spoiled, 1.0)])


def test_a_base_that_cannot_take_an_adapter_is_refused(tmp_path: Path, base: Path, adapter: Path) -> None:
    quantized = copy_folder(base, tmp_path / "quantized")
    edit_json(quantized / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(OperatorError, match="quantized weights") as caught:
        merge(tmp_path / "1", quantized, adapter)
    assert "16- or 32-bit" in caught.value.hint
    cut = copy_folder(base, tmp_path / "cut")
    file = cut / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(OperatorError, match="is truncated"):
        merge(tmp_path / "2", cut, adapter)
    file.unlink()
    with pytest.raises(OperatorError, match=r"no model\.safetensors"):
        merge(tmp_path / "3", cut, adapter)
    stranger = copy_folder(adapter, tmp_path / "stranger")
    (stranger / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(OperatorError, match=r"stranger/tokenizer\.model differs from"):
        merge(tmp_path / "4", base, stranger)


def test_a_missing_shard_is_named(tmp_path: Path, tokenizer: Path, adapter: Path) -> None:
    sharded = build_model(tmp_path / "sharded", tokenizer, shards="1MB")
    gone = sorted(sharded.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(OperatorError, match=gone.name):
        merge(tmp_path, sharded, adapter)


def test_values_beyond_float16_are_refused(tmp_path: Path, base: Path, adapter: Path) -> None:
    loud = copy_folder(adapter, tmp_path / "adapter")
    edit_json(loud / "adapter_config.json", lora_alpha=1e9)
    with pytest.raises(OperatorError, match="not finite in float16"):
        merge(tmp_path, base, loud, dtype="float16")
