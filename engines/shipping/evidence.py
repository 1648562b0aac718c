"""Evidence about one GGUF file: its template, and the results of evaluations, computed again from their rows.

Nothing here decides. A results file is a claim: its metrics are computed again from its rows, its rows are compared
with the kept answers beside it, and where the test file is still here, the answers are judged again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engines.artifacts.model_files import sha256_of
from engines.files import file_sha256
from engines.judging.answers import Kept, kept_answers
from engines.judging.checks import Judges, judge
from engines.judging.choice_check import by_chance
from engines.judging.compare import compare, read_baseline, read_results
from engines.judging.sets.general import general_set
from engines.judging.task import Check, Task, Verdict, repeats
from engines.judging.test_file import read_tests
from engines.judging.totals import Judged, totals
from engines.llama.gguf_file import part_paths, read_gguf
from engines.run_dir.moved_runs import place_now
from recipes import quantities
from recipes.problems import OperatorError, printable
from recipes.stages.evaluate import STAGE_CHECKS

ANSWERS = ".answers.jsonl"
JUDGED_AGAIN = frozenset({*STAGE_CHECKS, "regex", "json_schema"})
"""Checks that give the same verdict each time, and start nothing of the operator's."""
CHOICE = "choice"
"""The check whose rows answers at random pass in part."""
COMPARED = ("baseline_success", "difference", "difference_low", "difference_high", "p_value")
"""Metrics of a comparison, by the names that it has too."""


@dataclass(frozen=True)
class Given:
    """What to look at, as JSON data.

    Attributes:
        file: the GGUF file, the first part of a split one.
        results: results files.
        near: a folder beside which a test file or a baseline may be now, if its run was moved.
    """

    file: str
    results: list[str]
    near: str = ""


@dataclass
class Results:
    """What one results file says, and whether it can be believed.

    Attributes:
        path: the file.
        sha256: its own.
        general: its rows are those of the general set.
        asked: it has answers, not only a loss.
        model: identity of the model that answered, as evaluations compute it; empty if it is not recorded.
        runtime: that answered.
        adapter: identity of an adapter over the file; empty without one.
        template: SHA-256 of the chat template, or "plain".
        tests: SHA-256 of the test file.
        machines: on which the answers were given.
        metrics: computed again from the rows.
        problems: why it cannot be believed.
        notes: what could not be looked at.
        chance: rows of the test file that answers at random pass on average: those with choices; None where the file
            is not here.
        baseline: the file that its rows are compared with; None without one.
    """

    path: str
    sha256: str = ""
    general: bool = False
    asked: bool = True
    model: str = ""
    runtime: str = ""
    adapter: str = ""
    template: str = ""
    tests: str = ""
    machines: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    chance: float | None = None
    baseline: dict[str, Any] | None = None


def collect(given: Given) -> dict[str, Any]:
    """What is known of the file: `model`, its identity in evaluations, `parts` with name, bytes and SHA-256 of each
    file of a split model, `bytes`, `template`, `problems`, and `results`, one table for each results file.

    A file that cannot be read is a problem in it, and no error.
    """
    file = Path(given.file)
    found: dict[str, Any] = {"model": "", "parts": [], "bytes": 0, "template": "", "problems": []}
    try:
        parts = part_paths(file) if _is_split(file) else [file]
        hashes = {part: file_sha256(part) for part in parts}
        found["parts"] = [{"name": p.name, "bytes": p.stat().st_size, "sha256": hashes[p]} for p in parts]
        found["model"] = sha256_of(parts, hashes.__getitem__)
        found["bytes"] = sum(part["bytes"] for part in found["parts"])
        text = str(read_gguf(file).scalar("tokenizer.chat_template", "") or "")
        found["template"] = hashlib.sha256(text.encode()).hexdigest() if text else ""
    except (OSError, ValueError, OperatorError) as error:
        found["problems"].append(f"the file cannot be read: {printable(str(error), 300)}")
    near = Path(given.near) if given.near else None
    return {**found, "results": [asdict(_results(Path(path), near)) for path in given.results]}


def _is_split(file: Path) -> bool:
    """Whether the file is a part of several; a damaged one is taken alone, so that its bytes can be compared."""
    try:
        return len(part_paths(file)) > 1
    except (OSError, ValueError, OperatorError):
        return False


