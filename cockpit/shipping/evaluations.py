"""Checks of the evaluations of a file: the task, the general questions, time and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cockpit.shipping.check import Check, Result, fact, figure, missing
from engines.artifacts.manifest import ManifestError, read_manifest, verify_manifest
from engines.judging.shares.counts import paired_shares
from engines.processor import machine_class
from engines.run_dir.paths import RunDir
from recipes import quantities
from recipes.problems import printable
from recipes.ship.limits import ANY, THIS, ShipLimits
from recipes.stages.evaluate import EVALUATE

Role = Literal["task", "general"]
_LLAMA = "llama.cpp"
MOST_QUESTIONS = 10_000
"""That a reason proposes to ask."""
_COSTS = ("peak_rss_bytes", "latency_p95_s", "first_token_p50_s", "answer_tokens_per_second")
"""Limits that count on one machine."""


@dataclass(frozen=True)
class Place:
    """A results file, and the stage that wrote it; a file that the operator names has none."""

    path: Path
    stage: str = ""


@dataclass(frozen=True)
class Chosen:
    """The evaluation of one role: what is known of its results, and where they are."""

    role: Role
    place: Place
    results: Mapping[str, Any]

    @property
    def source(self) -> str:
        """Where its figures come from."""
        return f"{self.place.path.name} of stage {self.place.stage}" if self.place.stage else self.place.path.name

    @property
    def metrics(self) -> dict[str, float]:
        """Its metrics, computed again."""
        return dict(self.results["metrics"])


def results_of(run: RunDir | None) -> list[Place]:
    """The results files of GGUF files that the evaluations of a run wrote."""
    found: list[Place] = []
    for out in run.all_outs() if run is not None else []:
        try:
            manifest = read_manifest(out)
        except ManifestError:
            continue
        if manifest.get("kind") == EVALUATE.kind:
            files = sorted(out.glob("results-*.json"))
            found += [Place(file, str(manifest.get("stage", ""))) for file in files]
    return found


def choose(
    role: Role, evidence: Mapping[str, Any], places: Sequence[Place], file_type: str, limits: ShipLimits
) -> Chosen | Check:
    """The one evaluation of a role; a check that did not pass where no evaluation has it, or more than one.

    Results of this very file come first; else those that are named for its type, which then are of another file.
    """
    named = limits.task if role == "task" else limits.general
    given = [Chosen(role, place, found) for place, found in zip(places, evidence["results"], strict=True)]
    asked = [one for one in given if one.results["asked"]]
    of_role = [one for one in asked if _general(one, limits) == (role == "general")]
    of_stage = [one for one in of_role if named is None or one.place.stage == named]
    of_file = [one for one in of_stage if one.results["model"] == evidence["model"]]
    of_file = [one for one in of_file if not one.results["adapter"]] or of_file  # the file ships alone
    by_name = [one for one in of_stage if one.place.path.name == f"results-{file_type}.json" or not one.place.stage]
    found = of_file or by_name
    if len(found) == 1:
        return found[0]
    what = "of general questions" if role == "general" else "of the task"
    if not found:
        where = f"stage {named} has no evaluation" if named is not None else "there is no evaluation"
        return missing(f"{role}.answers", f"{where} {what} with this file: an evaluate stage with files, or --results")
    stages = ", ".join(one.place.stage or one.place.path.name for one in found)
    return missing(
        f"{role}.answers",
        f"{len(found)} evaluations {what} asked this file: {printable(stages, 200)}; name one: {role} in [ship]",
    )


def _general(one: Chosen, limits: ShipLimits) -> bool:
    """Whether its questions are general ones: the shipped set, or those of the stage that the limits name."""
    named = limits.general is not None and one.place.stage == limits.general
    return bool(one.results["general"]) or named


def answer_checks(chosen: Chosen, evidence: Mapping[str, Any]) -> Iterator[Check]:
    """The answers are those of this very file, as it ships, and the results say what they are."""
    role, found, source = chosen.role, chosen.results, chosen.source
    problems = []
    if found["model"] != evidence["model"]:
        problems.append(
            f"the answers are of another model or file: SHA-256 {found['model'][:12] or 'not recorded'}…,"
            f" not {evidence['model'][:12]}…"
        )
    elif found["runtime"] != _LLAMA:
        problems.append(f"the answers are of {found['runtime'] or 'an unknown runtime'}, not of {_LLAMA}")
    if found["adapter"]:
        problems.append(f"an adapter was over the file ({found['adapter'][:12]}…), and the file ships alone")
    yield fact(f"{role}.answers", problems, measured=found["model"], limit="of this file", source=source)
    own = evidence["template"] or "plain"
    wrong = [] if found["template"] in (own, "") else ["the answers were given with another chat template than its own"]
    wrong += [] if found["template"] else ["the results do not say which chat template was used"]
    yield fact(f"{role}.template", wrong, measured=found["template"][:12], limit="the file's own", source=source)
    problems = [*_changed(chosen.place), *found["problems"]]
    notes = "; ".join(found["notes"])
    yield fact(f"{role}.results", problems, measured=notes, limit="agree with their answers", source=source)


def _changed(place: Place) -> list[str]:
    """Files of the stage's output that are not those of its manifest."""
    return verify_manifest(place.path.parent) if place.stage else []


