"""Models with experts: what is refused, importances of each expert, and experts in another order."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

from engines.llama.gguf_file import read_gguf
from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.importance import compute_importance
from exporters.gguf.write import _bfloat16, read_model, write_gguf
from exporters.hf_model.architectures import architecture_of
from exporters.hf_model.empty_model import build_empty
from exporters.hf_model.families.gpt_oss import GPT_OSS
from exporters.hf_model.families.llama import LLAMA
from exporters.hf_model.model_config import complete_config
from exporters.proof.audit import audit
from exporters.reference.reference_model import load_reference
from exporters.reference.streamed_model import StreamedModel
from exporters.stages.importance_step import own_names
from recipes.problems import OperatorError
from tests.exporters.family_models import FAMILIES
from tests.exporters.small_models import copy_folder, edit_json

pytestmark = pytest.mark.torch
OSS = {
    "architectures": ["GptOssForCausalLM"], "vocab_size": 640, "hidden_size": 64, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512,
    "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
}  # fmt: skip
EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path) -> Path:
    return FAMILIES["Qwen3MoeForCausalLM"](tmp_path_factory.mktemp("mixture"), tokenizer)


def test_a_model_without_one_of_its_experts_is_refused_by_name(mixture: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    spoiled = copy_folder(mixture, tmp_path / "spoiled")
    tensors = load_file(spoiled / "model.safetensors")
    del tensors[EXPERT]
    save_file(tensors, spoiled / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(OperatorError, match=r"layers\.1\.mlp\.experts\.2\.up_proj\.weight — got no tensor"):
        read_model(spoiled)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob — got false; allowed true"),
        ({"mlp_only_layers": [0]}, "experts in every layer"),
        ({"decoder_sparse_step": 2}, "experts in every layer"),
        ({"num_experts_per_tok": 9}, "num_experts_per_tok — got 9; allowed a whole number from 1 to num_experts, 4"),
        ({"num_experts": 10**6, "num_local_experts": 10**6}, "num_experts — got 1000000; allowed .* 1 to 512"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    fields: dict[str, object], message: str, mixture: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((mixture / "config.json").read_bytes())
    edit_json(folder / "config.json", **fields)
    with pytest.raises(OperatorError, match=message):
        architecture_of(folder, json.loads((folder / "config.json").read_text()))


def test_experts_in_another_order_are_found(mixture: Path, tmp_path: Path) -> None:
    model = read_model(mixture)
    path = tmp_path / "f.gguf"
    write_gguf(model, model.plan("F16"), path, None)
    assert audit(path, mixture) == []
    tensor = read_gguf(path).tensors["blk.0.ffn_down_exps.weight"]
    assert tensor.dimensions == (64, 256, 4)
    size = 64 * 256 * 2
    data = bytearray(path.read_bytes())
    first, second = (data[tensor.start + at * size : tensor.start + (at + 1) * size] for at in (1, 2))
    data[tensor.start + size : tensor.start + 3 * size] = second + first
    path.write_bytes(data)
    findings = audit(path, mixture)
    assert len(findings) == 1
    assert "blk.0.ffn_down_exps.weight: row 256 differs from model.layers.0.mlp.experts.1.down_proj" in findings[0]


def test_each_expert_has_the_importances_of_its_own_tokens(mixture: Path) -> None:
    import torch

    model, network = read_model(mixture), load_reference(mixture, 1)
    streamed = StreamedModel(mixture, model.weights, 1)
    names = own_names(model)
    inputs = []
    module = network.get_submodule(names.experts["blk.0.ffn_up_exps.weight"])
    module.register_forward_pre_hook(lambda _module, given: inputs.append(given))
    ids = list(range(3, 40))
    found = compute_importance(streamed, names.layers, [ids], "text", lambda _tokens: None, names.experts)
    with torch.no_grad():
        network(torch.tensor([ids]))
    hidden, chosen, _weights = inputs[0]
    rows, count = hidden.reshape(-1, hidden.shape[-1]), found.counts["blk.0.ffn_up_exps.weight"]
    assert count.sum() == 2 * len(ids), "two experts for each token"
    for expert in range(4):
        mine = rows[(chosen == expert).any(-1)]
        wanted = mine.square().mean(0).numpy() if len(mine) else np.ones(256)
        np.testing.assert_allclose(found.values["blk.0.ffn_up_exps.weight"][expert], wanted, rtol=1e-4)
    weights = dict(network.named_parameters())
    gate_up = weights["model.layers.0.mlp.experts.gate_up_proj"][0] if count[0] else None
    if gate_up is not None:
        with torch.no_grad():
            gate, up = (rows[(chosen == 0).any(-1)] @ gate_up.T).chunk(2, dim=-1)
            inner = (torch.nn.functional.silu(gate) * up).square().mean(0).numpy()
        np.testing.assert_allclose(found.values["blk.0.ffn_down_exps.weight"][0], inner, rtol=1e-3)
    assert {name for name in found.values if "exps" in name} == set(names.experts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"swiglu_limit": 5.0}, "swiglu_limit — got 5.0; allowed 7.0"),
        ({"attention_bias": False}, "attention_bias — got false; allowed true"),
        ({"tie_word_embeddings": True}, "no tied output head"),
        ({"sliding_window": None}, "sliding_window — got None; allowed a whole number"),
        ({"num_experts_per_tok": 5}, "allowed a whole number from 1 to num_local_experts, 4"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantized weights .mxfp4."),
    ],
)
def test_a_gpt_oss_that_llama_cpp_does_not_compute_is_refused(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(OperatorError, match=message):
        architecture_of(tmp_path, complete_config(tmp_path, OSS | fields))


def test_a_range_of_yarn_that_llama_cpp_rounds_is_said_and_the_reference_rounds_it(tmp_path: Path) -> None:
    rope = {"rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "original_max_position_embeddings": 16}
    found = []
    for truncate in (True, False):
        config = OSS | {"model_type": "gpt_oss", "rope_parameters": {**rope, "truncate": truncate}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        found.append((list(GPT_OSS.warnings(config)), build_empty(tmp_path).base_model.rotary_emb.inv_freq.tolist()))
    assert found[0][0] == []
    assert "always rounds the range" in found[1][0][0]
    assert found[0][1] == found[1][1]
    with pytest.raises(OperatorError, match="truncate — got false; allowed true"):
        LLAMA.rope(config)


def test_values_that_come_from_mxfp4_are_stored_in_mxfp4_without_a_change() -> None:
    """Also where a block's largest value is not the largest of the type, so that its scale could be another."""
    blocks = np.random.default_rng(1).integers(0, 256, (512, 17), dtype=np.uint8)
    blocks[:, 0] = 110 + blocks[:, 0] % 25
    blocks[:128, 1:] &= 0x33
    blocks[128:192, 1:] &= 0x99
    values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.MXFP4)
    assert (_bfloat16(values).astype("<u4") << np.uint32(16) == values.view("<u4")).all(), "BF16 has them exactly"
    with KernelQuantizer(1) as quantizer:
        again = np.asarray(quantizer.quantize("MXFP4", values, None)).reshape(-1, 17)
    assert (gguf.quants.dequantize(again, gguf.GGMLQuantizationType.MXFP4) == values).all()
