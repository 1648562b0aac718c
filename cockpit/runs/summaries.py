"""The summary of a run for lists: folded from the journal, or read from `exit.json` if the run has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from cockpit.runs.health import Clock, Health, health
from cockpit.runs.reader import RunReader
from cockpit.runs.stage_view import StageView
from cockpit.runs.state import RunState
from engines.journal import journal_files
from engines.json_text import read_json
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import RunStatus

MAX_EXIT_BYTES = 1 << 20


@dataclass(frozen=True)
class RunSummary:
    """One line of a list. Times are in Unix seconds, losses in nats; None is "unknown".

    `health` and `health_sentence` say how the run is doing, `concerns` what else is wrong; `silence_s` is the time
    since the engine's newest progress, `busy_s` the time in which processes of the run worked. `last_event_t` is the
    newest record of any process. `note` is the operator's. `done`, `total` and `unit` are the newest progress of a
    stage that makes no steps: answers of an evaluation, tensors of an export; an empty unit: it reported none.
    """

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
    busy_s: float | None = None
    health: str = ""
    health_sentence: str = ""
    concerns: tuple[str, ...] = ()
    silence_s: float | None = None
    reading: float | None = None
    """the share of the journal that was read, 0 to 1, while nothing is known of the run's state; None: all of it"""
    note: str = ""
    done: float | None = None
    total: float | None = None
    unit: str = ""

    @property
    def health_line(self) -> str:
        """The word, the sentence and the concerns in one line."""
        return Health(self.health, self.health_sentence, tuple(self.concerns)).line

    def took_s(self, now_t: float) -> float | None:
        """Seconds in which the run worked, at a Unix time; None when unknown. Without the time between its end and a
        resume, except for summaries of older versions."""
        if self.busy_s is not None:
            going = self.state.is_live and self.last_event_t is not None
            return self.busy_s + (max(0.0, now_t - self.last_event_t) if going and self.last_event_t else 0.0)
        end = now_t if self.state.is_live else self.ended_t or self.last_event_t
        return None if end is None or self.started_t is None else max(0.0, end - self.started_t)

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "reading"}


@dataclass(frozen=True)
class JournalSize:
    """The size of a run's journals and their newest change; while both stay the same, so does the content."""

    total_bytes: int
    newest_ns: int

    @classmethod
    def of(cls, run: RunDir) -> JournalSize:
        """The present size."""
        total, newest = 0, 0
        for path in journal_files(run.root):
            try:
                status = path.stat()
            except OSError:
                continue
            total += status.st_size
            newest = max(newest, status.st_mtime_ns)
        return cls(total, newest)


def summary_of(reader: RunReader) -> RunSummary:
    """The summary of a run, after its reader has read to the end.

    Raises:
        RunDirError: the directory is not a run directory.
    """
    run = reader.run
    try:
        facts = run.read_run_json()
    except RunDirError:
        if not (run.run_json.is_file() and JournalSize.of(run).total_bytes):
            raise
        facts = {}  # run.json is damaged: the journal has the recipe and the stages too
    real = reader.refresh()
    return _summary(run, facts, reader.state, real, reader.health(real))


def _summary(run: RunDir, facts: Mapping[str, Any], state: RunState, real: RunStatus, found: Health) -> RunSummary:
    stage = state.current_stage
    step = stage.last_step if stage else None
    done, total, unit = _work(stage) if stage and stage.at_step is None else (None, None, "")
    return RunSummary(
        id=run.id,
        path=str(run.root),
        recipe=str(facts.get("recipe") or state.recipe),
        state=real,
        reason=state.reason,
        parent=_text_or_none(facts.get("parent")),
        stage=stage.name if stage else None,
        kind=stage.kind if stage else None,
        step=stage.at_step if stage else None,
        total_steps=stage.total_steps if stage else None,
        loss=step.loss if step else None,
        progress=state.progress,
        started_t=state.started_t,
        ended_t=state.ended_t,
        last_event_t=state.last_event_t,
        busy_s=state.busy_s,
        health=found.word,
        health_sentence=found.sentence,
        concerns=found.concerns,
        silence_s=found.silence_s,
        note=run.read_note(),
        done=done,
        total=total,
        unit=unit,
    )


def _work(stage: StageView) -> tuple[float | None, float | None, str]:
    """What a stage without steps has done, of how much, in which unit; of an ended evaluation, the rows it answered."""
    rows = stage.metrics.get("test_rows", stage.metrics.get("rows")) if stage.kind == "evaluate" else None
    if rows is not None:
        return rows, None, "rows"
    work = stage.progress
    return (None, None, "") if work is None else (work.done, work.total, work.unit)


def _text_or_none(value: object) -> str | None:
    return None if value is None else str(value)


def summary_of_unread(reader: RunReader) -> RunSummary:
    """A run whose journal is still being read: only what its `run.json` and its supervisor's lock say.

    Raises:
        RunDirError: the directory is not a run directory.
    """
    run = reader.run
    facts = run.read_run_json()
    state = RunStatus.RUNNING if lock_is_held(run.supervisor_lock) else RunStatus("reading")
    recipe, parent = str(facts.get("recipe") or ""), _text_or_none(facts.get("parent"))
    return RunSummary(run.id, str(run.root), recipe, state, parent=parent, reading=reader.share_read)


def stored_summary(run: RunDir, size: JournalSize) -> RunSummary | None:
    """The summary in `exit.json`, if it is of a run that has ended and the journals still have the size it was written
    for. Any other state in it is not believed: it would be shown for ever."""
    try:
        value = read_json(run.exit_json, MAX_EXIT_BYTES)
        if value["journal_bytes"] != size.total_bytes:
            return None
        summary = value["summary"]
        here = {"id": run.id, "path": str(run.root), "note": run.read_note()}
        # The types are checked: the file may be another user's.
        found = msgspec.convert({**summary, "concerns": (), **here}, RunSummary)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if found.state.has_ended else None


def summary_of_unreadable(run: RunDir, why: str) -> RunSummary:
    """The row of a run whose files cannot be read; the other runs of the folder are not affected."""
    return RunSummary(run.id, str(run.root), "", RunStatus("unreadable"), reason=why)


def exit_facts(run: RunDir, state: RunState) -> dict[str, Any]:
    """The content of `exit.json`: the summary at the end, and the size of the journals it was folded from.

    Args:
        run: the run; its supervisor writes the file.
        state: the fold of its journal to the end; series are not needed.
    """
    summary = _summary(run, run.read_run_json(), state, state.state, health(state, state.state, Clock.now(0.0)))
    return {
        "format": 1,
        "journal_bytes": JournalSize.of(run).total_bytes,
        "state": summary.state,
        "reason": summary.reason,
        "summary": summary.to_json(),
    }
