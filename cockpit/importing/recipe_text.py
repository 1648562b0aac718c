"""The TOML of an imported recipe, with everything that was not imported as comments."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any

from cockpit.importing.draft import ADAPTER, ALL_WEIGHTS, ALL_WEIGHTS_ON_PAIRS, DATA, MERGED, PAIRS, TAGS, TUNED
from cockpit.importing.programs import Imported
from cockpit.importing.report import headings, words
from recipes.fields import fields_of
from recipes.problems import printable
from recipes.spelling import spell

HEADS = {
    ADAPTER: ('kind = "finetune"',),
    ALL_WEIGHTS: ('kind = "finetune"', 'output = "model"'),
    PAIRS: ('kind = "dpo"',),
    ALL_WEIGHTS_ON_PAIRS: ('kind = "dpo"', 'output = "model"'),
    TAGS[DATA]: ('kind = "prepare"', 'output = "messages"'),
    TAGS[MERGED]: ('kind = "merge"',),
}
REQUIRED = {TUNED: ("model", "data"), MERGED: ("model",), DATA: ("data",)}
FIRST = ("model", "adapter", "adapters", "data", "format", "columns", "ignore_keys", "start_from")
"""Fields that say what is trained stand before those that say how."""
_OTHER = re.compile(r"[^A-Za-z0-9]+")


def recipe_text(imported: Imported) -> str:
    """The recipe; an empty text if a key asks for a method that recipes do not have."""
    if imported.missing or not imported.stages:
        return ""
    lines = [
        f"# Imported from {printable(imported.path.name, 200)}, a configuration of {imported.program}.",
        *_comments(imported),
    ]
    lines += ["", "schema = 1", f"name = {spell(recipe_name(imported.path.stem))}"]
    defaults = {name for one in imported.outcomes if one.status == "default" for name in one.fields}
    for stage in sorted(imported.stages, key=lambda name: (name != DATA, name == MERGED)):
        tag = TAGS[DATA] if imported.registry else imported.method if stage == TUNED else TAGS[stage]
        lines += ["", "[[stage]]", f"name = {spell(stage)}", *HEADS[tag]]
        lines += _fields(imported, stage, tag, defaults)
    return "\n".join(lines) + "\n"


def recipe_name(stem: str) -> str:
    """A name of a recipe, from a file's."""
    return _OTHER.sub("-", stem).strip("-").lower()[:40].strip("-") or "imported"


def _fields(imported: Imported, stage: str, tag: str, defaults: set[str]) -> Iterator[str]:
    given: dict[str, Any] = imported.stages[stage]
    launch = {f"launch.{name}": value for name, value in given.get("launch", {}).items()}
    fields = {**{key: value for key, value in given.items() if key != "launch"}, **launch}
    for key in () if imported.registry else REQUIRED.get(stage, ()):
        if key not in fields:
            yield f'# {key} = "…"    required: the configuration does not say'
    order = list(dict.fromkeys((*FIRST, *(spec.path for spec in fields_of(tag)))))
    for key in sorted(fields, key=order.index):
        note = f"    # {imported.program}'s default" if f"{stage}.{key}" in defaults else ""
        yield f"{key} = {spell(fields[key])}{note}"


def _comments(imported: Imported) -> Iterator[str]:
    """What was not imported, under a heading for each kind."""
    for heading, outcomes in headings(imported):
        yield "#"
        yield f"# {heading}:"
        for outcome in outcomes:
            line = f"line {outcome.line}: " if outcome.line else ""
            yield from textwrap.wrap(
                line + words(outcome), 116, initial_indent="#   ", subsequent_indent="#     ", break_on_hyphens=False
            )
