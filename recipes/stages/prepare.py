"""The prepare stage: text, token shards or messages, by its field `output`."""

from __future__ import annotations

from typing import Literal

from recipes.setting import setting
from recipes.stages.code_fields import CodeFields
from recipes.stages.fields import StageFields
from recipes.stages.kind import LIGHT, StageKind


class SplitFields(StageFields):
    """The split of documents into train, val and test, by a keyed hash of their path."""

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
        help="Files to read: patterns of file names or, with a slash, of paths inside the source.",
    )
    exclude: list[str] = setting(
        default_factory=list, section="Source", help="Files to skip: patterns of paths inside the source."
    )
    max_file_bytes: int = setting(
        1_048_576,
        section="Source",
        gt=0,
        unit="bytes",
        help="Maximum size of a file; larger files are skipped and counted.",
    )
    max_bytes: int | None = setting(
        None,
        section="Source",
        gt=0,
        unit="bytes",
        help="Maximum amount of text; files are taken in the order of their hash.",
    )


class PrepareTokens(StageFields):
    """Token shards from a text stage and a tokenizer."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["tokens"]
    data: str = setting(section="Inputs", accepts=("text",), help="The text stage to tokenize.")
    tokenizer: str = setting(
        section="Inputs", accepts=("tokenizer",), help="The tokenizer stage, or a folder with tokenizer.model."
    )


class PrepareMessages(CodeFields, SplitFields):
    """Questions about a code base, answered only from its sources."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["messages"]
    data: str = setting(
        section="Inputs",
        accepts=("text",),
        help="A text stage, whose split is kept, or a folder of sources, which is split by file.",
    )


PrepareStage = PrepareText | PrepareTokens | PrepareMessages


def _needs(stage: PrepareStage) -> tuple[str, ...]:
    if isinstance(stage, PrepareTokens):
        return (*LIGHT, "sentencepiece")
    if isinstance(stage, PrepareMessages) and "python" not in stage.languages:
        return (*LIGHT, "tree-sitter")
    return LIGHT


def _metrics(stage: PrepareStage) -> tuple[str, ...]:
    if isinstance(stage, PrepareText):
        return ("documents", "bytes", "dropped")
    if isinstance(stage, PrepareTokens):
        return ("tokens", "documents", "bytes", "bytes_per_token", "control_strings", "space_marks")
    return ("examples", "rows", "dropped", "secrets")


PREPARE = StageKind[PrepareStage](
    kind="prepare",
    types={"text": PrepareText, "tokens": PrepareTokens, "messages": PrepareMessages},
    module="engines.data.stage",
    needs=_needs,
    metrics=_metrics,
)
