"""The prepare stage: text, token shards or messages, by its field `output`."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from recipes.problems import printable
from recipes.setting import setting
from recipes.stages.code_fields import CodeFields
from recipes.stages.data_fields import DATASET, DataFormat, ReadFields, known_encoding
from recipes.stages.fields import STAGE_NAME, StageFields, Strict
from recipes.stages.kind import LIGHT, StageKind
from recipes.stages.row_fields import RowFields

ONE, TABLES = "one", "tables"
"""The two forms of a text's source."""
Cleaning = Literal["nfc", "control-characters", "line-ends", "trailing-spaces", "blank-lines"]


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


FileFormat = Literal["auto", "raw", "man", "html"]
"""What a file of a text source is."""


def _only_the_text(value: dict[str, str] | None) -> dict[str, str] | None:
    if unknown := [name for name in value or {} if name != "text"]:
        raise ValueError(
            f"columns — a document has only a text; got {printable(', '.join(unknown), 200)}; allowed: text"
        )
    return value


class WeightedSource(Strict):
    """One of several sources of a text (`[[stage.source]]`). What it does not set is that of the stage."""

    path: str = setting(
        section="Source",
        folder=True,
        or_file=True,
        min_length=1,
        help='File or folder to read, or "python-stdlib".',
    )
    name: str | None = setting(
        None,
        section="Source",
        pattern=STAGE_NAME,
        help="Name in reports, and first part of its documents' names; by default, the last part of the path.",
    )
    weight: float | None = setting(
        None,
        section="Source",
        gt=0,
        le=1e9,
        help="Share of the text, in any unit: 40, 30, 20 and 10 are percent. Without weights, each source has the share"
        " of its size.",
    )
    epochs: float = setting(
        1.0,
        section="Source",
        gt=0,
        le=1000,
        help="How often its documents may be repeated in the train split to reach its weight; 1 repeats no document.",
    )
    optional: bool = setting(
        False, section="Source", help="Leave the source out, and report it, if the path does not exist."
    )
    include: list[str] | None = setting(None, section="Source", help="Files to read: patterns.")
    exclude: list[str] | None = setting(None, section="Source", help="Files to skip: patterns.")
    format: FileFormat | None = setting(None, section="Source", help="What a file is.")
    columns: dict[str, str] | None = setting(None, section="Source", help="Where a row has its text.")
    encoding: str | None = setting(None, section="Source", min_length=1, help="Encoding of the files.")

    @field_validator("columns")
    @classmethod
    def _only_the_text(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        return _only_the_text(value)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return known_encoding(value)

    @property
    def label(self) -> str:
        """Its name in reports."""
        if self.name is not None:
            return self.name
        last = re.sub(r"[^a-z0-9]+", "-", self.path.rstrip("/").rpartition("/")[2].lower()).strip("-")
        return last[:40].strip("-") or "source"


Sources = Annotated[
    Annotated[str, Field(min_length=1), Tag(ONE)]
    | Annotated[list[WeightedSource], Field(min_length=1, max_length=100), Tag(TABLES)],
    Discriminator(lambda value: TABLES if isinstance(value, list) else ONE),
]
"""One source by its path, or several with weights."""


class PrepareText(SplitFields):
    """Documents from files of text, of one source or of several with weights, split once into train, val and test."""

    kind: Literal["prepare"] = "prepare"
    output: Literal["text"]
    source: Sources = setting(
        section="Source",
        folder=True,
        or_file=True,
        help='File or folder to read, or "python-stdlib" for the standard library of the running Python. Several'
        " sources are tables [[stage.source]], each with a path and a weight.",
    )
    mixture_temperature: float = setting(
        1.0,
        section="Source",
        gt=0,
        advanced=True,
        help="Weights of several sources are raised to the power of 1 / mixture_temperature; above 1, small sources"
        " have more of the text.",
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
    format: FileFormat = setting(
        "auto",
        section="Source",
        advanced=True,
        help="What a file is: by its name, a table of documents, a page of HTML, a manual page or a text (auto); or"
        " always one text (raw), a manual page (man), or a page (html).",
    )
    clean: list[Cleaning] = setting(
        default_factory=list,
        section="Source",
        advanced=True,
        help="Changes of each document's text: nfc composes characters, control-characters removes those but tab and"
        " line ends, line-ends makes all of them \\n, trailing-spaces removes them, blank-lines leaves two of several."
        " By default, a text is not changed.",
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
    split_by: Literal["document", "file", "folder"] = setting(
        "document",
        section="Split",
        help="Documents that are never in two splits: none, the pieces and rows of a file, or the files of a folder.",
    )
    near_duplicates: Literal["ignore", "keep", "drop"] = setting(
        "ignore",
        section="Split",
        help="Documents that share most of their runs of five words, also of two sources: ignore does not search them,"
        " keep leaves them in one split, drop keeps the first of them.",
    )
    near_duplicate_similarity: float = setting(
        0.8,
        section="Split",
        ge=0.5,
        le=1,
        help="Jaccard similarity of two documents' runs of five words from which they are near duplicates.",
    )

    @field_validator("columns")
    @classmethod
    def _only_the_text(cls, value: dict[str, str]) -> dict[str, str]:
        _only_the_text(value)
        return value

    @model_validator(mode="after")
    def _fitting_sources(self) -> PrepareText:
        if isinstance(self.source, str):
            return self
        names = [one.label for one in self.source]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"source — two sources have one name; got {', '.join(twice)}; set name in each table")
        weighted = [one.label for one in self.source if one.weight is not None]
        if 0 < len(weighted) < len(names):
            raise ValueError(
                f"source — some sources have no weight; got {', '.join(weighted)} with one; allowed: a weight in each"
                " table, or in no table"
            )
        return self

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
    shard_tokens: int | None = setting(
        None,
        section="Tokens",
        ge=1024,
        unit="tokens",
        help="Tokens after which a document ends a shard, so that a split is train-00000-of-00003.bin and so on; by"
        " default, a split is one file.",
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
    if isinstance(stage, PrepareText):
        return (*LIGHT, "numpy", *_of_near(stage)) if stage.near_duplicates != "ignore" else LIGHT
    parsers = () if "python" in stage.languages else ("tree-sitter",)
    return (*LIGHT, "numpy", *parsers, *_of_near(stage))


def _of_near(stage: PrepareText | PrepareMessages) -> tuple[str, ...]:
    return () if stage.near_duplicates == "ignore" else ("rensa",)


def _metrics(stage: PrepareStage) -> tuple[str, ...]:
    if isinstance(stage, PrepareText):
        mixed = () if isinstance(stage.source, str) else ("mixture_error",)
        near_text = ("near_duplicates",) if stage.near_duplicates != "ignore" else ()
        return ("documents", "bytes", "dropped", "divided", "duplicates", *mixed, *near_text)
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
