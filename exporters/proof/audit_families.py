"""The audit's table of model families. It is independent of the writer's table, so that the audit finds mistakes there.

`exporters.hf_model.architectures` has the writer's; a test compares the two lists of families.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
        layer: the source's module by the tensor's GGUF name, both without their layer.
        permuted: whether llama.cpp stores the rows of queries and keys in another order than transformers.
        prefix: the prefix of the source's tensor names, except the output head's.
    """

    name: str
    layer: Mapping[str, str]
    permuted: bool = False
    prefix: str = "model."

    @property
    def top(self) -> dict[str, str]:
        """The source's tensor by GGUF name, for tensors outside the layers."""
        return {
            "token_embd.weight": f"{self.prefix}embed_tokens.weight",
            "output_norm.weight": f"{self.prefix}norm.weight",
            "output.weight": "lm_head.weight",
        }


FAMILIES: Mapping[str, AuditFamily] = {
    "LlamaForCausalLM": AuditFamily("llama", LAYER, permuted=True),
    "MistralForCausalLM": AuditFamily("llama", LAYER, permuted=True),
    "Qwen2ForCausalLM": AuditFamily("qwen2", LAYER),
    "Qwen3ForCausalLM": AuditFamily(
        "qwen3", {**LAYER, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
    ),
}


def family_of(config: Mapping[str, Any]) -> AuditFamily:
    """The family of a model.

    Raises:
        KeyError: the audit does not support the family.
    """
    return FAMILIES[str(config["architectures"][0])]
