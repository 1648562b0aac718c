"""Read a source into documents: choose files, read each as what it is, divide long texts, count what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from engines.data.sources.cleaning import Cleaner
from engines.data.sources.pieces import MAX_DOCUMENT_BYTES, pieces_of
from engines.data.sources.plain import text_chunks
from engines.data.sources.rows import RowTexts, has_rows
from engines.data.sources.spool import DocumentSpool
from engines.inputs.source_tree import (
    PROGRAMS,
    LeftOutError,
    blobs_of,
    kind_of_file,
    patterns_of,
    source_place,
    walk_sources,
)
from recipes.problems import OperatorError

Report = Callable[[float, float | None, str], None]
"""Called with (done, total, unit); an exception from it ends the work."""
_WHOLE = PROGRAMS | {".json"}
"""Texts that lose their sense in parts: they are divided only where they are longer than any document may be."""
EXAMPLES = 5
"""Files that are named for each reason."""


@dataclass(frozen=True, kw_only=True)
class SourceFields:
    """What a recipe says about a source; the fields of the stage with the same names, and `text_column`, the key of the
    text in a row."""

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    format: str = "auto"
    text_column: str = "text"
    encoding: str | None = None
    on_bad_row: str = "error"
    max_file_bytes: int | None = None
    max_document_bytes: int | None = None
    split_by: str = "document"
    clean: Sequence[str] = ()


@dataclass
class LeftOut:
    """What a source has and its documents have not.

    Attributes:
        counts: files and rows by reason.
        examples: the first of them, by reason.
        other_kinds: files that are no text by their name, by suffix; empty if the recipe says which to include.
        divided: texts that were divided because of their length.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    other_kinds: Counter[str] = field(default_factory=Counter)
    divided: int = 0

    def add(self, reason: str, name: str) -> None:
        """Count a file."""
        self.counts[reason] += 1
        named = self.examples.setdefault(reason, [])
        if len(named) < EXAMPLES:
            named.append(name)


