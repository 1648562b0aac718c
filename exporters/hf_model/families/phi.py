"""Phi-3, Phi-3.5 and Phi-4: one matrix for queries, keys and values, one for gate and up; positions of part of a head.

Both matrices stay one in a GGUF file, in the same order of rows. Sources: transformers' modeling_phi3.py; llama.cpp's
src/models/phi3.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporters.hf_model.family import KEYS, Architecture, Key, Part, Settings, key_rows, layer_of, query_rows
from exporters.hf_model.rope import rotary_width


def _fused_attention(settings: Settings) -> int:
    return query_rows(settings) + 2 * key_rows(settings)


def _gate_and_up(settings: Settings) -> int:
    return 2 * int(settings["intermediate_size"])


def _original_context(settings: Settings) -> int:
    return PHI3.rope(settings).original_context or int(settings["max_position_embeddings"])


def _warnings(settings: Settings) -> Iterator[str]:
    rope = PHI3.rope(settings)
    if rope.long_factor:
        yield (
            f"llama.cpp takes the long rotary factors in every context above {rope.original_context} tokens, the model "
            "only for texts that are longer: give llama.cpp no larger context than a text needs"
        )


PHI3 = Architecture(
    "phi3",
    layer_of(
        Part("attn_qkv", "self_attn.qkv_proj", (_fused_attention, "hidden_size")),
        Part("ffn_up", "mlp.gate_up_proj", (_gate_and_up, "hidden_size")),
        without=("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"),
    ),
    (
        *(key for key in KEYS if key.name != "rope.dimension_count"),
        Key("rope.dimension_count", rotary_width),
        Key("rope.scaling.original_context_length", _original_context),
    ),
    free_head_width=False,
    rope_kinds=("default", "longrope"),
    partly_rotary=True,
    warnings=_warnings,
)