def task_checks(chosen: Chosen, limits: ShipLimits) -> Iterator[Check]:
    """Enough rows with verdicts, a win over the baseline, and the shares that the limits ask for."""
    metrics, source = chosen.metrics, chosen.source
    yield figure("task.rows", metrics, "test_rows", ">=", limits.rows, source=source, unit="rows")
    yield figure("task.unjudged_rows", metrics, "unjudged_rows", "<=", limits.unjudged_rows, source=source, unit="rows")
    if limits.success_low is not None:
        yield figure("task.success_low", metrics, "success_low", ">=", limits.success_low, source=source)
    if limits.baseline:
        yield _baseline(chosen)
        yield figure("task.difference_low", metrics, "difference_low", ">", limits.difference_low, source=source)
    if limits.ended is not None:
        yield figure("task.ended", metrics, "ended", ">=", limits.ended, source=source)
    if limits.repetition is not None:
        yield figure("task.repetition", metrics, "repetition", "<=", limits.repetition, source=source)


def general_checks(chosen: Chosen, limits: ShipLimits, made_from: Mapping[str, str]) -> Iterator[Check]:
    """Enough general questions, asked the base model too, and not much forgotten.

    Args:
        chosen: the evaluation.
        limits: the limits.
        made_from: identities (or hub ids) of the models that the file was made from, with their names.
    """
    metrics, source = chosen.metrics, chosen.source
    yield figure("general.rows", metrics, "test_rows", ">=", limits.general_rows, source=source, unit="rows")
    yield _baseline(chosen)
    baseline = chosen.results["baseline"]
    if limits.general_baseline and baseline is not None:
        known = baseline["model"] in made_from or baseline["name"] in made_from
        name = printable(baseline["name"], 80)
        problems = [] if known else [f"the baseline {name} is not a model that this file was made from"]
        shown = made_from.get(baseline["model"], baseline["name"])
        yield fact("general.base", problems, measured=shown, limit="a model that the file was made from", source=source)
    if baseline is not None and "rows" in baseline:
        yield _base_success(chosen, int(baseline["rows"]), limits)
        yield _forgetting(metrics, int(baseline["rows"]), limits, source)
        return
    yield missing("general.forgetting", "forgetting_high was not measured", source=source)


def _base_success(chosen: Chosen, rows: int, limits: ShipLimits) -> Check:
    """The base model knows enough answers: had all of them been forgotten, the limit would refuse the file.

    Of the questions with choices, answers at random pass a part, before a forgetting and after it.
    """
    source, chance = chosen.source, chosen.results["chance"]
    if chance is None:
        why = "the test file is not here, or has changed: how many questions answers at random pass is not known"
        return missing("general.base_success", why, source=source)
    passed = round(chosen.metrics["baseline_success"] * rows)
    known = max(0, math.floor(passed - chance))
    at_most = -paired_shares(0, known, rows).low
    measured = f"{passed} of {rows} questions, {quantities.number(chance)} by chance"
    if at_most > limits.forgetting_high:
        return fact("general.base_success", [], measured=measured, source=source)
    reason = (
        f"the base model passes {measured}: had it forgotten all that it knows, forgetting_high would be"
        f" {quantities.number(at_most)}, which the limit allows; set a lower forgetting_high"
    )
    return missing("general.base_success", reason, source=source)


