"""What a look at a stage's data finds, as the process that looks sends it to the one that asked."""

from __future__ import annotations

from typing import Any

import msgspec

DEFECTS = 20
"""The most defects that a look lists; it counts all of them."""


class Defect(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something in the data or the model that the stage would refuse.

    Attributes:
        field: the field of the stage that names what is wrong.
        message: where (file and line) and what.
        hint: what to do; may be empty.
    """

    field: str
    message: str
    hint: str = ""


class SplitLook(msgspec.Struct, omit_defaults=True):
    """The rows of one split.

    Attributes:
        split: train, val or test.
        files: their names.
        formats: shapes and containers of the files, such as "messages in JSON Lines".
        rows: rows that were read.
        examples: examples that they become.
        skipped_rows: rows that cannot be read, where the stage leaves them out.
        truncated_rows, dropped_rows, refused_rows: as the stage will count them.
        tokens: of all examples, after the cut.
        scored_tokens: tokens that the loss counts.
        longest: tokens of the longest row before the cut.
        histogram: for each bar, its first and last number of tokens and its number of rows, before the cut.
        read_all: every row was read; else the first rows.
        labelled_all: every row was labelled; else `examples` and what follows are those of the first `labelled` rows.
        labelled: rows that were labelled.
    """

    split: str
    files: list[str] = []
    formats: list[str] = []
    rows: int = 0
    examples: int = 0
    skipped_rows: int = 0
    truncated_rows: int = 0
    dropped_rows: int = 0
    refused_rows: int = 0
    tokens: int = 0
    scored_tokens: int = 0
    longest: int = 0
    histogram: list[tuple[int, int, int]] = []
    read_all: bool = True
    labelled_all: bool = True
    labelled: int = 0


class StageLook(msgspec.Struct, omit_defaults=True):
    """What a look at one stage found.

    Attributes:
        stage: its name.
        splits: the splits that the stage reads.
        defects: at most `DEFECTS` of those found.
        more_defects: number of the others.
        warnings: what the stage will do that may surprise.
        max_length: where rows are cut; 0 without a limit.
        unlabelled: why no tokens were counted; empty if they were.
        divided: rows of each split that a prepare stage will write; empty if its data was not divided here.
        examples, steps, evaluations, checkpoints, tokens: of the whole training; None if unknown.
    """

    stage: str
    splits: list[SplitLook] = []
    defects: list[Defect] = []
    more_defects: int = 0
    warnings: list[str] = []
    max_length: int = 0
    unlabelled: str = ""
    divided: dict[str, int] = {}
    examples: int | None = None
    steps: int | None = None
    evaluations: int | None = None
    checkpoints: int | None = None
    tokens: int | None = None


class Job(msgspec.Struct):
    """One stage to look at.

    Attributes:
        stage: its fields, as recipe.json has them.
        data: the file or folder of its data; with `prepare`, of that stage's data.
        model: the folder with the tokenizer; None if it does not exist yet.
        prepare: the fields of the prepare stage whose output the stage will read; None if the data exists.
    """

    stage: dict[str, Any]
    data: str
    model: str | None = None
    prepare: dict[str, Any] | None = None


class Request(msgspec.Struct):
    """Stages to look at, and how far.

    Attributes:
        jobs: the stages.
        label_s: seconds after which no more rows of a stage are labelled.
        read_s: seconds after which no more rows of a stage are read.
        scratch: an empty folder for the output of prepare stages; the sender removes it.
    """

    jobs: list[Job]
    label_s: float
    read_s: float
    scratch: str = ""
