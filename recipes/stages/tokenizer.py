"""The tokenizer stage."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recipes.setting import setting
from recipes.stages.fields import StageFields
from recipes.stages.kind import LIGHT, StageKind

SENTENCEPIECE, BYTE_LEVEL = "sentencepiece", "byte-level"
Algorithm = Literal["sentencepiece", "byte-level"]


class TokenizerStage(StageFields):
    """A lossless BPE tokenizer, of SentencePiece or byte-level, with identical ids in transformers and GGUF."""

    kind: Literal["tokenizer"] = "tokenizer"
    data: str = setting(section="Inputs", accepts=("text",), help="The text stage; only its train split is used.")
    algorithm: Algorithm = setting(
        "sentencepiece",
        section="Vocabulary",
        help="How text is divided: sentencepiece merges characters, and spells rare ones with bytes; byte-level merges"
        " bytes inside of words, as GPT-2 and Qwen2 do. Both give every text back.",
    )
    vocab_size: int = setting(
        4096, section="Vocabulary", ge=300, le=262_144, help="Number of pieces, including special pieces."
    )
    character_coverage: float = setting(
        1.0,
        section="Vocabulary",
        ge=0.98,
        le=1,
        help="Share of characters that have their own pieces; the rest fall back to bytes. Not for byte-level.",
    )
    split_digits: bool = setting(True, section="Vocabulary", help="Split numbers into digits, one piece each.")
    max_bytes: int | None = setting(
        None, section="Vocabulary", gt=0, unit="bytes", help="Maximum amount of train-split text to train on."
    )
    seed: int = setting(42, section="Vocabulary", ge=0, help="Seed for the choice of text when max_bytes limits it.")

    @model_validator(mode="after")
    def _of_its_algorithm(self) -> TokenizerStage:
        if self.algorithm == BYTE_LEVEL and self.character_coverage != 1.0:
            raise ValueError(
                f"character_coverage — a byte-level tokenizer has no characters; got {self.character_coverage};"
                ' allowed 1.0, or algorithm = "sentencepiece"'
            )
        return self


TOKENIZER = StageKind(
    kind="tokenizer",
    types={"tokenizer": TokenizerStage},
    module="engines.tokenizer.stage",
    needs=lambda _stage: (*LIGHT, "sentencepiece", "protobuf", "tokenizers", "transformers"),
    metrics=lambda _stage: ("vocab_size", "bytes", "documents", "parity_texts"),
)
