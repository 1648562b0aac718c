"""A registry of data sets as prepare stages: LLaMA-Factory's `dataset_info.json`."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence

from cockpit.importing.draft import Draft, problem_with
from cockpit.importing.llama_factory_data import EntryError, source_of
from recipes.load import MAX_STAGES
from recipes.problems import OperatorError, closest, printable

TAG = "prepare-messages"
_OTHER = re.compile(r"[^a-z0-9]+")


def convert_registry(draft: Draft, only: Sequence[str] = ()) -> None:
    """One prepare stage for each data set that a stage can read; the others are reported as missing.

    Raises:
        OperatorError: `only` names a data set that the registry does not have.
    """
    for name in only:
        if name not in draft.config.entries:
            hint = closest(name, draft.config.entries)
            raise OperatorError(f"--dataset — the registry has no data set {printable(name)}", hint)
    folder = str(draft.config.path.absolute().parent)
    for name, entry in draft.config.entries.items():
        if only and name not in only:
            draft.note(entry, "unneeded", says="not chosen by --dataset")
            continue
        if not isinstance(entry.value, dict):
            draft.note(entry, "unknown", says="not the description of a data set")
            continue
        if len(draft.stages) >= MAX_STAGES:
            draft.note(entry, "different", says=f"a recipe has at most {MAX_STAGES} stages; choose with --dataset")
            continue
        try:
            source = source_of(draft, (name,), entry.value, folder)
        except EntryError as error:
            draft.note(entry, "different", says=str(error))
            continue
        stage = stage_name(name, draft.stages)
        fields = source.fields()
        refused = {key: problem for key, value in fields.items() if (problem := problem_with(TAG, key, value))}
        problems = [f"{key} — {problem}" for key, problem in refused.items()]
        draft.stages[stage] = {key: value for key, value in fields.items() if key not in refused}
        draft.note(
            entry, "different" if problems else "imported", [f"{stage}.{key}" for key in fields], "; ".join(problems)
        )
    if not draft.stages:
        first = next(iter(draft.outcomes))
        draft.outcomes[0] = type(first)(first.key, first.value, first.line, "missing", (), first.says)


def stage_name(name: str, taken: Container[str]) -> str:
    """A name of a stage that is like a data set's."""
    base = _OTHER.sub("-", name.lower()).strip("-")[:36] or "data"
    number, found = 1, base
    while found in taken:
        number += 1
        found = f"{base}-{number}"
    return found
