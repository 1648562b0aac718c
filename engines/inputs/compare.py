"""The difference between a recorded input and the present one, file by file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from engines.inputs.record import InputRecord
from recipes import quantities
from recipes.problems import printable

SHOWN_FILES = 12
"""Files that are named per input; the rest are counted."""


class InputChange(msgspec.Struct, frozen=True, kw_only=True):
    """One input that is not the recorded one.

    `sha256` identifies the present content. `files` has one phrase per file, `more` counts those left out.
    """

    stage: str
    field: str
    name: str
    sha256: str
    files: list[str] = []
    more: int = 0

    @property
    def where(self) -> str:
        """Stage and field, as overrides name them, with the input's name."""
        return f"{self.stage}.{self.field} {printable(self.name, 120)}"

    def lines(self) -> list[str]:
        """The change, one line per file."""
        rest = [f"… and {self.more} more {'files' if self.more > 1 else 'file'}"] if self.more else []
        return [f"{self.where}: {phrase}" for phrase in [*self.files, *rest]]

    def to_json(self) -> dict[str, Any]:
        return msgspec.structs.asdict(self)


def change_of(stage: str, recorded: InputRecord, present: InputRecord | None) -> InputChange | None:
    """The change of one input; None if it has the recorded content.

    Args:
        stage: the stage that reads it.
        recorded: from `inputs.json`.
        present: as it is now; None if the stage no longer has it.
    """
    if present is None or present.sha256 == recorded.sha256 or not _has_files(recorded):
        return None
    before = {file.path: file for file in recorded.files}
    after = {file.path: file for file in present.files}
    if before == after:  # only the manifest beside the files was replaced or removed
        return None
    listed = [
        *(
            f"changed {printable(name, 200)} ({_sizes(before[name].bytes, after[name].bytes)})"
            for name in sorted(before.keys() & after.keys())
            if before[name].sha256 != after[name].sha256
        ),
        *(f"missing {printable(name, 200)}" for name in sorted(before.keys() - after.keys())),
        *(
            f"added {printable(n, 200)} ({quantities.size(after[n].bytes)})"
            for n in sorted(after.keys() - before.keys())
        ),
    ]
    return InputChange(
        stage=stage,
        field=recorded.field,
        name=recorded.name,
        sha256=present.sha256,
        files=listed[:SHOWN_FILES],
        more=max(0, len(listed) - SHOWN_FILES),
    )


def _has_files(record: InputRecord) -> bool:
    """Whether it is an input outside the run; an output of a stage is identified by its manifest alone."""
    return bool(record.files) or record.method == "content"


def _sizes(before: int, after: int) -> str:
    return f"{before} bytes, other content" if before == after else f"{before} → {after} bytes"


def changes_of(
    stage: str, recorded: list[InputRecord], present: list[InputRecord], journaled: Mapping[str, str]
) -> list[InputChange]:
    """The changes of a stage's external inputs, by field.

    Args:
        stage: the stage that reads them.
        recorded: the content of `inputs.json`; empty if it cannot be read.
        present: the inputs as they are now.
        journaled: the identity of each external input by the journal, for fields that `recorded` lacks.
    """
    now = {record.field: record for record in present}
    found = [change_of(stage, record, now.get(record.field)) for record in recorded]
    for field in journaled.keys() - {record.field for record in recorded}:
        there = now.get(field)
        if there is not None and there.sha256 != journaled[field]:
            files = ["other content; the recorded list of files cannot be read"]
            found.append(InputChange(stage=stage, field=field, name=there.name, sha256=there.sha256, files=files))
    return sorted((change for change in found if change is not None), key=lambda change: change.field)
