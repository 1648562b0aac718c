"""The evaluate stage."""

from __future__ import annotations

from typing import Literal

from recipes.setting import setting
from recipes.stages.data_fields import DATASET, READ_METRICS, DataFields
from recipes.stages.fields import DeviceFields
from recipes.stages.kind import TRAIN, StageKind
from recipes.stages.label_fields import LABEL_METRICS, LabelFields


class EvaluateStage(DeviceFields, DataFields, LabelFields):
    """Token-weighted loss and perplexity on held-out data, and greedy answers to a few questions."""

    kind: Literal["evaluate"] = "evaluate"
    model: str = setting(
        section="Inputs", accepts=("model", "adapter"), help="The model or adapter: a stage, a folder, or a hub id."
    )
    data: str = setting(
        section="Inputs",
        accepts=("messages", "text", "tokens", DATASET),
        help="The messages, texts or tokens to evaluate on: a stage, a file, a folder, or the id of a dataset in the"
        " hub cache.",
    )
    split: Literal["train", "val", "test"] = setting("test", section="Evaluation", help="Split to evaluate on.")
    max_length: int = setting(
        512,
        section="Evaluation",
        ge=8,
        unit="tokens",
        help="Longest sequence; longer rows are left out, cut or refused, and counted.",
    )
    max_tokens: int = setting(
        200_000, section="Evaluation", ge=1, unit="tokens", help="Stop after this many scored tokens."
    )
    per_device_eval_batch_size: int = setting(8, section="Evaluation", ge=1, help="Sequences per forward pass.")
    answers: int = setting(
        0, section="Answers", ge=0, le=1000, help="Number of questions from the split to answer with greedy decoding."
    )
    max_new_tokens: int = setting(48, section="Answers", ge=1, unit="tokens", help="Maximum length of an answer.")


EVALUATE = StageKind(
    kind="evaluate",
    types={"report": EvaluateStage},
    module="engines.evaluate.stage",
    needs=lambda _stage: TRAIN,
    metrics=lambda _stage: ("loss", "perplexity", "tokens_per_second", "truncated", *LABEL_METRICS, *READ_METRICS),
    scores=True,
    same_shape_as="model",
)
