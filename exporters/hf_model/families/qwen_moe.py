"""Qwen3 with a mixture of experts in every layer.

Sources: transformers' modeling_qwen3_moe.py; llama.cpp's src/models/qwen3moe.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporters.hf_model.family import ATTENTION, HEAD_NORMS, KEYS, Architecture, Key, Part, Settings, layer_of
from recipes.problems import shown

_MOST_EXPERTS = 512
"""llama.cpp's LLAMA_MAX_EXPERTS."""


def _experts(settings: Settings) -> int:
    """Number of experts; newer versions of transformers save it by another name."""
    return int(_given_experts(settings))


def _given_experts(settings: Settings) -> int:
    found: int = settings.get("num_experts", settings.get("num_local_experts", 128))
    return found


def _problems(settings: Settings) -> Iterator[str]:
    experts, used = _given_experts(settings), settings["num_experts_per_tok"]
    if not _is_count(experts, _MOST_EXPERTS):
        yield f"num_experts — got {shown(experts)}; allowed a whole number from 1 to {_MOST_EXPERTS}"
    elif not _is_count(used, experts):
        yield f"num_experts_per_tok — got {shown(used)}; allowed a whole number from 1 to num_experts, {experts}"
    inner = settings["moe_intermediate_size"]
    if not _is_count(inner, 2**24):
        yield f"moe_intermediate_size — got {shown(inner)}; allowed a whole number from 1 to {2**24}"
    if settings["norm_topk_prob"] is not True:
        yield (
            f"norm_topk_prob — got {shown(settings['norm_topk_prob'])}; allowed true: llama.cpp's qwen3moe always "
            "scales the chosen experts' weights to a sum of 1"
        )
    if settings["decoder_sparse_step"] != 1 or settings["mlp_only_layers"]:
        yield (
            f"decoder_sparse_step, mlp_only_layers — got {shown(settings['decoder_sparse_step'])}, "
            f"{shown(settings['mlp_only_layers'])}; allowed 1 and []: llama.cpp's qwen3moe has experts in every layer"
        )


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


QWEN3_MOE = Architecture(
    "qwen3moe",
    layer_of(
        *HEAD_NORMS,
        Part("ffn_gate_inp", "mlp.gate", (_experts, "hidden_size")),
        *(
            Part(f"ffn_{name}_exps", f"mlp.experts.{{expert}}.{name}_proj", shape, experts=_experts)
            for name, shape in {
                "gate": ("moe_intermediate_size", "hidden_size"),
                "up": ("moe_intermediate_size", "hidden_size"),
                "down": ("hidden_size", "moe_intermediate_size"),
            }.items()
        ),
        biased=ATTENTION,
        without=("ffn_gate", "ffn_up", "ffn_down"),
    ),
    (
        *KEYS,
        Key("expert_count", _experts),
        Key("expert_used_count", "num_experts_per_tok"),
        Key("expert_feed_forward_length", "moe_intermediate_size"),
    ),
    defaults={
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    problems=_problems,
)
