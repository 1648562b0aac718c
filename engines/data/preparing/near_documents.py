"""Documents that share most of their words, in one source or in two: the search for rows, over a source's documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from engines.data.preparing.duplicates import Repeats, row_of
from engines.data.preparing.near_duplicates import near_repeats
from engines.data.preparing.sorted_rows import Sorter
from engines.data.preparing.spool import UNSPLIT, SpoolWriter
from engines.data.readers.row import TextRow


def near_pairs(
    texts: Iterator[str], folder: Path, report: Callable[[int, int], None], *, similarity: float
) -> Iterator[tuple[int, int]]:
    """Pairs (first document of a cluster, another document of it), by the numbers of the documents.

    Args:
        texts: the documents' texts, none of which equals another.
        folder: for scratch files, which have no name.
        report: called with documents done and in total; an exception from it ends the work.
        similarity: the Jaccard similarity of runs of five words from which two documents are near duplicates.

    Raises:
        OperatorError: more documents than can be compared.
        OSError: the disk is full.
    """
    writer = SpoolWriter(folder, 0)
    for number, text in enumerate(texts):
        writer.append(f"document {number}", TextRow(text=text), UNSPLIT)
    spool = writer.close()
    try:
        if not len(spool):
            return
        found = near_repeats(spool, Repeats(Sorter(folder, 2).table()), similarity, report)
        for chunk in found.first:
            for number, first in zip(chunk[0].tolist(), row_of(chunk[1]).tolist(), strict=True):
                yield int(first), int(number)
    finally:
        spool.close()
