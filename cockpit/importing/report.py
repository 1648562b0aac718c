"""What an import did, as lines and as JSON: every key, and what it became."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from cockpit.importing.draft import Outcome, Status, plain
from cockpit.importing.programs import Imported
from cockpit.importing.script import Expression
from cockpit.text import formatting as fmt
from recipes.problems import printable

_SECRET = re.compile(r"(?:^|hub_|auth_|access_|hf_)token$|api_key|secret|password|webhook", re.IGNORECASE)
HEADINGS: dict[Status, str] = {
    "missing": "Not possible with a recipe",
    "different": "Not imported; the recipe trains differently",
    "unknown": "Unknown keys, not imported",
}
"""The kinds that are listed one by one."""


def headings(imported: Imported) -> Iterator[tuple[str, list[Outcome]]]:
    """The outcomes that an operator should read, under their headings."""
    for status, heading in HEADINGS.items():
        found = [outcome for outcome in imported.outcomes if outcome.status == status]
        if found:
            # without a recipe, nothing trains differently
            yield "Not imported" if imported.missing and status == "different" else heading, found


def words(outcome: Outcome) -> str:
    """A key with its value and what it means that it is left out."""
    given = "" if outcome.value is ... else f" = {shown_value(outcome)}"
    if outcome.line == 0 and outcome.value is None:
        given = " (not set)"
    return f"{printable(outcome.key, 120)}{given} — {printable(outcome.says, 600)}"


def shown_value(outcome: Outcome) -> str:
    """The value on one line; a secret stays one."""
    return '"…"' if _is_secret(outcome) else plain(outcome.value)


def report_lines(imported: Imported) -> Iterator[str]:
    """The whole report: every key stands in it."""
    place = printable(str(imported.path), 400)
    in_file = [outcome for outcome in imported.outcomes if outcome.line or outcome.status != "default"]
    taken = [outcome for outcome in in_file if outcome.status == "imported"]
    yield f"{place}: a configuration of {imported.program}; {len(taken)} of {fmt.counted(len(in_file), 'key')} imported"
    for outcome in taken:
        where = f"{outcome.line:>5}  " if outcome.line else "       "
        target = ", ".join(outcome.fields) or outcome.says
        note = f" — {printable(outcome.says, 300)}" if outcome.says and outcome.fields else ""
        yield f"{where}{printable(outcome.key, 60):<30} {target}{note}"
    for heading, outcomes in headings(imported):
        yield ""
        yield f"{heading}:"
        for outcome in outcomes:
            yield f"  {place}{f':{outcome.line}' if outcome.line else ''}  {words(outcome)}"
    yield from _named(imported, "unneeded", "Without effect on what is trained")
    yield from _named(imported, "unset", "Without a value")
    defaults = [one for one in imported.outcomes if one.status == "default"]
    if defaults and not imported.missing:
        yield ""
        yield f"Defaults of {imported.program} that the recipe sets, because Cockpit's differ:"
        yield from (f"       {one.fields[0]} = {plain(one.value)}" for one in defaults)


def _named(imported: Imported, status: Status, heading: str) -> Iterator[str]:
    """Keys with the same reason, one line for each reason."""
    reasons: dict[str, list[str]] = {}
    for outcome in imported.outcomes:
        if outcome.status == status:
            reasons.setdefault(outcome.says, []).append(printable(outcome.key, 60))
    if reasons:
        yield ""
        yield f"{heading}:"
        yield from (f"  {', '.join(keys)}{f' — {says}' if says else ''}" for says, keys in reasons.items())


def to_json(imported: Imported, recipe: str) -> dict[str, Any]:
    """The report for programs; `recipe` is the TOML text, empty if there is no recipe."""
    return {
        "ok": bool(recipe),
        "file": str(imported.path),
        "program": imported.program,
        "recipe": recipe or None,
        "keys": [
            {
                "key": one.key,
                "line": one.line or None,
                "value": "…" if _is_secret(one) else _plain_value(one.value),
                "status": one.status,
                "fields": list(one.fields),
                "says": one.says,
            }
            for one in imported.outcomes
        ],
    }


def _is_secret(outcome: Outcome) -> bool:
    return isinstance(outcome.value, str) and _SECRET.search(outcome.key) is not None


def _plain_value(value: Any) -> Any:
    if value is ...:
        return None
    if isinstance(value, Expression):
        return value.text
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain_value(item) for key, item in value.items()}
    return [_plain_value(item) for item in value] if isinstance(value, list) else value
