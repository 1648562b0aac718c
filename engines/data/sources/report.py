"""What an operator should know about a prepared text: what was left out of it, and what was divided."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recipes import quantities
from recipes.problems import printable

_SHOWN_KINDS = 6
_WHOLE = 0.99
"""The share of all text from which a mixture is said to use it."""
_SAID = (
    "too_large",
    "binary",
    "not_utf8",
    "damaged_gzip",
    "unreadable",
    "unreadable_folder",
    "path_not_utf8",
    "symbolic_link",
    "not_a_file",
    "bad_row",
)
"""Reasons that the recipe did not ask for; what it excludes itself is only counted."""


def what_to_know(metadata: Mapping[str, Any]) -> list[str]:
    """The sentences about a text folder's metadata."""
    sentences = []
    if kinds := metadata["other_kinds"]:
        shown = ", ".join(f"{printable(suffix, 20)} {count}" for suffix, count in _by_count(kinds)[:_SHOWN_KINDS])
        rest = ", …" if len(kinds) > _SHOWN_KINDS else ""
        sentences.append(
            f"{sum(kinds.values())} file(s) are no text by their suffix and were not read ({shown}{rest}); set include"
            " to choose the files"
        )
    said = [reason for reason in _SAID if reason != "symbolic_link" or not metadata["python"]]  # Python's own are known
    for reason in said:
        if count := metadata["dropped"].get(reason):
            named = metadata["dropped_examples"].get("rows" if reason == "bad_row" else reason, [])
            shown = f" ({', '.join(printable(name, 200) for name in named)})" if named else ""
            what = "row(s)" if reason == "bad_row" else "file(s)"
            sentences.append(f"{count} {what} were left out: {reason.replace('_', ' ')}{shown}{_way_out(reason)}")
    sentences += [sentence for one in metadata.get("sources", [metadata]) if (sentence := _divided(one))]
    return [*_about_sources(metadata), *sentences]


def _divided(one: Mapping[str, Any]) -> str:
    """The sentence about the long texts of a whole text folder, or of one of its sources; empty without any."""
    if not one["divided"]:
        return ""
    place = f"source {one['name']}: " if "name" in one else ""
    longest = quantities.size(one["max_document_bytes"])
    return (
        f"{place}{one['divided']} long document(s) were divided into pieces of at most {longest}, at ends of"
        " paragraphs, lines or words where a piece has one in its second half"
    )


def _about_sources(metadata: Mapping[str, Any]) -> list[str]:
    """What an operator should know about a mixture: what is missing, and which source has too little text."""
    sources = metadata.get("sources", [])
    sentences = [
        f"source {one['name']} was left out: {printable(one['path'], 200)} does not exist"
        for one in metadata.get("missing_sources", [])
    ]
    available = sum(one["bytes"] * one["epochs_allowed"] for one in sources)
    mixed = sum(one["wanted_bytes"] for one in sources)
    for one in sources:
        if one["undivided"]:
            sentences.append(
                f"source {one['name']} has fewer documents than there are splits; all of them are in train"
            )
        if not one["bytes"]:
            sentences.append(f"source {one['name']} has no text of its own; the other sources share its weight")
        elif one["limits_the_mixture"] and mixed < available * _WHOLE:
            sentences.append(
                f"source {one['name']} is too small for its weight: {quantities.percent(one['share'])} of the text are"
                f" {quantities.size(one['bytes'])} at most {quantities.exact(one['epochs_allowed'])} time(s), so the"
                f" train split has {quantities.size(mixed)} of {quantities.size(available)}; raise its epochs, or lower"
                " its weight"
            )
    return sentences


def _by_count(kinds: Mapping[str, int]) -> list[tuple[str, int]]:
    return sorted(kinds.items(), key=lambda item: (-item[1], item[0]))


def _way_out(reason: str) -> str:
    ways = {"too_large": "; raise max_file_bytes to read larger ones", "not_utf8": "; set encoding if they are text"}
    return ways.get(reason, "")
