"""The prepare stage: text, token shards or messages, by its field `output`."""

from __future__ import annotations

from typing import Literal

from pydantic import field_validator

from recipes.problems import printable
from recipes.setting import setting
from recipes.stages.code_fields import CodeFields
from recipes.stages.data_fields import DATASET, DataFormat, ReadFields, known_encoding
from recipes.stages.fields import StageFields
from recipes.stages.kind import LIGHT, StageKind
from recipes.stages.row_fields import RowFields


class SplitFields(StageFields):
    """The split of documents into train, val and test, by a keyed hash of their path."""

    val_fraction: float = setting(
        0.05, section="Split", ge=0, lt=0.5, help="Share of the documents or rows held out for validation."
    )
    test_fraction: float = setting(
        0.05, section="Split", ge=0, lt=0.5, help="Share of the documents or rows held out for the final test."
    )
    seed: int = setting(
        42, section="Split", ge=0, help="Key of the split; the same seed gives the same split on any machine."
    )


class PrepareText(SplitFields):
    """Documents from files of text, split once into train, val and test."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["text"]
    source: str = setting(
        section="Source",
        folder=True,
        or_file=True,
        min_length=1,
        help='File or folder to read, or "python-stdlib" for the standard library of the running Python.',
    )
    include: list[str] = setting(
        default_factory=list,
        section="Source",
        help="Files to read: patterns of file names or, with a slash, of paths inside the source. By default, files of"
        " text, program sources, HTML, JSON Lines, Parquet and Arrow, by their suffix; what is left out is counted.",
    )
    exclude: list[str] = setting(
        default_factory=list, section="Source", help="Files to skip: patterns of paths inside the source."
    )
    format: Literal["auto", "raw"] = setting(
        "auto",
        section="Source",
        advanced=True,
        help='What a file is: by its suffix, a table of documents, a page or a text ("auto"), or always one text'
        ' ("raw").',
    )
    columns: dict[str, str] = setting(
        default_factory=dict,
        section="Source",
        help="Where a row of JSON Lines, JSON, CSV, Parquet or Arrow has its text, if the key is not text:"
        ' {text = "content"}, with dots inside an object.',
    )
    on_bad_row: Literal["error", "skip"] = setting(
        "error",
        section="Source",
        help="What a row without a text does: end the stage with its file and line, or be skipped and counted.",
    )
    encoding: str | None = setting(
        None,
        section="Source",
        advanced=True,
        min_length=1,
        help="Encoding of the files, such as latin-1; by default UTF-8, what a byte-order mark says, or what a Python"
        " source or an HTML page declares.",
    )
    max_file_bytes: int | None = setting(
        None,
        section="Source",
        gt=0,
        unit="bytes",
        help="Maximum size of a file; larger files are skipped and counted. By default, no file is too large.",
    )
    max_document_bytes: int | None = setting(
        None,
        section="Source",
        ge=64,
        unit="bytes",
        help="Maximum size of a document; longer texts are divided at the ends of paragraphs or lines. By default,"
        " 1048576, and less where one text is longer than a held-out split, such as a single book; program sources"
        " stay whole.",
    )
    max_bytes: int | None = setting(
        None,
        section="Source",
        gt=0,
        unit="bytes",
        help="Maximum amount of text; documents are taken in the order of their hash.",
    )

    @field_validator("columns")
    @classmethod
    def _only_the_text(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := [name for name in value if name != "text"]:
            raise ValueError(
                f"columns — a document has only a text; got {printable(', '.join(unknown), 200)}; allowed: text"
            )
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return known_encoding(value)


class PrepareTokens(StageFields):
    """Token shards from a text stage and a tokenizer."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["tokens"]
    data: str = setting(section="Inputs", accepts=("text",), help="The text stage to tokenize.")
    tokenizer: str = setting(
        section="Inputs",
        accepts=("tokenizer", "model"),
        help="The tokenizer stage, or any model or folder with tokenizer.json or tokenizer.model.",
    )
    eos_token: str | None = setting(
        None,
        section="Tokens",
        min_length=1,
        help="Token that ends each document, as the tokenizer spells it; by default, the tokenizer's eos_token.",
    )


class PrepareMessages(SplitFields, ReadFields, RowFields, CodeFields):
    """Rows of any format, or questions about a code base, divided into train, val and test."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["messages"]
    data: str | None = setting(
        None,
        section="Inputs",
        accepts=("text", "messages", DATASET),
        help="Rows: a file, a folder of files, or the id of a dataset in the hub cache. Or code: a text stage, whose"
        " split is kept, or a folder of sources, which is split by file.",
    )
    format: Literal[DataFormat, "code"] = setting(
        "auto",
        section="Data",
        help="Shape of a row; auto finds it by the keys of each file's first row. With code, the data is sources, and"
        " questions are answered from them.",
    )


PrepareStage = PrepareText | PrepareTokens | PrepareMessages


def _needs(stage: PrepareStage) -> tuple[str, ...]:
    if isinstance(stage, PrepareTokens):
        return (*LIGHT, "sentencepiece", "tokenizers")
    if not isinstance(stage, PrepareMessages):
        return LIGHT
    parsers = () if "python" in stage.languages else ("tree-sitter",)
    near = () if stage.near_duplicates == "ignore" else ("rensa",)
    return (*LIGHT, "numpy", *parsers, *near)


def _metrics(stage: PrepareStage) -> tuple[str, ...]:
    if isinstance(stage, PrepareText):
        return ("documents", "bytes", "dropped", "divided")
    if isinstance(stage, PrepareTokens):
        return (
            "tokens", "documents", "bytes", "bytes_per_token", "control_strings", "space_marks", "unknown_tokens",
            "changed", "left_out",
        )  # fmt: skip
    of_code = ("secrets",) if stage.format in ("auto", "code") else ()
    of_rows = ("skipped_rows", "duplicates", "train_rows", "val_rows", "test_rows") if stage.format != "code" else ()
    near = ("near_duplicates",) if stage.near_duplicates != "ignore" else ()
    probe = ("probe_rows",) if stage.probe_rows is not None else ()
    return ("examples", "rows", "dropped", *of_code, *of_rows, *near, *probe)


PREPARE = StageKind[PrepareStage](
    kind="prepare",
    types={"text": PrepareText, "tokens": PrepareTokens, "messages": PrepareMessages},
    module="engines.data.stage",
    needs=_needs,
    metrics=_metrics,
    metrics_if=(("probe_rows", 1, "probe_rows to the rows of the fact probe"),),
)
