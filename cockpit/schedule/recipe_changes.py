"""Changes of a run's recipe at a resume: `recipe.json` is written again, and the earlier one is kept beside it.

The supervisor writes it while it holds the run's lock, before it writes `run_started` with the same changes. When it is
killed between the two, the next supervisor finds changes in `recipe.json` that the journal lacks, and journals them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from cockpit.provenance.trust import allow_recipe
from cockpit.schedule.facts import read_facts
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.events.runs import FieldChanged
from engines.files import read_regular_bytes, write_durably
from engines.run_dir.paths import RunDir
from recipes.resume_changes import change_recipe


def changed_plan(plan: RunRecipe, sets: Sequence[str]) -> tuple[RunRecipe, list[FieldChanged]]:
    """The plan with overrides applied, and what they change.

    Raises:
        RecipeError: every override that names no field, or whose value is wrong.
    """
    changed = change_recipe(plan.recipe.model_dump(mode="json", by_alias=True), sets)
    first = len(plan.changes) + 1
    fresh = [
        FieldChanged(number=number, stage=change.stage, field=change.field, old=change.old, new=change.new)
        for number, change in enumerate(changed.changes, first)
    ]
    return replace(plan, recipe=changed.recipe, changes=[*plan.changes, *fresh]), fresh


def write_changes(run: RunDir, sets: Sequence[str]) -> None:
    """Apply overrides to the run's `recipe.json`; the caller holds the run's lock.

    Raises:
        RecipeError: an override cannot be applied.
        RunDirError: recipe.json is not a resolved recipe.
        OSError: it cannot be written; the earlier one is unchanged.
    """
    plan, fresh = changed_plan(RunRecipe.read(run), sets)
    if not fresh:
        return
    kept = next(path for number in count(1) if not (path := run.replaced_recipe_json(number)).exists())
    write_durably(kept, read_regular_bytes(run.recipe_json))
    content = json.dumps(plan.to_json(), indent=1).encode()
    allow_recipe(run, content)
    write_durably(run.recipe_json, content)


def unjournaled(run: RunDir, plan: RunRecipe) -> list[FieldChanged]:
    """Changes in `recipe.json` that no `run_started` of the journal has yet."""
    if not plan.changes:
        return []
    known = read_facts(run).changes
    return [change for change in plan.changes if change.number not in known]
