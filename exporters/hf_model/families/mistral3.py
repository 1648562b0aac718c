"""Ministral 3, and the language models of Mistral 3: a Llama whose queries grow with the position.

Sources: transformers' modeling_ministral3.py; llama.cpp's src/models/mistral3.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from exporters.hf_model.family import KEYS, Architecture, Key, Settings, layer_of
from recipes.problems import shown

_TEXT = "ministral3"
"""`model_type` of language models whose queries grow; "mistral" is one whose queries do not."""


def _rope(settings: Settings) -> dict[str, Any]:
    rope = settings.get("rope_parameters")
    return rope if isinstance(rope, dict) else {}


def _beta(settings: Settings) -> float | None:
    return _rope(settings).get("llama_4_scaling_beta") if settings.get("model_type") == _TEXT else None


def _problems(settings: Settings) -> Iterator[str]:
    kind = settings.get("model_type")
    if kind not in (_TEXT, "mistral"):
        yield f"model_type — got {shown(kind)}; allowed {_TEXT}, mistral"
    beta = _rope(settings).get("llama_4_scaling_beta")
    wanted = kind == _TEXT
    if wanted and (isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 < beta < float("inf")):
        yield f"rope_parameters.llama_4_scaling_beta — got {shown(beta)}; allowed a number above 0"


MINISTRAL3 = Architecture(
    "mistral3",
    layer_of(),
    (*KEYS, Key("attention.temperature_scale", _beta, "float32")),
    permuted=True,
    rope_kinds=("default", "linear", "yarn", "llama3"),
    yarn_boundaries=True,
    problems=_problems,
)
MISTRAL3_WITH_VISION = replace(
    MINISTRAL3,
    prefix="model.language_model.",
    stored=(
        ("language_model.model.", "model.language_model."),
        ("language_model.lm_head.", "lm_head."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ),
    left_out={"model.vision_tower.": "vision", "model.multi_modal_projector.": "vision"},
    defaults={"tie_word_embeddings": True},
)
