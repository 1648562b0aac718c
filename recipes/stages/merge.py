"""The merge stage."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recipes.setting import setting
from recipes.stages.fields import MODEL_OUTPUTS, StageFields
from recipes.stages.kind import LIGHT, StageKind


class MergeStage(StageFields):
    """Adapters merged into their 16- or 32-bit base: W + weight * scale * B A, summed in float32 and rounded once."""

    kind: Literal["merge"] = "merge"
    model: str = setting(
        section="Inputs", accepts=MODEL_OUTPUTS, help="The base model: a stage, a folder, or a hub id."
    )
    adapter: str | None = setting(
        None, section="Inputs", accepts=("adapter",), help="The adapter: a finetune stage or a folder."
    )
    adapters: list[str] = setting(
        default_factory=list,
        section="Inputs",
        accepts=("adapter",),
        help="Several adapters instead of one: finetune stages or folders.",
    )
    weights: list[float] = setting(
        default_factory=list,
        section="Merge",
        help="How much of each adapter is added, in their order; 1 each by default. 0.5 keeps half of what "
        "was learned.",
    )
    dtype: Literal["base", "float32", "bfloat16", "float16"] = setting(
        "base", section="Merge", help="Type of the merged weights; base keeps the base model's."
    )
    base_rounding: Literal["none", "nf4", "nf4-double"] = setting(
        "none",
        section="Merge",
        advanced=True,
        help="Round the base's linear layers to 4-bit NF4 and back first, as an adapter trained over a 4-bit base saw"
        " them; evaluate both and keep the better one.",
    )
    untie_word_embeddings: bool = setting(
        False,
        section="Merge",
        advanced=True,
        help="Give a model whose head is its embedding a head of its own when the adapter changes only one of them, as"
        " it was in training; PEFT's merge changes both.",
    )
    parity_positions: int = setting(
        512,
        section="Parity",
        ge=0,
        help="Token positions at which the merged model is compared with the adapter over its base; 0 skips it.",
    )

    @model_validator(mode="after")
    def _adapters_and_weights(self) -> MergeStage:
        if bool(self.adapters) == (self.adapter is not None):
            got = "both adapter and adapters" if self.adapters else "neither adapter nor adapters"
            raise ValueError(f"adapter — what is merged; got {got}; allowed: adapter, or a list of adapters")
        count = len(self.adapters) or 1
        if self.weights and len(self.weights) != count:
            raise ValueError(
                f"weights — one for each adapter; got {len(self.weights)} for {count}; allowed: {count} "
                "numbers, or none"
            )
        return self


def _needs(stage: MergeStage) -> tuple[str, ...]:
    compared = ("transformers", "peft") if stage.parity_positions else ()
    rounded = ("bitsandbytes",) if stage.base_rounding != "none" else ()
    return (*LIGHT, "torch", "safetensors", *compared, *rounded)


MERGE = StageKind(
    kind="merge",
    types={"model": MergeStage},
    module="exporters.stages.merge_stage",
    needs=_needs,
    same_shape_as="model",
    reads_model_config=True,
)
