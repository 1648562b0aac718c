"""OLMo 2: no norms before attention and feed-forward, but after them; queries and keys are normed over all heads.

Sources: transformers' modeling_olmo2.py; llama.cpp's src/models/olmo2.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporters.hf_model.family import KEYS, Architecture, Part, Settings, layer_of


def _problems(settings: Settings) -> Iterator[str]:
    if settings["tie_word_embeddings"]:
        yield "tie_word_embeddings — got true; allowed false: llama.cpp's olmo2 has no tied output head"


OLMO2 = Architecture(
    "olmo2",
    layer_of(
        Part("attn_q_norm", "self_attn.q_norm", ("query_rows",)),
        Part("attn_k_norm", "self_attn.k_norm", ("key_rows",)),
        Part("post_attention_norm", "post_attention_layernorm", ("hidden_size",)),
        Part("post_ffw_norm", "post_feedforward_layernorm", ("hidden_size",)),
        without=("attn_norm", "ffn_norm"),
    ),
    KEYS,
    free_head_width=False,
    problems=_problems,
)
