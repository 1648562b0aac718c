"""The audit's table of model families. It is independent of the writer's table, so that the audit finds mistakes there.

`exporters.hf_model.architectures` has the writer's; a test compares the two lists of families.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from exporters.proof import audit_meanings as meanings
from exporters.proof.audit_meanings import Meanings

LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class AuditFamily:
    """One family.

    Attributes:
        name: the required `general.architecture`.
        layer: the source's module by the tensor's GGUF name, both without their layer; with `{expert}` for the matrices
            of experts, which a file has stacked.
        permuted: whether llama.cpp stores the rows of queries and keys in another order than transformers.
        plus_one: whether the model multiplies by 1 + weight in norms; llama.cpp multiplies by what is stored.
        prefixes: the prefixes that the source's tensor names may have, except the output head's; a folder has one.
        heads: the names that the output head may have.
        meanings: what the family's own keys must mean.
        defaults: what llama.cpp takes for the family's absent keys, where it differs from other families.
        leafless: the source's parameter by the tensor's GGUF name, both without their layer, where the parameter's name
            has no end of its own.
        packed: the source's parameter of all experts by the tensor's GGUF name, both without their layer, and which of
            its columns are the rows of each expert's matrix.
        log_multiplier: whether llama.cpp reads rope.scaling.yarn_log_multiplier for the family.
    """

    name: str
    layer: Mapping[str, str]
    permuted: bool = False
    plus_one: bool = False
    prefixes: tuple[str, ...] = ("model.",)
    heads: tuple[str, ...] = ("lm_head.weight",)
    meanings: Callable[[Mapping[str, Any]], Meanings] = meanings.none
    defaults: Mapping[str, Any] = field(default_factory=dict)
    leafless: Mapping[str, str] = field(default_factory=dict)
    packed: Mapping[str, tuple[str, slice]] = field(default_factory=dict)
    log_multiplier: bool = False

    def prefix(self, names: Container[str]) -> str:
        """The prefix that these names of tensors have."""
        return next((prefix for prefix in self.prefixes if f"{prefix}embed_tokens.weight" in names), self.prefixes[0])

    def top(self, names: Container[str]) -> dict[str, str]:
        """The source's tensor by GGUF name, for tensors outside the layers."""
        prefix = self.prefix(names)
        return {
            "token_embd.weight": f"{prefix}embed_tokens.weight",
            "output_norm.weight": f"{prefix}norm.weight",
            "output.weight": next((head for head in self.heads if head in names), self.heads[0]),
        }

    def adds_one(self, tensor: str) -> bool:
        """Whether llama.cpp's values are the source's plus one."""
        return self.plus_one and tensor.endswith("norm.weight")


_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_SANDWICH = {
    **LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_AFTER = {
    **{part: module for part, module in LAYER.items() if part not in ("attn_norm", "ffn_norm")},
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_FUSED = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_up": "mlp.gate_up_proj",
    "ffn_down": "mlp.down_proj",
}
_MIXTURE = {
    **{part: module for part, module in LAYER.items() if not module.startswith("mlp.")},
    **_HEAD_NORMS,
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.{expert}.gate_proj",
    "ffn_up_exps": "mlp.experts.{expert}.up_proj",
    "ffn_down_exps": "mlp.experts.{expert}.down_proj",
}
_GPT_OSS = {
    **{part: module for part, module in LAYER.items() if not module.startswith("mlp.") and part != "ffn_norm"},
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}
_EVEN, _ODD, _ALL = slice(0, None, 2), slice(1, None, 2), slice(None)
_GPT_OSS_EXPERTS = {
    "ffn_gate_exps.weight": ("mlp.experts.gate_up_proj", _EVEN),
    "ffn_up_exps.weight": ("mlp.experts.gate_up_proj", _ODD),
    "ffn_down_exps.weight": ("mlp.experts.down_proj", _ALL),
    "ffn_gate_exps.bias": ("mlp.experts.gate_up_proj_bias", _EVEN),
    "ffn_up_exps.bias": ("mlp.experts.gate_up_proj_bias", _ODD),
    "ffn_down_exps.bias": ("mlp.experts.down_proj_bias", _ALL),
}
_MINISTRAL3 = AuditFamily("mistral3", LAYER, permuted=True, meanings=meanings.mistral3, log_multiplier=True)
_GEMMA3 = AuditFamily(
    "gemma3",
    _SANDWICH | _HEAD_NORMS,
    plus_one=True,
    meanings=meanings.gemma3,
    defaults={"rope.freq_base_swa": 10_000.0, "attention.sliding_window_pattern": 6},
)

FAMILIES: Mapping[str, AuditFamily] = {
    "Gemma2ForCausalLM": AuditFamily(
        "gemma2",
        _SANDWICH,
        plus_one=True,
        meanings=meanings.gemma2,
        defaults={
            "attention.sliding_window": 4096,
            "attention.sliding_window_pattern": 2,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3ForCausalLM": _GEMMA3,
    "Gemma3ForConditionalGeneration": replace(
        _GEMMA3,
        prefixes=("language_model.model.", "model.language_model."),
        heads=("language_model.lm_head.weight", "lm_head.weight"),
    ),
    "GptOssForCausalLM": AuditFamily(
        "gpt-oss",
        _GPT_OSS,
        meanings=meanings.gpt_oss,
        defaults={"attention.sliding_window_pattern": 2},
        leafless={"attn_sinks.weight": "self_attn.sinks"},
        packed=_GPT_OSS_EXPERTS,
    ),
    "GraniteForCausalLM": AuditFamily("granite", LAYER, permuted=True, meanings=meanings.granite),
    "LlamaForCausalLM": AuditFamily("llama", LAYER, permuted=True),
    "Ministral3ForCausalLM": _MINISTRAL3,
    "Mistral3ForConditionalGeneration": replace(
        _MINISTRAL3,
        prefixes=("language_model.model.", "model.language_model."),
        heads=("language_model.lm_head.weight", "lm_head.weight"),
    ),
    "MistralForCausalLM": AuditFamily("llama", LAYER, permuted=True),
    "Olmo2ForCausalLM": AuditFamily("olmo2", _AFTER | _HEAD_NORMS),
    "Phi3ForCausalLM": AuditFamily("phi3", _FUSED, meanings=meanings.phi3),
    "Qwen2ForCausalLM": AuditFamily("qwen2", LAYER),
    "Qwen3ForCausalLM": AuditFamily("qwen3", LAYER | _HEAD_NORMS),
    "Qwen3MoeForCausalLM": AuditFamily("qwen3moe", _MIXTURE, meanings=meanings.qwen3_moe),
    "SmolLM3ForCausalLM": AuditFamily("smollm3", LAYER, permuted=True),
}


def family_of(config: Mapping[str, Any]) -> AuditFamily:
    """The family of a model.

    Raises:
        KeyError: the audit does not support the family.
    """
    return FAMILIES[str(config["architectures"][0])]