class TextSource:
    """A file, a folder, or Python's standard library, as documents.

    Attributes:
        place: the file or folder.
        files: the files to read, as (path inside the source, absolute path), in the order of the former.
        left_out: what the last reading left out.
        longest: bytes of the longest document of the last reading that may be divided further.
        cleaned: documents that each change of the last reading has changed.
        across: documents of the last reading that an earlier source has.
    """

    def __init__(self, source: str, fields: SourceFields, base: Path | None = None, name: str = "") -> None:
        """Find the files; `name` is the first part of the names of its documents, if it is one of several sources.

        Raises:
            OperatorError: there is no such file or folder.
        """
        self._fields = fields
        self.place = source_place(source, base)
        self._found = LeftOut()
        chosen = patterns_of(source, fields.include)
        if self.place.is_file():
            self.files = [(self.place.name, self.place)]
        else:
            walk = walk_sources(
                self.place,
                chosen,
                fields.exclude,
                self._found.counts,
                (lambda _inside: None) if chosen else self._pass_over,
            )
            self.files = sorted(walk)
        self.left_out = self._found
        self.longest = self.across = 0
        self.cleaned: Counter[str] = Counter()
        self._cleaner = Cleaner(fields.clean)
        self._prefix = f"{name}/" if name else ""
        self._in_cache = blobs_of(self.place) is not None

    def named(self, name: str) -> str:
        """A file's name with that of its source, if it is one of several."""
        return self._prefix + name

    def _pass_over(self, inside: str) -> None:
        self._found.other_kinds[PurePosixPath(inside).suffix.lower() or "no suffix"] += 1

    def read(self, spool: DocumentSpool, limit: int, report: Report | None = None, *, prose: int | None = None) -> None:
        """Put all documents into the spool.

        Args:
            spool: one without documents of this source.
            limit: bytes of the longest document; longer texts are divided.
            prose: the same for texts that are no program sources, if it is less.
            report: called with the files read and their number.

        Raises:
            OperatorError: a row is not a document, or a file changed while it was read.
        """
        found = self._found
        self.longest = 0
        self._cleaner = Cleaner(self._fields.clean)
        self.left_out = LeftOut(Counter(found.counts), {}, found.other_kinds)
        rows = RowTexts(self._fields.text_column, self._fields.encoding, skip=self._fields.on_bad_row == "skip")
        for done, (inside, file) in enumerate(self.files, start=1):
            before = _times(file)
            has_parts = kind_of_file(file.name) not in _WHOLE
            size = min(limit, prose or limit) if has_parts else limit
            before_it = len(spool)
            if self._fields.format == "auto" and has_rows(file):
                self._read_rows(inside, file, rows, spool, size)
            else:
                self._read_text(inside, file, spool, size)
            if has_parts:
                self.longest = max(self.longest, spool.longest(before_it))
            if _times(file) != before:
                raise OperatorError(f"{file} changed while it was read", "resume the run")
            if report is not None:
                report(done, len(self.files), "files")
        self.left_out.counts += rows.skipped
        if rows.examples:
            self.left_out.examples["rows"] = rows.examples[:EXAMPLES]
        if spool.duplicates:
            self.left_out.counts["duplicate"] += spool.duplicates
        self.across, self.cleaned = spool.across, self._cleaner.changed

    def _read_rows(self, inside: str, file: Path, rows: RowTexts, spool: DocumentSpool, limit: int) -> None:
        largest = self._fields.max_file_bytes
        if largest is not None and file.stat().st_size > largest:
            self.left_out.add("too_large", inside)
            return
        for place, text in rows.read(file):
            if len(text) * 4 <= limit:  # no character has more than four bytes
                self._add(inside, place, text, spool)
            else:
                self._add_pieces(inside, place, iter([text.encode()]), spool, limit)

    def _read_text(self, inside: str, file: Path, spool: DocumentSpool, limit: int) -> None:
        spool.begin()
        try:
            largest, encoding = self._fields.max_file_bytes, self._fields.encoding
            chunks = text_chunks(file, largest, encoding, form=self._fields.format, follow=self._in_cache)
            if not self._add_pieces(inside, "", chunks, spool, limit):
                raise LeftOutError("empty")
        except LeftOutError as reason:
            spool.undo()
            self.left_out.add(str(reason), inside)
        spool.end()

    def _add_pieces(self, inside: str, place: str, chunks: Iterator[bytes], spool: DocumentSpool, limit: int) -> int:
        """Add a text as one document, or as several with numbers; returns how many."""
        pieces = (text for piece in pieces_of(chunks, limit) if (text := self._cleaner.clean(piece.decode())).strip())
        first = next(pieces, None)
        if first is None:
            return 0
        second = next(pieces, None)
        if second is None:
            self._put(inside, place, first, spool)
            return 1
        self.left_out.divided += 1
        self._put(inside, f"{place}#1", first, spool)
        self._put(inside, f"{place}#2", second, spool)
        number = 2
        for number, text in enumerate(pieces, start=3):
            self._put(inside, f"{place}#{number}", text, spool)
        return number

    def _add(self, inside: str, place: str, text: str, spool: DocumentSpool) -> None:
        """Add a text that is short enough as one document."""
        if (cleaned := self._cleaner.clean(text)).strip():
            self._put(inside, place, cleaned, spool)
        else:
            self.left_out.add("empty", inside + place)

    def _put(self, inside: str, place: str, text: str, spool: DocumentSpool) -> None:
        """Put a document into the spool: its file inside the source, its place in the file, and its group."""
        split_by = self._fields.split_by
        group = None
        if split_by == "file":
            group = self._prefix + inside
        elif split_by == "folder":
            group = self._prefix + inside.rpartition("/")[0] + "/"
        spool.add(self._prefix + inside + place, text, group)


def document_bytes(fields: SourceFields) -> int:
    """Bytes of the longest document."""
    return fields.max_document_bytes or MAX_DOCUMENT_BYTES


def _times(file: Path) -> Any:
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
