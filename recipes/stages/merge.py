"""The merge stage."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recipes.setting import setting
from recipes.stages.fields import MODEL_OUTPUTS, FilesFields
from recipes.stages.kind import LIGHT, StageKind


class MergeStage(FilesFields):
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
        help="Weight of each adapter, in the order of the adapters; 1 by default, and 0.5 adds half of the adapter.",
    )
    dtype: Literal["base", "float32", "bfloat16", "float16"] = setting(
        "base", section="Merge", help="Data type of the merged weights; base keeps that of the base model."
    )
    base_rounding: Literal["none", "nf4", "nf4-double"] = setting(
        "none",
        section="Merge",
        advanced=True,
        help="Round the base's linear layers to 4-bit NF4 and back before the merge, to match an adapter that was"
        " trained on a 4-bit base; evaluate both variants and keep the better one.",
    )
    untie_word_embeddings: bool = setting(
        False,
        section="Merge",
        advanced=True,
        help="Write a separate output head for a model with tied embeddings when the adapter changes only one of the"
        " two, as in training; PEFT's merge changes both.",
    )
    parity_positions: int = setting(
        512,
        section="Parity",
        ge=0,
        help="Token positions at which to compare the merged model with its base and adapter; 0 skips the comparison.",
    )

    @model_validator(mode="after")
    def _adapters_and_weights(self) -> MergeStage:
        if bool(self.adapters) == (self.adapter is not None):
            got = "both adapter and adapters" if self.adapters else "neither adapter nor adapters"
            raise ValueError(
                f"adapter — exactly one of the two is required; got {got}; allowed: adapter, or a list of adapters"
            )
        count = len(self.adapters) or 1
        if self.weights and len(self.weights) != count:
            raise ValueError(
                f"weights — one number for each adapter is required; got {len(self.weights)} for {count}; allowed:"
                f" {count} number{'s' if count > 1 else ''}, or an empty list"
            )
        return self


def _needs(stage: MergeStage) -> tuple[str, ...]:
    compared = ("transformers", "peft") if stage.parity_positions else ()
    rounded = ("bitsandbytes",) if stage.base_rounding != "none" else ()
    return (*LIGHT, "torch", "safetensors", *compared, *rounded)


_TO_TRAINED = ("kl_to_trained", "top1_to_trained", "adapter_kl_to_trained", "adapter_top1_to_trained")
"""Distances from the model that was trained, which a 4-bit base makes another one: of the merged model, and of the
adapter over its 16-bit base."""


def _metrics(stage: MergeStage) -> tuple[str, ...]:
    """A comparison is made of one adapter with weight 1."""
    sizes = ("parameters", "bytes", "tensors")
    compared = stage.parity_positions and len(stage.adapters) <= 1 and (stage.weights or [1.0]) == [1.0]
    return (*sizes, "mean_kl", "max_kl", "top1", *_TO_TRAINED) if compared else sizes


MERGE = StageKind(
    kind="merge",
    types={"model": MergeStage},
    module="exporters.stages.merge_stage",
    needs=_needs,
    metrics=_metrics,
    metrics_if=(("parity_positions", 1, "parity_positions to a number above 0"),),
    same_shape_as="model",
    reads_model_config=True,
)
