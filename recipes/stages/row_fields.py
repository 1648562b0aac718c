"""The fields of a stage that divides rows of any format: a command as source, sizes of splits, groups, duplicates."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from recipes.setting import setting
from recipes.stages.fields import StageFields


class RowFields(StageFields):
    """Where rows come from, and how they are divided and thinned out."""

    command: list[str] = setting(
        default_factory=list,
        section="Inputs",
        help="Program and arguments, instead of data: its standard output is the data, as JSON Lines. With {out} as an"
        " argument it writes files of any format into that folder. No shell is involved; python means the stage's"
        " interpreter.",
    )
    command_folder: str | None = setting(
        None, section="Inputs", folder=True, help="Working directory of the command; by default, the recipe's folder."
    )
    val_rows: int | None = setting(
        None,
        section="Split",
        ge=0,
        unit="rows",
        help="Exact number of rows held out for validation, instead of a share.",
    )
    test_rows: int | None = setting(
        None,
        section="Split",
        ge=0,
        unit="rows",
        help="Exact number of rows held out for the final test, instead of a share.",
    )
    group_by: list[Literal["group", "prompt", "category"]] = setting(
        default_factory=lambda: ["group", "prompt"],
        section="Split",
        help="Rows that agree in one of these are never in two splits: the row's own group, the turns before its last"
        " answer, its category.",
    )
    duplicates: Literal["keep", "drop"] = setting(
        "keep",
        section="Duplicates",
        help="What happens to a row that repeats another exactly. They are counted in any case; of equal rows in two"
        " splits, drop keeps the held-out one.",
    )
    near_duplicates: Literal["ignore", "keep", "drop"] = setting(
        "ignore",
        section="Duplicates",
        help="What happens to a row that shares most of its words with another: ignore does not search for them, keep"
        " counts them and keeps them in one split, drop leaves them out.",
    )
    near_duplicate_similarity: float = setting(
        0.8,
        section="Duplicates",
        ge=0.5,
        le=1,
        advanced=True,
        help="Jaccard similarity of runs of five words from which on two rows are near duplicates.",
    )

    @model_validator(mode="after")
    def _one_source(self) -> RowFields:
        data = getattr(self, "data", None)
        if self.command and data is not None:
            raise ValueError("command — data is set too; got both; allowed: data or command")
        if not self.command and data is None:
            raise ValueError("data — required without a command; got nothing; allowed: data or command")
        if self.command and not all(self.command):
            raise ValueError('command — an empty word; got ""; allowed: a program and its arguments')
        if self.command_folder is not None and not self.command:
            raise ValueError("command_folder — the stage has no command; got a folder; allowed: only with command")
        return self
