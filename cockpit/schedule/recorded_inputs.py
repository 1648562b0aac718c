"""What a stage's next attempt must read: the recorded inputs, except those that the operator accepted since."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cockpit.schedule.facts import RunFacts
from cockpit.schedule.resolved_recipe import RunRecipe
from engines.inputs.compare import InputChange, changes_of
from engines.inputs.record import identify_inputs, read_record
from engines.run_dir.paths import RunDir
from engines.stage_file import ExpectedInputs

Progress = Callable[[int, int], None]


def expected_inputs(run: RunDir, facts: RunFacts, name: str) -> ExpectedInputs | None:
    """The newest record of a stage's inputs, and what the operator accepted after it; None without a record."""
    stage = facts.stage(name)
    recorded = {number for number, attempt in stage.attempts.items() if attempt.inputs is not None}
    recorded |= {number for number in run.attempts(name) if run.inputs_json(name, number).is_file()}
    if not recorded:
        return None
    newest = max(recorded)
    event = stage.attempts[newest].inputs if newest in stage.attempts else None
    journaled = {i.field: i.sha256 for i in event.inputs if i.method == "content" or i.files} if event else {}
    accepted: dict[str, str] = {}
    for start in facts.operator_starts():
        if start.attempts.get(name, 0) >= newest:
            accepted |= {item.field: item.sha256 for item in start.accepted_inputs if item.stage == name}
    return ExpectedInputs(attempt=newest, journaled=journaled, accepted=accepted)


def changed_inputs(
    run: RunDir,
    plan: RunRecipe,
    facts: RunFacts,
    names: Iterable[str],
    progress: Progress = lambda _done, _total: None,
) -> list[InputChange]:
    """The inputs of these stages that are not the expected ones, by stage and field.

    Args:
        run: the run.
        plan: its recipe.
        facts: from its journal.
        names: the stages to compare.
        progress: called with bytes read and in total; what it raises ends the work.

    Raises:
        OperatorError: a file of an input cannot be read.
    """
    changes: list[InputChange] = []
    for name in names:
        expected = expected_inputs(run, facts, name)
        if expected is None:
            continue
        found = _changes(run, plan, name, expected, progress, cached=True)
        changes += _changes(run, plan, name, expected, progress, cached=False) if found else []
    return changes


def _changes(
    run: RunDir, plan: RunRecipe, name: str, expected: ExpectedInputs, progress: Progress, *, cached: bool
) -> list[InputChange]:
    # The output of another run is fixed by the launch: the supervisor and the engine refuse any other.
    inputs = {f: given for f, given in plan.stage_inputs(run, name).items() if given.manifest_sha256 is None}
    before = read_record(run.inputs_json(name, expected.attempt))
    present = identify_inputs(plan.stage(name), inputs, progress, cached=cached)
    changes = changes_of(name, before, present, expected.journaled)
    return [change for change in changes if expected.accepted.get(change.field) != change.sha256]
