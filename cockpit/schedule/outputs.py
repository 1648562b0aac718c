"""Whether a stage is done: its last success was made from the fields and inputs of the run, and its output is complete.

What a stage read from outside the run is taken from its record, never asked again: a file that was touched, changed or
deleted later does not change what the finished output is.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pydantic import ValidationError

from cockpit.schedule.facts import RunFacts
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.artifacts.manifest import problems_against
from engines.events.runs import StageSucceeded
from engines.inputs.record import OUTSIDE, is_outside_the_graph, read_record, stage_fingerprint
from engines.run_dir.paths import RunDir
from engines.stage_file import StageFile, StageInput, read_stage_file
from recipes.fingerprint import fingerprint
from recipes.problems import OperatorError
from recipes.stages.fields import StageFields


class Outputs:
    """The outputs of one run's stages. Each is hashed once, until a later success replaces it."""

    def __init__(
        self,
        run: RunDir,
        plan: RunRecipe,
        facts: RunFacts,
        report: Callable[[str, list[str]], None] = lambda _name, _problems: None,
    ) -> None:
        """`facts` may grow later. `report` gets a stage's name and what is wrong with the files of its output."""
        self._run = run
        self._plan = plan
        self._facts = facts
        self._report = report
        self._verified: dict[str, str] = {}

    def is_done(self, name: str) -> bool:
        """Whether the stage needs no attempt: its fields and inputs are those of its success, and every file of its
        output has its hash."""
        last = self._facts.stage(name).last_success
        if last is None or not self._is_of_this_recipe(name, last):
            return False
        if self._verified.get(name) == last.manifest_sha256:
            return True
        problems = problems_against(self._run.out(name), last.manifest_sha256)
        if problems:
            self._report(name, problems)
            return False
        self._verified[name] = last.manifest_sha256
        return True

    def _is_of_this_recipe(self, name: str, last: StageSucceeded) -> bool:
        stage = self._plan.stage(name)
        given = self._stage_file(name, last.attempt)
        recorded = self._recorded(name, last.attempt, given)
        present = self._plan.stage_inputs(self._run, name)
        identities = {field: _identity(item, recorded.get(field, "")) for field, item in present.items()}
        identities |= {field: identity for field, identity in recorded.items() if is_outside_the_graph(field)}
        if stage_fingerprint(stage, identities) == last.fingerprint:
            return True
        # A newer version may have added fields, which changes every fingerprint: compare the recorded fields.
        return (
            given is not None
            and (not given.fingerprint or given.fingerprint == last.fingerprint)
            and _same_fields(stage, given)
            and all(recorded.get(field) == identity for field, identity in identities.items())
        )

    def _stage_file(self, name: str, attempt: int) -> StageFile | None:
        with suppress(OperatorError):
            return read_stage_file(self._run.stage_json(name, attempt))
        return None

    def _recorded(self, name: str, attempt: int, given: StageFile | None) -> dict[str, str]:
        """The identity of each input at the attempt's start: by the journal, by `inputs.json`, else, for runs of older
        versions, by `stage.json`."""
        event = self._facts.stage(name).attempt(attempt).inputs
        if event is not None:
            return {item.field: item.sha256 or item.name for item in event.inputs}
        found = read_record(self._run.inputs_json(name, attempt))
        if found:
            return {item.field: item.identity for item in found}
        return {field: item.manifest_sha256 or item.name for field, item in given.inputs.items()} if given else {}


def _identity(item: StageInput, recorded: str) -> str:
    """What identifies an input now. What lies outside the run is identified by its record; so is a dataset of a hub,
    whose files are in the record, while the record of a model of a hub is its name."""
    if item.origin in OUTSIDE:
        return recorded
    return item.manifest_sha256 or (recorded if item.origin == "hub" and recorded else item.name)


def _same_fields(stage: StageFields, given: StageFile) -> bool:
    """Whether recorded fields, with this version's defaults for new ones, are those of the stage."""
    try:
        recorded = type(stage).model_validate(given.stage)
    except ValidationError:
        return False
    return fingerprint(recorded.model_dump(mode="json"), []) == fingerprint(stage.model_dump(mode="json"), [])