def _results(path: Path, near: Path | None) -> Results:
    found = Results(str(path))
    try:
        found.sha256 = file_sha256(path)
        value = read_results(path)
        rows, protocol, tests = value["rows"], value["protocol"], value["tests"]
        if tests is None:
            found.asked = False
            return found
        recorded = value["metrics"]
        if not (rows and isinstance(rows, list) and all(map(_is_row, rows))):
            raise TypeError
        found.tests = str(tests["sha256"])
        for name in ("model", "runtime", "adapter", "template"):
            setattr(found, name, str(protocol.get(name, "")))
        found.machines = [str(name) for name in value.get("machines", [])]
        found.general = found.tests == file_sha256(general_set())
        found.metrics = _metrics(rows, recorded)
    except (OSError, ValueError) as error:
        found.problems.append(f"cannot be read: {printable(str(error), 200)}")
        return found
    except (KeyError, TypeError, AttributeError):
        found.problems.append("is not a file of results")
        return found
    found.problems += [*_differing(found.metrics, recorded), *_unlike_verdicts(rows)]
    found.problems += _against_answers(path, rows, protocol)
    _judge_again(found, rows, Path(str(tests.get("path", ""))), near)
    _compare(found, path, value, near)
    once = [row for row in rows if not repeats(row["key"])]
    if len(once) < len(rows):
        found.notes.append(f"{len(rows) - len(once)} rows repeat the prompt of another one and are not counted")
        found.metrics |= _metrics(once, recorded)
    return found


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("key"), str)
        and isinstance(row.get("passed"), bool)
        and isinstance(row.get("answer"), str)
        and isinstance(row.get("verdicts"), list)
        and all(isinstance(one, dict) and isinstance(one.get("check"), str) for one in row["verdicts"])
    )


