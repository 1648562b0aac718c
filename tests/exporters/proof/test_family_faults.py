"""What is special about a family, wrong in one place of its file: the proofs find and name it, in F16 and in Q4_K_M."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from engines.llama.quantizer import KernelQuantizer
from exporters.gguf.write import Model, read_model, write_gguf
from exporters.proof.audit import prove
from exporters.proof.byte_proof import ByteProver
from tests.exporters.family_models import FAMILIES
from tests.exporters.proof.planted import (
    Content,
    Fault,
    Rows,
    flipped,
    fraction,
    no_tensor,
    number,
    read_content,
    reordered,
    rows,
    swapped,
    without,
    write_content,
)

pytestmark = pytest.mark.torch
TYPES = ("F16", "Q4_K_M")
Given = Callable[[str, str], tuple[Model, Path]]
"""A family's model and its correct file of a type."""


def minus_one(data: Rows) -> Rows:
    """A norm as transformers stores it: llama.cpp would multiply by one less."""
    return (data.view("<f4") - np.float32(1)).view(np.uint8)


def halves_swapped(data: Rows) -> Rows:
    return np.concatenate([data[len(data) // 2 :], data[: len(data) // 2]])


def experts_swapped(data: Rows) -> Rows:
    """The second and the third of 4 experts."""
    experts = data.reshape(4, -1, data.shape[1])
    return experts[[0, 2, 1, 3]].reshape(data.shape)


def keys_before_queries(data: Rows) -> Rows:
    """Rows of a fused matrix of 8 heads for queries and 4 for keys, each 32 wide."""
    return np.concatenate([data[256:384], data[:256], data[384:]])


FAULTS: dict[str, dict[str, Fault]] = {
    "Gemma2ForCausalLM": {
        "soft cap of attention": Fault(
            "attn_logit_softcapping is 50.0", fraction("gemma2.attn_logit_softcapping", 50.0)
        ),
        "soft cap by default": Fault("final_logit_softcapping is missing", without("gemma2.final_logit_softcapping")),
        "window": Fault("attention.sliding_window is 41", number("gemma2.attention.sliding_window", 41)),
        "layers with a window": Fault(
            "sliding_window_pattern is", number("gemma2.attention.sliding_window_pattern", 3)
        ),
        "norm without 1": Fault("blk.1.post_ffw_norm.weight: row 0", rows("blk.1.post_ffw_norm.weight", minus_one)),
        "last norm without 1": Fault("output_norm.weight: row 0", rows("output_norm.weight", minus_one)),
        "norms swapped": Fault(
            "blk.0.attn_norm.weight: row 0", swapped("blk.0.attn_norm.weight", "blk.0.post_attention_norm.weight")
        ),
    },
    "Gemma3ForCausalLM": {
        "rotary base of windows": Fault("rope.freq_base_swa is", fraction("gemma3.rope.freq_base_swa", 10_000.0)),
        "rotary base of all": Fault("rope.freq_base is", fraction("gemma3.rope.freq_base", 5_000.0)),
        "no window": Fault("attention.sliding_window is missing", without("gemma3.attention.sliding_window")),
        "usual layers": Fault("sliding_window_pattern is missing", without("gemma3.attention.sliding_window_pattern")),
        "rotary scaling": Fault("rope.scaling.factor is 1.0", fraction("gemma3.rope.scaling.factor", 1.0)),
        "norm of queries without 1": Fault(
            "blk.0.attn_q_norm.weight: row 0", rows("blk.0.attn_q_norm.weight", minus_one)
        ),
    },
    "GptOssForCausalLM": {
        "gate and up swapped": Fault(
            "gate_up_proj, every 2nd column from 0: the tensor contains "
            "model.layers.0.mlp.experts.gate_up_proj, every 2nd column from 1",
            swapped("blk.0.ffn_gate_exps.weight", "blk.0.ffn_up_exps.weight"),
        ),
        "biases swapped": Fault(
            "tensor blk.1.ffn_up_exps.bias: row 0", swapped("blk.1.ffn_gate_exps.bias", "blk.1.ffn_up_exps.bias")
        ),
        "order of experts": Fault(
            "blk.1.ffn_down_exps.weight: row 256", rows("blk.1.ffn_down_exps.weight", experts_swapped)
        ),
        "sinks missing": Fault("tensor blk.0.attn_sinks.weight is missing", no_tensor("blk.0.attn_sinks.weight")),
        "sink": Fault("tensor blk.1.attn_sinks.weight: row 0", flipped("blk.1.attn_sinks.weight", 0.4)),
        "bias of the router": Fault("blk.0.ffn_gate_inp.bias: row 0", flipped("blk.0.ffn_gate_inp.bias", 0.4)),
        "chosen experts": Fault("expert_used_count is 4", number("gpt-oss.expert_used_count", 4)),
        "window": Fault("attention.sliding_window is 41", number("gpt-oss.attention.sliding_window", 41)),
        "layers with a window": Fault(
            "sliding_window_pattern is", number("gpt-oss.attention.sliding_window_pattern", 3)
        ),
        "yarn": Fault("rope.scaling.factor is 4.0", fraction("gpt-oss.rope.scaling.factor", 4.0)),
    },
    "GraniteForCausalLM": {
        "scale of attention": Fault("attention.scale is missing", without("granite.attention.scale")),
        "scale of the embedding": Fault("embedding_scale is 1.0", fraction("granite.embedding_scale", 1.0)),
        "scale of residuals": Fault("residual_scale is missing", without("granite.residual_scale")),
        "scale of logits": Fault("logit_scale is 0.5", fraction("granite.logit_scale", 0.5)),
    },
    "Ministral3ForCausalLM": {
        "growth of queries": Fault(
            "attention.temperature_scale is missing", without("mistral3.attention.temperature_scale")
        ),
        "boundary": Fault("yarn_beta_fast is missing", without("mistral3.rope.scaling.yarn_beta_fast")),
        "multiplier of rotary scaling": Fault(
            "rope.scaling.attn_factor is", fraction("mistral3.rope.scaling.yarn_log_multiplier", 1.0)
        ),
        "queries not permuted": Fault("Q/K permute", rows("blk.1.attn_q.weight", reordered(8, back=True))),
    },
    "Olmo2ForCausalLM": {
        "norms swapped": Fault(
            "blk.1.post_ffw_norm.weight: row 0",
            swapped("blk.1.post_ffw_norm.weight", "blk.1.post_attention_norm.weight"),
        ),
        "norm of keys": Fault("blk.0.attn_k_norm.weight: row 0", flipped("blk.0.attn_k_norm.weight", 0.5)),
    },
    "Phi3ForCausalLM": {
        "rotated part": Fault("rope.dimension_count is 32", number("phi3.rope.dimension_count", 32)),
        "factor of rotary positions": Fault(
            "rope.scaling.attn_factor is missing", without("phi3.rope.scaling.attn_factor")
        ),
        "original context": Fault(
            "original_context_length is 512", number("phi3.rope.scaling.original_context_length", 512)
        ),
        "long for short": Fault(
            "rope_factors_short.weight does not contain",
            swapped("rope_factors_long.weight", "rope_factors_short.weight"),
        ),
        "order in the fused matrix": Fault(
            "blk.0.attn_qkv.weight: row", rows("blk.0.attn_qkv.weight", keys_before_queries)
        ),
        "gate and up swapped": Fault("blk.1.ffn_up.weight: row 0", rows("blk.1.ffn_up.weight", halves_swapped)),
    },
    "Qwen3MoeForCausalLM": {
        "order of experts": Fault(
            "blk.0.ffn_up_exps.weight: row 64", rows("blk.0.ffn_up_exps.weight", experts_swapped)
        ),
        "router": Fault("blk.1.ffn_gate_inp.weight: row 0", rows("blk.1.ffn_gate_inp.weight", lambda data: data[::-1])),
        "gate and up swapped": Fault(
            "the tensor contains model.layers.1.mlp.experts.0.up_proj",
            swapped("blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"),
        ),
        "chosen experts": Fault("expert_used_count is 1", number("qwen3moe.expert_used_count", 1)),
        "number of experts": Fault("expert_count is 3", number("qwen3moe.expert_count", 3)),
        "byte of the last expert": Fault(
            "blk.1.ffn_down_exps.weight: row 1023", flipped("blk.1.ffn_down_exps.weight", 1.0)
        ),
    },
    "SmolLM3ForCausalLM": {
        "keys not permuted": Fault("Q/K permute", rows("blk.3.attn_k.weight", reordered(2, back=True))),
        "rotary base": Fault("rope.freq_base is 2000000.0", fraction("smollm3.rope.freq_base", 2_000_000.0)),
    },
}


@pytest.fixture(scope="module")
def quantizer() -> Iterator[KernelQuantizer]:
    with KernelQuantizer(1) as opened:
        yield opened


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory, tokenizer: Path, quantizer: KernelQuantizer) -> Given:
    models: dict[str, Model] = {}
    files: dict[tuple[str, str], Path] = {}

    def of(family: str, file_type: str) -> tuple[Model, Path]:
        folder = tmp_path_factory.getbasetemp() / f"faults-{family}"
        if family not in models:
            models[family] = read_model(FAMILIES[family](folder, tokenizer))
        if (family, file_type) not in files:
            files[family, file_type] = folder.parent / f"faults-{family}-{file_type}.gguf"
            write_gguf(models[family], models[family].plan(file_type), files[family, file_type], quantizer)
        return models[family], files[family, file_type]

    return of


@pytest.mark.parametrize("file_type", [pytest.param("F16", marks=pytest.mark.thorough), "Q4_K_M"])
@pytest.mark.parametrize(("family", "kind"), [(family, kind) for family, kinds in FAULTS.items() for kind in kinds])
def test_a_fault_in_what_is_special_about_a_family_is_named(
    family: str, kind: str, file_type: str, given: Given, quantizer: KernelQuantizer, tmp_path: Path
) -> None:
    model, correct = given(family, file_type)
    content: Content = read_content(correct)
    FAULTS[family][kind].change(content)
    path = write_content(content, tmp_path / "m.gguf")
    with ByteProver(1, quantizer=quantizer) as prover:
        findings = prove(path, model.folder, prover, file_type=file_type).findings
    assert any(FAULTS[family][kind].named in finding for finding in findings), findings


@pytest.mark.parametrize("file_type", TYPES)
@pytest.mark.parametrize("family", FAULTS)
def test_the_file_without_a_fault_has_no_finding(
    family: str, file_type: str, given: Given, quantizer: KernelQuantizer
) -> None:
    model, correct = given(family, file_type)
    with ByteProver(1, quantizer=quantizer) as prover:
        assert prove(correct, model.folder, prover, file_type=file_type).findings == []
