"""The statistics of a prepared folder as a page: a table of categories by split, duplicates, what was left out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engines.data.split import SPLITS
from recipes.problems import printable
from recipes.quantities import exact, percent

STATISTICS = "statistics.md"
NO_CATEGORY = "(none)"


def statistics_page(metadata: dict[str, Any]) -> str:
    """The text of the page, in Markdown.

    Args:
        metadata: of a folder that `prepare_rows` wrote.
    """
    return "\n".join([*_sizes(metadata), "", *_categories(metadata), ""])


def _sizes(metadata: dict[str, Any]) -> Iterator[str]:
    wanted, splits = metadata["split"]["wanted"], metadata["splits"]
    yield "# Statistics"
    yield ""
    yield f"{metadata['rows']} rows of {' and '.join(metadata['formats'])}; {metadata['split']['method']}."
    yield ""
    yield "| split | examples | requested | bytes | SHA-256 |"
    yield "|---|--:|--:|--:|---|"
    for name in SPLITS:
        found = splits[name]
        requested = wanted.get(name, "-")
        yield f"| {name} | {found['examples']} | {requested} | {found['bytes']} | {found['sha256'][:12]} |"
    yield ""
    yield "| | rows |"
    yield "|---|--:|"
    for kind, what in (("exact", "repeat another row exactly"), ("near", "share most words with another row")):
        if kind in metadata["duplicates"]:
            counts = metadata["duplicates"][kind]
            yield f"| {what}; policy: {counts['policy']} | {counts['rows']} |"
            yield f"| of them, one of another split of the data | {counts['across_given_splits']} |"
    for reason, count in metadata["skipped"].items():
        yield f"| left out: {_cell(reason)} | {count} |"


def _categories(metadata: dict[str, Any]) -> Iterator[str]:
    """Examples of each category by split, and the mean numbers of characters over all splits."""
    tables = [metadata["splits"][name]["categories"] for name in SPLITS]
    yield "| category | train | val | test | share | prompt, mean characters | answer, mean characters |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    total = sum(found["examples"] for table in tables for found in table.values()) or 1
    for name in sorted({name for table in tables for name in table}):
        counts = [int(table.get(name, {}).get("examples", 0)) for table in tables]
        here = sum(counts)
        means = [
            sum(table[name]["examples"] * table[name][f"{part}_characters_mean"] for table in tables if name in table)
            / here
            for part in ("prompt", "answer")
        ]
        cells = [
            _cell(name) or NO_CATEGORY,
            *map(str, counts),
            percent(here / total, 1),
            *(exact(round(mean)) for mean in means),
        ]
        yield f"| {' | '.join(cells)} |"


def _cell(text: str) -> str:
    return printable(text, 80).replace("|", "\\|")