def _metrics(rows: Sequence[Mapping[str, Any]], recorded: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of the rows; what rows do not have (memory, size) as recorded."""
    measured = {
        name: float(value)
        for name, value in recorded.items()
        if name.startswith(("peak_", "size_")) and isinstance(value, int | float)
    }
    return {**totals([_judged(row) for row in rows]), **measured}


def _judged(row: Mapping[str, Any]) -> Judged:
    """A row as it was judged; a row with a problem has no times, as in the results."""
    verdicts = tuple(
        Verdict(str(one["check"]), one.get("passed"), str(one.get("reason", ""))) for one in row["verdicts"]
    )
    tokens = int(row.get("tokens", 0))
    kept = Kept(
        key=row["key"],
        answer=row["answer"],
        ended=bool(row.get("ended")),
        prompt_tokens=int(row.get("prompt_tokens", 0)),
        tokens=tokens,
        first_token_s=float(row.get("first_token_s", 0.0)),
        latency_s=float(row.get("latency_s", 0.0)),
        problem="" if tokens else "it was not asked",
    )
    checks = tuple(Check(one.check) for one in verdicts)
    return Judged(Task(row["key"], "", ({"role": "user", "content": ""},), "", checks), kept, verdicts)


def _differing(found: Mapping[str, float], recorded: Mapping[str, Any]) -> Iterator[str]:
    """Recorded metrics that are not numbers, or not those of the rows."""
    other = []
    for name, value in recorded.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            yield f"metric {printable(str(name), 60)} is not a number"
        elif name in found and not math.isclose(value, found[name], rel_tol=1e-9, abs_tol=1e-9):
            by_rows = quantities.number(found[name])
            other.append(f"{name} is {quantities.number(value)}, and {by_rows} by its rows")
    if other:
        yield f"{len(other)} metrics are not those of the rows, such as {other[0]}"


def _unlike_verdicts(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Rows that say that they passed, or did not, and whose verdicts say something else."""
    other = [row for row in rows if row["passed"] != all(one.get("passed") is True for one in row["verdicts"])]
    if other:
        yield f"{len(other)} rows do not have the result of their own verdicts, such as {_place(other[0])}"


def _against_answers(path: Path, rows: Sequence[Mapping[str, Any]], protocol: Mapping[str, Any]) -> Iterator[str]:
    """Rows that the kept answers beside the results do not have."""
    beside = path.with_name(path.name + ANSWERS)
    if not beside.is_file():
        yield f"the kept answers are missing ({beside.name})"
        return
    try:
        identity, kept = kept_answers(beside)
    except (OSError, ValueError) as error:
        yield f"the kept answers cannot be read: {printable(str(error), 200)}"
        return
    differing = sorted(name for name in identity if identity[name] != protocol.get(name))
    if differing:
        yield f"the kept answers are of another evaluation: {printable(', '.join(differing), 100)} differ"
    other = [row for row in rows if row["key"] not in kept or kept[row["key"]].answer != row["answer"]]
    if other:
        yield f"{len(other)} rows do not have the kept answers, such as {_place(other[0])}"
    times = ("tokens", "latency_s", "first_token_s")
    slower = [
        row
        for row in rows
        if row["key"] in kept and any(row.get(name) != getattr(kept[row["key"]], name) for name in times)
    ]
    if slower:
        yield f"{len(slower)} rows do not have the times of the kept answers, such as {_place(slower[0])}"


def _place(row: Mapping[str, Any]) -> str:
    return printable(str(row.get("name") or row.get("where") or row["key"]), 80)


def _judge_again(found: Results, rows: Sequence[Mapping[str, Any]], tests: Path, near: Path | None) -> None:
    """Compare the verdicts with new ones, where the test file is here and unchanged."""
    place = general_set() if found.general else _place_now(tests, near)
    try:
        same = place.is_file() and file_sha256(place) == found.tests
    except OSError:
        same = False
    if not same:
        found.notes.append("the verdicts were not judged again: the test file is not here, or has changed")
        return
    judges = Judges()
    try:
        defaults = dict.fromkeys(one["check"] for row in rows for one in row["verdicts"])
        tasks = {task.key: task for task in read_tests(place, list(defaults), judges)}
        found.chance = sum(
            by_chance(check.settings) for task in tasks.values() for check in task.checks if check.kind == CHOICE
        )
        verdicts = [(row, _verdicts(row, tasks.get(row["key"]), judges)) for row in rows]
    except OperatorError:
        found.notes.append("the verdicts were not judged again: the rows need a check of the operator's")
        return
    finally:
        judges.close()
    missing = len(tasks.keys() - {row["key"] for row in rows})
    if missing:
        found.problems.append(f"{missing} rows of the test file were not asked")
    other = [row for row, passed in verdicts if passed is not None and passed != row["passed"]]
    if other:
        found.problems.append(f"{len(other)} verdicts are not those of their answers, such as {_place(other[0])}")


def _verdicts(row: Mapping[str, Any], task: Task | None, judges: Judges) -> bool | None:
    """Whether the row passes by new verdicts; None where that cannot be said."""
    if task is None:
        return False
    names = {one["check"] for one in row["verdicts"]}
    checks = tuple(check for check in task.checks if check.kind in names)
    if not checks or not {check.kind for check in checks} <= JUDGED_AGAIN or not row.get("tokens"):
        return None
    again = Task(task.key, task.where, task.messages, task.expected, checks, task.tools, task.name)
    return all(one.passed for one in judge(row["answer"], again, judges))


def _compare(found: Results, path: Path, value: Mapping[str, Any], near: Path | None) -> None:
    """Compare with the recorded baseline again."""
    recorded = value.get("baseline")
    if not isinstance(recorded, dict):
        return
    place = _place_now(Path(str(recorded.get("path", ""))), near)
    known = {name: str(recorded.get(name, "")) for name in ("sha256", "model", "name", "tests", "template")}
    found.baseline = {**known, "path": str(place), "problems": []}
    problems: list[str] = found.baseline["problems"]
    try:
        if file_sha256(place) != known["sha256"]:
            problems.append("the baseline's results have changed since they were compared")
            return
        baseline = read_baseline(place)
        rows = read_baseline(path)
        comparison = compare(rows.rows, baseline.rows)
    except (OSError, OperatorError) as error:
        text = error.message if isinstance(error, OperatorError) else str(error)
        problems.append(f"the baseline cannot be compared: {printable(text, 200)}")
        return
    again = asdict(comparison)
    found.baseline["rows"] = again["rows"]
    found.baseline["apart"] = again["only_model"] + again["only_baseline"]
    compared = {name: float(again[name]) for name in COMPARED}
    problems += _differing(compared, {name: value["metrics"].get(name) for name in COMPARED})
    once = [[row for row in one.rows if not repeats(row.key)] for one in (rows, baseline)]
    if all(once):
        comparison = compare(*once)
    found.metrics |= {name: float(value) for name, value in asdict(comparison).items() if name in COMPARED}
    found.metrics |= {
        "won_rows": float(len(comparison.won)),
        "lost_rows": float(len(comparison.lost)),
        "forgetting": -comparison.difference,
        "forgetting_low": -comparison.difference_high,
        "forgetting_high": -comparison.difference_low,
    }


def _place_now(recorded: Path, near: Path | None) -> Path:
    """The present place of a file of a run that may have been moved since."""
    return recorded if near is None else place_now(recorded.parent, near) / recorded.name
