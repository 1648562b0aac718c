"""Judges one file: gathers the checks, and makes the verdict of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cockpit
from cockpit.runs.find import find_run
from cockpit.runs.reader import read_now
from cockpit.runs.state import RunState
from cockpit.runs.verify import check_descent
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.shipping.check import Check
from cockpit.shipping.custody import custody_checks, file_check, gate_check, journal_checks
from cockpit.shipping.evaluations import (
    Chosen,
    Place,
    Role,
    answer_checks,
    choose,
    cost_checks,
    general_checks,
    results_of,
    task_checks,
)
from cockpit.shipping.origins import base_models
from cockpit.shipping.proofs import proof_checks, training_checks
from cockpit.shipping.subject import Subject, find_subject
from cockpit.shipping.verdict import FORMAT, KIND, next_number
from engines.artifacts.manifest import ManifestError, manifest_sha256
from engines.emitter import wall_clock_s
from engines.files import file_sha256
from engines.run_dir.paths import RunDir, RunDirError
from recipes.ship.limits import ShipLimits

Collect = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Takes what `engines.shipping.evidence.Given` has, and returns its evidence."""


@dataclass(frozen=True)
class Judged:
    """A judged file.

    Attributes:
        subject: the file.
        limits: that were applied.
        checks: in their order.
        task: its evaluation; None if it was not found.
        general: that of the general questions.
        evidence: as it was collected.
        state: the fold of the run's journal; None without a run.
    """

    subject: Subject
    limits: ShipLimits
    checks: list[Check]
    task: Chosen | None
    general: Chosen | None
    evidence: Mapping[str, Any]
    state: RunState | None

    @property
    def passed(self) -> bool:
        """Whether the file may ship."""
        return all(check.passed for check in self.checks)

    def verdict(self) -> dict[str, Any]:
        """The verdict, without its seal."""
        parts = self.evidence["parts"]
        first = parts[0] if parts else {"name": self.subject.name, "bytes": 0, "sha256": ""}
        return {
            "format": FORMAT,
            "kind": KIND,
            "passed": self.passed,
            "file": {**first, "parts": parts[1:]},
            "number": next_number(self.subject.run, str(first["sha256"])),
            "judged_t": wall_clock_s(),
            "version": cockpit.__version__,
            "run": self.subject.run.id if self.subject.run is not None else None,
            "stage": self.subject.stage,
            "limits": self.limits.model_dump(mode="json"),
            "checks": [check.record() for check in self.checks],
            "evidence": _hashes(self),
        }


def judge_file(
    root: Path,
    given: str,
    collect: Collect,
    *,
    limits: ShipLimits | None = None,
    file_type: str | None = None,
    results: Sequence[Path] = (),
) -> Judged:
    """Judge a file.

    Args:
        root: the folder of runs.
        given: RUN, RUN:STAGE or the path of a GGUF file.
        collect: computes the evidence, in a process of its own.
        limits: None for those of the run's recipe.
        file_type: the file's type or name, where a run has several.
        results: further results files.

    Raises:
        OperatorError: there is no such file, or it is not clear which one is meant.
    """
    known = limits or _limits_of_run(root, given)
    subject = find_subject(root, given, file_type or known.file)
    state, recipe = _read(subject.run)
    limits = limits or (recipe.recipe.ship if recipe is not None else ShipLimits())
    places = [*results_of(subject.run), *(Place(path) for path in results)]
    near = str(subject.run.stages) if subject.run is not None else ""
    evidence = collect({"file": str(subject.file), "results": [str(one.path) for one in places], "near": near})
    links = list(check_descent(subject.out, [root]))
    task, of_task = _role("task", evidence, places, subject, limits, needed=True)
    general, of_general = _role("general", evidence, places, subject, limits, needed=limits.forgetting)
    if task is not None:
        of_task += task_checks(task, limits)
    if general is not None:
        of_general += general_checks(general, limits, base_models(links, subject.manifest))
    used = [one.place.stage for one in (task, general) if one is not None and one.place.stage]
    checks = [
        file_check(subject, evidence),
        *custody_checks(links, limits),
        *journal_checks(subject, state, recipe, used),
        gate_check(state, recipe),
        *proof_checks(subject, limits),
        *training_checks(state, recipe, links, limits),
        *of_task,
        *of_general,
        *cost_checks(task, evidence["bytes"], limits),
    ]
    return Judged(subject, limits, checks, task, general, evidence, state)


def _limits_of_run(root: Path, given: str) -> ShipLimits:
    """The limits of the recipe of the run that a file comes from, for the name of the file to choose."""
    if Path(given).expanduser().is_file() or given.endswith(".gguf"):
        return ShipLimits()
    run_part, colon, stage = given.rpartition(":")
    try:
        return RunRecipe.read(find_run(root, run_part if colon and "/" not in stage else given)).recipe.ship
    except RunDirError:
        return ShipLimits()


def _read(run: RunDir | None) -> tuple[RunState | None, RunRecipe | None]:
    if run is None:
        return None, None
    state = read_now(run).state
    try:
        return state, RunRecipe.read(run)
    except RunDirError:
        return state, None


def _role(
    role: Role,
    evidence: Mapping[str, Any],
    places: Sequence[Place],
    subject: Subject,
    limits: ShipLimits,
    *,
    needed: bool,
) -> tuple[Chosen | None, list[Check]]:
    """The evaluation of a role, with the checks of its answers."""
    if not needed:
        return None, []
    found = choose(role, evidence, places, subject.file_type, limits)
    if isinstance(found, Check):
        return None, [found]
    return found, list(answer_checks(found, evidence))


def _hashes(judged: Judged) -> list[dict[str, str]]:
    """SHA-256 of everything that the verdict relies on."""
    subject = judged.subject
    found = [{"what": f"output of stage {subject.stage}", "sha256": _manifest_of(subject.out)}]
    for one in (judged.task, judged.general):
        if one is not None:
            found.append({"what": one.source, "sha256": str(one.results["sha256"])})
            if one.results["baseline"] is not None:
                found.append({"what": f"baseline of {one.source}", "sha256": str(one.results["baseline"]["sha256"])})
    if subject.run is not None:
        files = (subject.run.journal, subject.run.recipe_json)
        found += [{"what": path.name, "sha256": file_sha256(path)} for path in files if path.is_file()]
    return found


def _manifest_of(folder: Path) -> str:
    try:
        return manifest_sha256(folder)
    except ManifestError:
        return ""
