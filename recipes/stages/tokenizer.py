"""The tokenizer stage."""

from __future__ import annotations

from typing import Literal

from recipes.setting import setting
from recipes.stages.fields import StageFields
from recipes.stages.kind import LIGHT, StageKind


class TokenizerStage(StageFields):
    """A lossless SentencePiece BPE tokenizer with identical ids in SentencePiece, transformers and GGUF."""

    kind: Literal["tokenizer"] = "tokenizer"
    data: str = setting(section="Inputs", accepts=("text",), help="The text stage; only its train split is used.")
    vocab_size: int = setting(
        4096, section="Vocabulary", ge=300, le=262_144, help="Number of pieces, including special pieces."
    )
    character_coverage: float = setting(
        1.0,
        section="Vocabulary",
        ge=0.98,
        le=1,
        help="Share of characters that have their own pieces; the rest fall back to bytes.",
    )
    split_digits: bool = setting(True, section="Vocabulary", help="Split numbers into digits, one piece each.")
    max_bytes: int | None = setting(
        None, section="Vocabulary", gt=0, unit="bytes", help="Maximum amount of train-split text to train on."
    )
    seed: int = setting(42, section="Vocabulary", ge=0, help="Seed for the choice of text when max_bytes limits it.")


TOKENIZER = StageKind(
    kind="tokenizer",
    types={"tokenizer": TokenizerStage},
    module="engines.tokenizer.stage",
    needs=lambda _stage: (*LIGHT, "sentencepiece", "protobuf", "transformers"),
    metrics=lambda _stage: ("vocab_size", "bytes", "documents", "parity_texts"),
)
