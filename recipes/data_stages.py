"""The stages that make data: text, token shards, messages and the tokenizer."""

from __future__ import annotations

from typing import Literal

from recipes.setting import setting
from recipes.stage_fields import StageFields


class SplitFields(StageFields):
    """How documents are divided, once, into train, val and test by a keyed hash of their path."""

    val_fraction: float = setting(
        0.05, section="Split", ge=0, lt=0.5, help="Share of the files held out for validation."
    )
    test_fraction: float = setting(
        0.05, section="Split", ge=0, lt=0.5, help="Share of the files held out for the final test."
    )
    seed: int = setting(
        42, section="Split", ge=0, help="Key of the split; the same seed gives the same split on any machine."
    )


class PrepareText(SplitFields):
    """Documents from a source tree, split once into train, val and test."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["text"]
    source: str = setting(
        section="Source",
        folder=True,
        min_length=1,
        help='Folder to read, or "python-stdlib" for the standard library of the running Python.',
    )
    include: list[str] = setting(
        default_factory=lambda: ["*.py"],
        section="Source",
        help="Patterns of file names (or, with a slash, of paths inside the source) that are read.",
    )
    exclude: list[str] = setting(
        default_factory=list, section="Source", help="Patterns on the path inside the source that are left out."
    )
    max_file_bytes: int = setting(
        1_048_576, section="Source", gt=0, unit="bytes", help="Larger files are left out and counted."
    )
    max_bytes: int | None = setting(
        None,
        section="Source",
        gt=0,
        unit="bytes",
        help="Stop after this much text, taking files in the order of their hash.",
    )


class PrepareTokens(StageFields):
    """Token shards from a text stage and a tokenizer."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["tokens"]
    data: str = setting(section="Inputs", accepts=("text",), help="The text stage whose documents are tokenized.")
    tokenizer: str = setting(
        section="Inputs", accepts=("tokenizer",), help="The tokenizer stage, or a folder with tokenizer.model."
    )


class PrepareMessages(SplitFields):
    """Questions about a Python code base, answered only from its docstrings, signatures and bases."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["messages"]
    data: str = setting(
        section="Inputs",
        accepts=("text",),
        help="A text stage (its split is kept) or a folder of Python sources (split here).",
    )
    questions: list[Literal["docstring", "signature", "bases"]] = setting(
        default_factory=lambda: ["docstring", "signature", "bases"],
        section="Questions",
        min_length=1,
        help="Kinds of facts asked for.",
    )
    max_examples: int | None = setting(
        None, section="Questions", gt=0, help="At most this many examples in all, shared out over the splits."
    )
    max_answer_chars: int = setting(
        400,
        section="Questions",
        gt=0,
        unit="characters",
        help="Examples with a longer answer are left out and counted.",
    )


class TokenizerStage(StageFields):
    """A SentencePiece BPE tokenizer, lossless, with identical ids in SentencePiece, transformers and GGUF."""

    kind: Literal["tokenizer"] = "tokenizer"
    data: str = setting(section="Inputs", accepts=("text",), help="The text stage; only its train split is seen.")
    vocab_size: int = setting(
        4096, section="Vocabulary", ge=300, le=262_144, help="Number of pieces, special ones included."
    )
    character_coverage: float = setting(
        1.0,
        section="Vocabulary",
        ge=0.98,
        le=1,
        help="Share of characters that get pieces of their own; the rest fall back to bytes.",
    )
    split_digits: bool = setting(True, section="Vocabulary", help="Give every digit its own piece.")
    max_bytes: int | None = setting(
        None, section="Vocabulary", gt=0, unit="bytes", help="Train on at most this much of the train split."
    )
    seed: int = setting(42, section="Vocabulary", ge=0, help="Seed of the choice of text when max_bytes limits it.")