def _forgetting(metrics: Mapping[str, float], rows: int, limits: ShipLimits, source: str) -> Check:
    """Forgetting is excluded, shown, or neither: then the questions are too few to say.

    The upper end of the interval of the drop within the limit excludes more. Above it, a lower end above 0 shows a
    forgetting that chance does not explain; else the two models differ on so many questions, both ways, that the
    interval contains no forgetting and too much of it.
    """
    name, limit = "general.forgetting", limits.forgetting_high
    within = figure(name, metrics, "forgetting_high", "<=", limit, source=source)
    if within.result is not Result.FAIL or within.value is None:
        return within
    won, lost = int(metrics["won_rows"]), int(metrics["lost_rows"])
    drop, low, high = (quantities.number(metrics[key]) for key in ("forgetting", "forgetting_low", "forgetting_high"))
    found = f"{lost} of {rows} questions lost and {won} won: a drop of {drop} ({low} to {high})"
    if metrics["forgetting_low"] > 0:
        return replace(within, reason=f"{within.reason}; forgotten: {found}, which chance does not explain")
    needed = _questions_needed(won / rows, lost / rows, limit)
    more = f"; with the same shares, {needed} questions would show less than the limit" if needed else ""
    reason = f"not enough evidence: {found}, which chance explains; {within.reason}{more}"
    return replace(within, result=Result.NOT_ENOUGH, reason=reason)


def _questions_needed(won: float, lost: float, limit: float) -> int | None:
    """How many questions of which these shares change would keep the upper end of the drop within the limit, in
    hundreds; None if more than 10,000."""
    for rows in range(100, MOST_QUESTIONS + 1, 100):
        if -paired_shares(round(won * rows), round(lost * rows), rows).low <= limit:
            return rows
    return None


def _baseline(chosen: Chosen) -> Check:
    baseline, name = chosen.results["baseline"], f"{chosen.role}.baseline"
    if baseline is None:
        return missing(name, "the evaluation has no baseline", source=chosen.source)
    problems = list(baseline["problems"])
    if baseline["tests"] != chosen.results["tests"]:
        problems.append("the baseline is of another test file")
    if baseline.get("apart"):
        problems.append(f"{baseline['apart']} rows are only in one of the two")
    return fact(name, problems, measured=baseline["name"], limit="on the same rows", source=chosen.source)


def cost_checks(chosen: Chosen | None, size_bytes: int, limits: ShipLimits) -> Iterator[Check]:
    """Size, memory and time, the latter on the machine that counts."""
    if limits.size_bytes is not None:
        sizes = {"size_bytes": float(size_bytes)}
        yield figure("cost.size", sizes, "size_bytes", "<=", limits.size_bytes, source="the file", unit="bytes")
    wanted = {name: getattr(limits, name) for name in _COSTS if getattr(limits, name) is not None}
    if not wanted or chosen is None:
        yield from (missing(f"cost.{name}", f"{name} was not measured") for name in wanted)
        return
    yield _machine(chosen, limits.machine)
    for name, limit in wanted.items():
        op = ">=" if name == "answer_tokens_per_second" else "<="
        unit = "bytes" if name.endswith("_bytes") else "seconds" if name.endswith("_s") else "number"
        yield figure(f"cost.{name}", chosen.metrics, name, op, limit, source=chosen.source, unit=unit)


def _machine(chosen: Chosen, wanted: str) -> Check:
    machines = list(chosen.results["machines"])
    allowed = machine_class() if wanted == THIS else wanted
    if not machines:
        return missing("cost.machine", "the results do not say on which machine they were measured", limit=allowed)
    other = [name for name in machines if wanted != ANY and name != allowed]
    problems = [f"time and memory were measured on another machine: {name}; they count on: {allowed}" for name in other]
    return fact("cost.machine", problems, measured="; ".join(machines), limit=allowed, source=chosen.source)
