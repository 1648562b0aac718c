"""What llama.cpp's quantizer sees in a tensor's name: its part in a layer, and whether it is quantized at all.

The names are those of `tensor_get_category` and `tensor_allows_quantization` in llama.cpp's src/llama-quant.cpp.
"""

from __future__ import annotations

EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"

_PARTS = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_q.weight", "attn_q"),
    ("attn_output.weight", "attn_output"),
    ("ffn_up", "ffn_up"),
    ("ffn_gate", "ffn_gate"),
    ("ffn_down", "ffn_down"),
)
"""A piece of a name, and the part; the first that occurs counts. Fused projections count as value projections."""

_KEPT = (
    "_norm.weight",
    "ffn_gate_inp.weight",
    "ffn_gate_tid2eid.weight",
    "altup",
    "laurel",
    "per_layer_model_proj",
    "ssm_conv1d",
    "shortconv.conv.weight",
    "indexer.k_proj.weight",
    "indexer.q_proj.weight",
    *(
        f"time_mix_{name}.weight"
        for name in ["first", "w0", "w1", "w2", "v0", "v1", "v2", "a0", "a1", "a2", "g1", "g2", "decay_w1", "decay_w2"]
    ),
    "time_mix_lerp_fused.weight",
    "attn_rel_b.weight",
    ".position_embd",
    "sam.pos_embd",
    "sam.neck.",
    "sam.net_",
    ".rel_pos",
    ".patch_embd",
    ".patch_merger",
    "a.rvq.codebook",
    "mm.a.code_embd",
)
"""Pieces of the names of matrices that are never quantized: norms, routers and other small ones."""
_KEPT_WHOLE = frozenset({"position_embd.weight", "token_types.weight"})


def part_of(name: str) -> str:
    """The part that a tensor's type depends on; "other" for a tensor that gets the base type."""
    if name in EMBEDDINGS or name == OUTPUT:
        return "other"
    return next((part for piece, part in _PARTS if piece in name), "other")


def keeps_type(name: str) -> bool:
    """Whether llama.cpp leaves a tensor of this name in its type."""
    return not name.endswith("weight") or name in _KEPT_WHOLE or any(piece in name for piece in _KEPT)
