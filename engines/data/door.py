"""The one door for data: rows of a file, a folder or a cached dataset, of any format, in a stream.

A row that cannot be used is named by its place. It ends the reading, or is left out and counted, as the recipe says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import msgspec

from engines.data.documents import is_text_folder
from engines.data.readers.bad_row import BadRowError
from engines.data.readers.formats import MAPPED, Shape, container_of, shape_named, shape_of
from engines.data.readers.lines import FileNote
from engines.data.readers.mapped import Columns, value_at
from engines.data.readers.messages import message_row, quick_row
from engines.data.readers.reading import Reading, refuse_meaningful
from engines.data.readers.row import MessageRow, PreferenceRow, Row, TextRow, problem_of
from engines.inputs.data_place import SUFFIXES, UNSPLIT, data_files, place_of
from recipes.problems import OperatorError, printable
from recipes.stages.data_fields import Condition, ReadFields, condition_of

MOST_EXAMPLES = 20
"""Skipped rows that are named; all are counted."""
MOST_FILES = 100
"""Files whose format is listed one by one."""


@dataclass(frozen=True)
class DataSource:
    """Where data is, and how it is read; the fields are those of a recipe.

    Attributes:
        place: a file or a folder.
        format: a name of `SHAPES`, or auto.
        columns: paths of the parts of a row.
        ignore_keys: keys that are left out on purpose.
        on_bad_row: whether a bad row ends the reading, or is left out and counted.
        encoding: of text files; None for UTF-8, or what the first bytes say.
        where: conditions that rows satisfy; others are left out and counted.
    """

    place: Path
    format: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    ignore_keys: tuple[str, ...] = ()
    on_bad_row: Literal["error", "skip"] = "error"
    encoding: str | None = None
    where: tuple[Condition, ...] = ()


class Located(msgspec.Struct, frozen=True):
    """A row with its place: `file:line`, or `file: row 17` in a file without lines."""

    where: str
    row: Row


@dataclass(frozen=True)
class Refused:
    """A row that cannot be used: what is wrong, the kind of mistake without values, and what to do."""

    where: str
    what: str
    reason: str
    hint: str = ""

    @property
    def line(self) -> str:
        """Place and mistake on one line."""
        return f"{self.where}: {self.what}"


@dataclass
class ReadCounts:
    """What was read, and what was not.

    Attributes:
        rows: rows that were read, those that were left out as bad included.
        filtered: rows that do not satisfy the conditions of `where`; they are not among the others.
        skipped: rows that were left out, by the kind of mistake.
        examples: the first of them, each with place and mistake.
        unused_columns: keys of rows that nothing uses, with the number of rows that have them.
        ignored_keys: keys that the recipe ignores, with the number of rows that have them.
        formats: shape and container of the first files, by their path.
        encodings: what is unusual about the text of a file, by its path.
        files: number of files that were read.
        left_out: files inside the place that could be data and are not read, because others lie less deep or are named
            for a split.
    """

    rows: int = 0
    filtered: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    unused_columns: Counter[str] = field(default_factory=Counter)
    ignored_keys: Counter[str] = field(default_factory=Counter)
    formats: dict[str, str] = field(default_factory=dict)
    encodings: dict[str, str] = field(default_factory=dict)
    files: int = 0
    left_out: list[str] = field(default_factory=list)

    @property
    def refused(self) -> int:
        """Number of rows that were left out."""
        return self.skipped.total()

    def skip(self, bad: Refused) -> None:
        """Count a row that is left out."""
        self.skipped[bad.reason] += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(bad.line)

    def notes(self) -> list[str]:
        """What an operator should know about the reading, as sentences: what was skipped, and what nothing uses."""
        found = []
        if self.skipped:
            reasons = "; ".join(f"{reason} ({count})" for reason, count in self.skipped.most_common(5))
            first = f"; the first: {self.examples[0]}"
            found.append(f"{self.refused} of {self.rows} rows were left out: {reasons}{first}")
        if self.filtered:
            found.append(f"{self.filtered} rows do not satisfy where, and {self.rows} do")
        if self.unused_columns:
            found.append(f"nothing uses these columns: {_counted(self.unused_columns)}")
        if self.ignored_keys:
            found.append(f"left out by ignore_keys: {_counted(self.ignored_keys)}")
        if self.left_out:
            shown = ", ".join(printable(name, 80) for name in self.left_out[:3])
            more = f" and {len(self.left_out) - 3} more" if len(self.left_out) > 3 else ""
            found.append(f"not read, because other files of the folder are its data: {shown}{more}")
        found += [f"{file}: {words}" for file, words in islice(self.encodings.items(), 3)]
        return found


def source_of_stage(stage: ReadFields, path: Path | None, name: str) -> DataSource:
    """The source of a stage's field `data`.

    Args:
        stage: a stage that reads rows.
        path: of the input; None for a dataset of a hub.
        name: the input as the recipe names it.

    Raises:
        OperatorError: the dataset is not in the local hub cache.
    """
    place = place_of(path, name)
    given = getattr(stage, "format", "auto")
    return DataSource(
        place=place,
        format="text" if given == "auto" and is_text_folder(place) else given,  # whatever its documents begin with
        columns=stage.columns,
        ignore_keys=tuple(stage.ignore_keys),
        on_bad_row=stage.on_bad_row,
        encoding=stage.encoding,
        where=tuple(map(condition_of, stage.where)),
    )


def splits_in(source: DataSource) -> dict[str, list[Path]]:
    """The files of train, val and test, as file names give them; or all files under `UNSPLIT`.

    Raises:
        OperatorError: the place has no data, or it is not clear which files are meant.
    """
    return data_files(source.place).splits


def files_of(source: DataSource, split: str) -> list[Path]:
    """The files of a split; data without splits is its train split.

    Raises:
        OperatorError: the place has no data, or not this split.
    """
    return _of_split(source, splits_in(source), split)


def _of_split(source: DataSource, splits: Mapping[str, list[Path]], split: str) -> list[Path]:
    if UNSPLIT in splits and split in (UNSPLIT, "train"):
        return splits[UNSPLIT]
    if split in splits:
        return splits[split]
    have = ", ".join(splits) if UNSPLIT not in splits else "data without splits"
    raise OperatorError(
        f"{source.place} has no {split} split, only {have}",
        f"add a file named {split}, name a file, or divide the data with a prepare stage (output = messages)",
    )


def read_rows(source: DataSource, split: str, counts: ReadCounts) -> Iterator[Located]:
    """The rows of a split, file after file, in the order of the files.

    Args:
        source: where the data is.
        split: train, val or test; `UNSPLIT` or train for data without splits.
        counts: is filled while rows are read.

    Raises:
        OperatorError: a file cannot be read, or a row is bad and bad rows are not skipped; the message begins with the
            place.
    """
    for found in each_row(source, split, counts):
        if isinstance(found, Located):
            yield found
        elif source.on_bad_row == "skip":
            counts.skip(found)
        else:
            raise OperatorError(found.line, found.hint)


def read_conversations(source: DataSource, split: str, counts: ReadCounts | None = None) -> Iterator[MessageRow]:
    """The rows of a split as conversations.

    Raises:
        OperatorError: as `read_rows`, or a row is a text or a preference.
    """
    for located in read_rows(source, split, counts or ReadCounts()):
        yield conversation(located)


def conversation(located: Located) -> MessageRow:
    """The conversation of a row.

    Raises:
        OperatorError: the row is a text or a preference.
    """
    if isinstance(located.row, MessageRow):
        return located.row
    raise OperatorError(f"{located.where}: {_OTHER_ROWS[type(located.row)][0]}", _OTHER_ROWS[type(located.row)][1])


_OTHER_ROWS: Mapping[type, tuple[str, str]] = {
    PreferenceRow: (
        "a row with chosen and rejected, where a conversation is needed",
        'train on the pairs with kind = "dpo", or name one answer: columns = {user = "prompt", assistant = "chosen"}',
    ),
    TextRow: ("a text without turns, where a conversation is needed", "give conversations, or set columns"),
}


def each_row(source: DataSource, split: str, counts: ReadCounts) -> Iterator[Located | Refused]:
    """The rows of a split, good and bad.

    Raises:
        OperatorError: a file cannot be read, or its rows have no known shape.
    """
    found = data_files(source.place)
    counts.left_out = [str(file.relative_to(source.place)) for file in found.left_out]
    for file in _of_split(source, found.splits, split):
        counts.files += 1
        yield from _FileReader(source, file, counts).rows()


class _FileReader:
    """Reads the rows of one file; its first row decides on the shape of all."""

    def __init__(self, source: DataSource, file: Path, counts: ReadCounts) -> None:
        self._source = source
        self._file = file
        self._counts = counts
        self._ignored = frozenset(source.ignore_keys)
        self._reading = Reading(source.columns, self._ignored)
        self._columns = Columns(source.columns) if source.columns else None
        self._shape = self._given_shape()

    def _given_shape(self) -> Shape | None:
        if self._source.format != "auto":
            return shape_named(self._source.format)
        return MAPPED if "user" in self._source.columns else None

    def rows(self) -> Iterator[Located | Refused]:
        container = container_of(self._file)
        if container is None:
            kinds = ", ".join(SUFFIXES)
            raise OperatorError(f"{self._file} is not a data file", f"data files end with {kinds}, or .gz behind it")
        note, counts, settled = FileNote(container.name), self._counts, False
        for where, value in container.values(self._file, self._source.encoding, note):
            if self._source.where and type(value) is dict and not self._satisfies(value):
                counts.filtered += 1
                continue
            counts.rows += 1
            try:
                if isinstance(value, BadRowError):
                    raise value
                row = value if type(value) is MessageRow else self._row(where, value)
                if problem := problem_of(row):
                    raise BadRowError(problem, re.sub(r" turn \d+", " turn", problem).partition(" — got")[0])
            except BadRowError as error:
                yield Refused(where, error.what, error.reason, error.hint or self._example())
                continue
            yield Located(where, row)
            if not settled:
                note.quick, settled = self._quick(), True
        self._note(note)

    def _quick(self) -> Callable[[bytes], MessageRow | None] | None:
        """The fast way to rows of the shape that the first row has, where nothing is renamed or ignored."""
        plain = not self._source.columns and not self._ignored and not self._source.where
        return quick_row if plain and self._shape is not None and self._shape.row is message_row else None

    def _satisfies(self, value: dict[str, Any]) -> bool:
        return all(condition.holds(value_at(value, condition.path)) for condition in self._source.where)

    def _row(self, where: str, value: Any) -> Row:
        if type(value) is not dict:
            raise BadRowError("a row must be an object", "a row is not an object")
        if self._ignored and (dropped := self._ignored & value.keys()):
            self._counts.ignored_keys.update(dropped)
            value = {key: item for key, item in value.items() if key not in dropped}
        given = value
        if self._columns is not None:
            value = self._columns.applied(given)
        shape = self._shape or self._found_shape(where, value)
        if not shape.marks <= value.keys():
            keys = printable(", ".join(value), 120) or "none"
            raise BadRowError(
                f"not a row of {shape.name}{self._why()}; its keys are {keys}",
                f"not a row of {shape.name}",
            )
        if len(value) > len(shape.marks) or given is not value:
            self._look_at_the_rest(given, value, shape)
        return shape.row(value, self._reading)

    def _found_shape(self, where: str, value: dict[str, Any]) -> Shape:
        shape = shape_of(value)
        if shape is None:
            keys = printable(", ".join(value), 200) or "none"
            what = f"no format that Cockpit knows has the keys of this row; they are {keys}"
            if self._counts.files > 1:  # one odd file among others is a bad row, as one odd row among others is
                raise BadRowError(what, "a row of no known format", _way_out(value))
            raise OperatorError(f"{where}: {what}", _way_out(value))
        self._shape = shape
        return shape

    def _look_at_the_rest(self, given: Mapping[str, Any], value: Mapping[str, Any], shape: Shape) -> None:
        if extra := value.keys() - shape.keys:
            refuse_meaningful(value, shape.keys)
            self._counts.unused_columns.update(key for key in extra if value[key] is not None)
        if self._columns is not None:
            self._counts.unused_columns.update(self._columns.unused(given))

    def _why(self) -> str:
        if self._source.format != "auto":
            return ", as format says"
        return ", as columns says" if self._shape is MAPPED else ", as the others of its file"

    def _example(self) -> str:
        return f"a row of {self._shape.name} has the form {self._shape.example}" if self._shape else ""

    def _note(self, note: FileNote) -> None:
        if len(self._counts.formats) < MOST_FILES:
            shape = f"{self._shape.name} in " if self._shape else "an empty file: "
            self._counts.formats[str(self._file)] = f"{shape}{note.container}"
        if note.encoding and len(self._counts.encodings) < MOST_FILES:
            self._counts.encodings[str(self._file)] = note.encoding


_QUESTIONS = ("question", "query", "user", "input", "prompt", "instruction", "problem", "human")
_CONTEXTS = ("context", "input", "passage", "document")
_ANSWERS = ("answer", "response", "assistant", "output", "completion", "solution", "gpt", "target")


def _way_out(value: Mapping[str, Any]) -> str:
    """What to do about a row of no known shape."""
    wrapped = next((key for key, item in value.items() if isinstance(item, list) and item and _is_object(item[0])), "")
    if wrapped:
        return f"if its rows are in {printable(wrapped, 60)}, save that list as the file"
    return "say where the texts are, such as columns = " + _guess(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _guess(value: Mapping[str, Any]) -> str:
    """The columns that a row may mean, for a hint."""
    user = next((name for name in _QUESTIONS if name in value), "PATH")
    assistant = next((name for name in _ANSWERS if name in value and name != user), "PATH")
    more = next((name for name in _CONTEXTS if name in value and name not in (user, assistant)), "")
    if more and "PATH" not in (user, assistant):
        return f'{{instruction = "{user}", input = "{more}", output = "{assistant}"}}'
    return f'{{user = "{user}", assistant = "{assistant}"}}'


def _counted(counts: Counter[str]) -> str:
    shown = ", ".join(f"{printable(key, 60)} ({count})" for key, count in counts.most_common(12))
    return shown + (f" and {len(counts) - 12} more" if len(counts) > 12 else "")
