"""Runs as lists show them: one summary each, folded from the journal, or read from `exit.json` when a run has ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cockpit.runs.poll import FoldedRun
from cockpit.runs.state import RunState
from engines.emitter import wall_clock_s
from engines.identity import Identity
from engines.journal import journal_files, read_records
from engines.json_text import read_json
from engines.run_dir import RunDir, RunDirError, lock_is_held
from engines.words import RunStatus, WriterRole

YOUNG_S = 10.0
"""A run directory younger than this whose supervisor is not there yet is being launched."""


@dataclass(frozen=True)
class RunSummary:
    """One line of a list. Times are Unix seconds, losses nats; None is "not known"."""

    id: str
    path: str
    recipe: str
    state: RunStatus
    reason: str = ""
    parent: str | None = None
    stage: str | None = None
    kind: str | None = None
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    progress: float | None = None
    started_t: float | None = None
    ended_t: float | None = None
    last_event_t: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


_cache: dict[str, tuple[tuple[int, int], RunSummary]] = {}
_folds: dict[str, FoldedRun] = {}
"""Runs that have not ended: a journal of thirty hours is not read again for every line that it gains."""


def fold_run(run: RunDir) -> RunState:
    """The state of a run from all of its journal as it is now."""
    state = RunState()
    for path in journal_files(run.root):
        for record in read_records(path):
            state.apply(record.event)
    return state


def is_live(run: RunDir, state: RunState | None = None) -> bool:
    """Whether a supervisor or an engine of the run lives, by identity."""
    if lock_is_held(run.supervisor_lock):
        return True
    for writer in (state or fold_run(run)).writers:
        opened = writer.opened
        if (
            opened
            and opened.role == WriterRole.ENGINE
            and Identity(opened.pid, opened.start_time, opened.boot_id).is_alive()
        ):
            return True
    return False


def state_of(run: RunDir, state: RunState) -> RunStatus:
    """The run's state with the processes looked at: `lost` is a run that says it runs, and nobody does."""
    if state.state.has_ended or is_live(run, state):
        return state.state
    try:
        created_t = float(run.read_run_json().get("created_t") or 0.0)
    except (RunDirError, TypeError, ValueError):
        created_t = 0.0
    young = state.started_t is None and wall_clock_s() - created_t < YOUNG_S
    return RunStatus.QUEUED if young else RunStatus.LOST


def summarize(run: RunDir) -> RunSummary:
    """A run's summary; cheap when its journal has not grown since the last one.

    Raises:
        RunDirError: not a run directory.
    """
    size = _journal_size(run)
    cached = _cache.get(str(run.root))
    if cached is not None and cached[0] == size and cached[1].state.has_ended:
        return cached[1]
    stored = _stored(run, size) if cached is None else None
    summary = stored or _fold_summary(run)
    _cache[str(run.root)] = (size, summary)
    return summary


def _fold_summary(run: RunDir) -> RunSummary:
    try:
        facts = run.read_run_json()
    except RunDirError:
        if not (run.run_json.is_file() and _journal_size(run)[0]):
            raise
        facts = {}  # damaged: the journal still tells what the run was and did
    state, real = _fold_growing(run)
    stage = state.current_stage
    step = stage.last_step if stage else None
    return RunSummary(
        id=run.id,
        path=str(run.root),
        recipe=str(facts.get("recipe") or state.recipe),
        state=real,
        reason=state.reason,
        parent=facts.get("parent"),
        stage=stage.name if stage else None,
        kind=stage.kind if stage else None,
        step=stage.at_step if stage else None,
        total_steps=stage.total_steps if stage else None,
        loss=step.loss if step else None,
        progress=state.progress,
        started_t=state.started_t,
        ended_t=state.ended_t,
        last_event_t=state.last_event_t,
    )


def _fold_growing(run: RunDir) -> tuple[RunState, RunStatus]:
    """The run's fold and its real state, from what its journal gained since the last look."""
    key = str(run.root)
    fold = _folds.pop(key, None) or FoldedRun(run)
    fold.poll()
    real = state_of(run, fold.state)
    if fold.replaced or ((real.has_ended or real == RunStatus.LOST) and fold.torn):
        state = fold_run(run)
        return state, state_of(run, state)
    if not real.has_ended:
        _folds[key] = fold
    return fold.state, real


def _stored(run: RunDir, size: tuple[int, int]) -> RunSummary | None:
    try:
        value = read_json(run.exit_json)
        if value["journal_bytes"] != size[0]:
            return None
        summary = value["summary"]
        return RunSummary(**{**summary, "state": RunStatus(summary["state"]), "id": run.id, "path": str(run.root)})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _journal_size(run: RunDir) -> tuple[int, int]:
    total, newest = 0, 0
    for path in journal_files(run.root):
        try:
            status = path.stat()
        except OSError:
            continue
        total += status.st_size
        newest = max(newest, status.st_mtime_ns)
    return total, newest


def exit_facts(run: RunDir) -> dict[str, Any]:
    """What `exit.json` holds: the end's summary and the size of the journal it was folded from."""
    size = _journal_size(run)
    summary = _fold_summary(run)
    return {
        "format": 1,
        "journal_bytes": size[0],
        "state": summary.state,
        "reason": summary.reason,
        "summary": summary.to_json(),
    }


def list_runs(root: Path, ids: list[str], unreadable: Callable[[str], None] = lambda _why: None) -> list[RunSummary]:
    """Summaries of the given runs; one that cannot be read is left out, and `unreadable` is told why."""
    found = []
    for name in ids:
        try:
            found.append(summarize(RunDir(root / name)))
        except RunDirError as error:
            unreadable(str(error))
    return found
