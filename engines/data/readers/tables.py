"""Parquet and Arrow files: rows with typed columns, read in batches."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from engines.data.readers.lines import MAX_ROW_BYTES, FileNote, opened
from recipes import quantities
from recipes.problems import OperatorError, printable

BATCH_ROWS = 256
"""Rows in memory at the same time as objects; a row of a conversation has kilobytes."""
FEW_ROWS = 16
"""Rows in memory at the same time where a column may repeat a large text."""
BATCH_BYTES = 64 * 1024 * 1024


def parquet_values(file: Path, _encoding: str | None, _note: FileNote) -> Iterator[tuple[str, Any]]:
    """The rows of a Parquet file, each with its number from 1.

    Raises:
        OperatorError: the file cannot be read as Parquet, or pyarrow is not installed.
    """
    pyarrow = _pyarrow(file)
    parquet = import_module("pyarrow.parquet")

    with opened(file) as content:
        try:
            table = parquet.ParquetFile(content)
            yield from _rows(file, _parquet_batches(file, table))
        except (pyarrow.ArrowException, ValueError, UnicodeDecodeError) as error:
            raise _unreadable(file, "Parquet", error) from error


def arrow_values(file: Path, _encoding: str | None, _note: FileNote) -> Iterator[tuple[str, Any]]:
    """The rows of an Arrow file, as a stream (what `datasets` saves) or with an index.

    Raises:
        OperatorError: the file cannot be read as Arrow, or pyarrow is not installed.
    """
    pyarrow = _pyarrow(file)
    with opened(file) as content:
        try:
            yield from _rows(file, _batches(content))
        except (pyarrow.ArrowException, ValueError, UnicodeDecodeError) as error:
            raise _unreadable(file, "Arrow", error) from error


def _parquet_batches(file: Path, table: Any) -> Iterator[Any]:
    """The rows in batches of `BATCH_ROWS`, and of fewer where rows are large.

    A row group says how large its rows are on average. A column that stores a repeated text once may have rows as large
    as all of it, so such a group is read in small batches unless it is small itself.
    """
    for group in range(table.num_row_groups):
        found = table.metadata.row_group(group)
        if found.num_rows and found.total_byte_size // found.num_rows > MAX_ROW_BYTES:
            size = quantities.size(found.total_byte_size // found.num_rows)
            raise OperatorError(
                f"{file}: rows of {size} on average, in row group {group + 1}; allowed at most"
                f" {quantities.size(MAX_ROW_BYTES)}",
                "split the rows, or leave out the column that is so large",
            )
        columns = [found.column(number) for number in range(found.num_columns)]
        repeated = max((one.total_uncompressed_size for one in columns if one.has_dictionary_page), default=0)
        most = BATCH_ROWS if repeated * BATCH_ROWS <= BATCH_BYTES else FEW_ROWS
        rows = min(max(BATCH_BYTES * found.num_rows // max(found.total_byte_size, 1), 1), most)
        yield from table.iter_batches(batch_size=rows, row_groups=[group])


def _batches(content: Any) -> Iterator[Any]:
    ipc = import_module("pyarrow.ipc")

    if content.peek(6)[:6] == b"ARROW1":
        reader = ipc.open_file(content)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
        return
    yield from ipc.open_stream(content)


def _rows(file: Path, batches: Iterator[Any]) -> Iterator[tuple[str, Any]]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            for row in batch.slice(start, BATCH_ROWS).to_pylist():
                number += 1
                yield f"{file}: row {number}", row


def _unreadable(file: Path, name: str, error: Exception) -> OperatorError:
    what = printable(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 200)
    return OperatorError(f"{file} cannot be read as {name}: {what}", "the file may be incomplete; write it again")


def _pyarrow(file: Path) -> Any:
    try:
        return import_module("pyarrow")
    except ImportError as error:
        raise OperatorError(
            f"{file} needs pyarrow, which this interpreter does not have",
            "install cockpit[train], or save the rows as JSON Lines",
        ) from error
