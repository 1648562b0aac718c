"""Checks of where a file comes from: its bytes, its ancestors, the journal, and the gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cockpit.runs.state import RunState
from cockpit.runs.verify import Link
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.shipping.check import Check, fact, missing, unneeded
from cockpit.shipping.subject import Subject
from engines.artifacts.manifest import ManifestError, manifest_sha256
from engines.events.results import GateChecked
from engines.run_dir.paths import RunDir
from engines.words import GateResult
from recipes import quantities
from recipes.problems import printable
from recipes.ship.limits import ShipLimits
from recipes.stages.fields import StageFields

_CHECKPOINT = "checkpoint"
_JOURNAL = "the journal"


def file_check(subject: Subject, evidence: Mapping[str, Any]) -> Check:
    """The file, with its further parts, is the one that the export wrote."""
    entries = {str(entry["path"]): entry for entry in subject.manifest["files"]}
    problems = [str(problem) for problem in evidence["problems"]]
    for number, part in enumerate(evidence["parts"]):
        name = part["name"] if number else subject.name
        entry = entries.get(name)
        if entry is None:
            problems.append(f"the export wrote no file {name}")
        elif part["bytes"] != entry["bytes"]:
            problems.insert(0, f"{name} has {part['bytes']} bytes; the export wrote {entry['bytes']}")
        elif part["sha256"] != entry["sha256"]:
            problems.append(f"{name} has changed since the export wrote it: its SHA-256 is another one")
    source = f"manifest.json of stage {subject.stage}"
    return fact("file", problems, measured=evidence["model"], limit="as the export wrote it", source=source)


def custody_checks(links: Sequence[Link], limits: ShipLimits) -> Iterator[Check]:
    """Every ancestor that is found is unchanged, and no more are missing than allowed."""
    damaged = [
        f"{link.kind} {link.name} is damaged: {'; '.join(link.problems[:2])}"
        for link in links
        if link.verdict == "damaged"
    ]
    named = [link for link in links if link.verdict == "known by name"]
    measured = f"{sum(link.verdict == 'whole' for link in links)} intact"
    measured += f", {len(named)} recorded by name only" if named else ""
    yield fact("custody.intact", damaged, measured=measured, limit="nothing damaged", source="manifests, by SHA-256")
    gone = [link for link in links if link.verdict == "gone" and link.kind != _CHECKPOINT]
    allowed = limits.missing_ancestors
    problems = [f"{link.kind} {link.name} is not found" for link in gone] if len(gone) > allowed else []
    yield fact(
        "custody.found",
        problems,
        measured=f"{len(gone)} not found",
        limit=f"<= {allowed} not found",
        source="manifests, by SHA-256",
    )


def journal_checks(
    subject: Subject, state: RunState | None, recipe: RunRecipe | None, judged: Sequence[str]
) -> Iterator[Check]:
    """The journal has the outputs that the verdict uses, and its recipe is the one of the launch.

    Args:
        subject: the file.
        state: the fold of the journal; None without a run.
        recipe: the run's; None if it cannot be read.
        judged: the stages whose outputs are used, besides the export.
    """
    if state is None or subject.run is None:
        yield missing("journal", "the run that wrote the file is not here; give its folder of runs: --runs-dir DIR")
        return
    problems = [f"{state.unreadable} lines of the journal cannot be read"] if state.unreadable else []
    for name in dict.fromkeys([subject.stage, *judged]):
        problems += _stage_problems(subject.run, state, name)
    yield fact("journal", problems, measured=f"{state.version} records", limit="has these outputs", source=_JOURNAL)
    changed = ["recipe.toml is not the file that was launched"] if subject.run.recipe_was_edited() else []
    if recipe is None:
        changed.append("recipe.json cannot be read")
    yield fact("recipe", changed, limit="as launched", source="recipe.toml, recipe.json")


def _stage_problems(run: RunDir, state: RunState, name: str) -> Iterator[str]:
    stage = next((stage for stage in state.stages if stage.name == name), None)
    if stage is None or stage.standing is None:
        yield f"the journal has no success of stage {name}"
        return
    try:
        found = manifest_sha256(run.out(name))
    except ManifestError as error:
        yield f"the output of stage {name}: {error}"
        return
    if found != stage.standing.manifest_sha256:
        yield f"the output of stage {name} is not the one that the journal recorded"


def gate_check(state: RunState | None, recipe: RunRecipe | None) -> Check:
    """Every gate of the run's recipe was checked and passed, and the journal has no gate that the recipe lacks."""
    if state is None or recipe is None:
        return missing("gates", "the run's journal or recipe cannot be read")
    problems: list[str] = []
    count = 0
    views = {view.name: view for view in state.stages}
    for name in recipe.wanted():
        checked = views[name].gates if name in views else []
        count += len(checked)
        problems += _gate_problems(recipe.stage(name), checked)
    if not count and not problems:
        return unneeded("gates", "the recipe has no gates")
    return fact("gates", problems, measured=f"{count} checked", limit="all passed", source=_JOURNAL)


def _gate_problems(stage: StageFields, checked: Sequence[GateChecked]) -> Iterator[str]:
    declared = [(gate.metric, str(gate.op), gate.value) for gate in stage.gate]
    seen = {(gate.metric, gate.op, gate.limit): gate for gate in checked}
    for key in seen:
        if key not in declared:
            yield f"{stage.name}: the gate {_gate(key)} was checked, and recipe.json does not have it any more"
    for key in declared:
        found = seen.get(key)
        if found is None:
            yield f"{stage.name}: the gate {_gate(key)} was not checked"
        elif found.result == GateResult.NOT_MEASURED:
            yield f"{stage.name}: the gate {_gate(key)} was not measured"
        elif found.result != GateResult.PASS:
            yield f"{stage.name}: gate failed: {_gate(key)} (got {quantities.number(found.value)})"


def _gate(key: tuple[str, str, float]) -> str:
    metric, op, limit = key
    return printable(f"{metric} {op} {quantities.exact(limit)}", 120)
