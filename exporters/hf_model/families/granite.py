"""Granite 3 and 4 with dense layers: a Llama with four multipliers.

Sources: transformers' modeling_granite.py; llama.cpp's src/models/granite.cpp, which takes 0 as "not set".
"""

from __future__ import annotations

from collections.abc import Iterator

from exporters.hf_model.family import KEYS, PROJECTIONS, Architecture, Key, Settings, layer_of
from recipes.problems import shown

_SCALES = {
    "attention.scale": "attention_multiplier",
    "embedding_scale": "embedding_multiplier",
    "residual_scale": "residual_multiplier",
    "logit_scale": "logits_scaling",
}


def _problems(settings: Settings) -> Iterator[str]:
    for name in _SCALES.values():
        value = settings[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
            yield f"{name} — got {shown(value)}; allowed a number above 0"


GRANITE = Architecture(
    "granite",
    layer_of(biased=PROJECTIONS),
    (*KEYS, *(Key(name, setting, "float32") for name, setting in _SCALES.items())),
    permuted=True,
    defaults=dict.fromkeys(_SCALES.values(), 1.0),
    rope_kinds=("default", "linear", "yarn", "llama3"),
    problems=_problems,
)
