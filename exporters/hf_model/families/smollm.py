"""SmolLM3: a Llama whose every fourth layer has no rotary positions.

Sources: transformers' modeling_smollm3.py; llama.cpp's src/models/smollm3.cpp, where the 4 is fixed.
"""

from __future__ import annotations

from collections.abc import Iterator

from exporters.hf_model.family import KEYS, Architecture, Settings, layer_of
from recipes.problems import shown

_STEP = 4


def _problems(settings: Settings) -> Iterator[str]:
    layers = range(int(settings["num_hidden_layers"]))
    allowed = [int((layer + 1) % _STEP != 0) for layer in layers]
    given = settings.get("no_rope_layers")
    if given is None:
        step = settings.get("no_rope_layer_interval", _STEP)
        if step != _STEP:
            yield f"no_rope_layer_interval — got {shown(step)}; allowed {_STEP}, the only value that llama.cpp supports"
    elif not isinstance(given, list) or [int(bool(item)) for item in given[: len(layers)]] != allowed:
        yield f"no_rope_layers — got {shown(given)}; allowed 0 for every {_STEP}th layer and 1 for the others"


SMOLLM3 = Architecture(
    "smollm3",
    layer_of(biased=("attn_q", "attn_k", "attn_v")),
    KEYS,
    permuted=True,
    defaults={"tie_word_embeddings": True, "rope_theta": 2_000_000.0},
    problems=_problems,
)
