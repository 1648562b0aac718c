"""The facts of a run that a supervisor needs: launches, attempts, successes and the end, from the journal.

They are few, even if the journal contains a million steps, so a supervisor stays small over thirty hours. Their order
between writers does not matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cockpit.runs.reader import read_now
from engines.events import (
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    FieldChanged,
    GuardTripped,
    ResumedFrom,
    RunEnded,
    RunStarted,
    StageStarted,
    StageSucceeded,
    WriterOpened,
)
from engines.run_dir import RunDir
from engines.words import EndReason, WriterRole


@dataclass
class AttemptFacts:
    """One attempt, from the records of engine and supervisor, which may arrive in any order."""

    number: int
    launched_t: float = 0.0
    started: AttemptStarted | None = None
    opened: WriterOpened | None = None
    engine_reason: EndReason = EndReason.NOT_GIVEN
    supervisor_reason: EndReason = EndReason.NOT_GIVEN
    engine_detail: str = ""
    supervisor_detail: str = ""
    guard: str = ""
    saved_step: int | None = None

    @property
    def reason(self) -> EndReason:
        """Why it ended: the engine's reason, else the supervisor's; empty while it has not ended."""
        return self.engine_reason or self.supervisor_reason

    @property
    def detail(self) -> str:
        """The detail of the end: the engine's, else the supervisor's."""
        return self.engine_detail or self.supervisor_detail

    @property
    def never_began(self) -> bool:
        """Whether its supervisor died before it started the process; then it does not count as an attempt."""
        return self.started is None and self.reason in {EndReason.NOT_GIVEN, EndReason.NOT_STARTED}


@dataclass
class StageFacts:
    """One stage's attempts and successes."""

    attempts: dict[int, AttemptFacts] = field(default_factory=dict)
    successes: list[tuple[float, StageSucceeded]] = field(default_factory=list)

    def attempt(self, number: int) -> AttemptFacts:
        return self.attempts.setdefault(number, AttemptFacts(number))

    def since(self, t: float) -> list[AttemptFacts]:
        """Attempts that were launched at or after `t` and began, oldest first."""
        return [
            a
            for _, a in sorted(self.attempts.items())
            if max(a.launched_t, a.started.t if a.started else 0) >= t and not a.never_began
        ]

    @property
    def last_success(self) -> StageSucceeded | None:
        return max(self.successes, key=lambda item: item[0])[1] if self.successes else None

    @property
    def saved_step(self) -> int | None:
        """The highest step with a checkpoint in the journal; None without checkpoints."""
        return max((a.saved_step for a in self.attempts.values() if a.saved_step is not None), default=None)

    def lineage(self) -> dict[int, int | None]:
        """Attempts whose checkpoints belong to this training, each with its highest valid step (None: no limit)."""
        allowed: dict[int, int | None] = {}
        cap: int | None = None
        begun = [a.number for a in self.attempts.values() if a.started is not None]
        number = max(begun, default=None)
        while number is not None and number not in allowed:
            allowed[number] = cap
            facts = self.attempts.get(number)
            origin: ResumedFrom | None = facts.started.resumed_from if facts and facts.started else None
            if origin is None:
                break
            cap = origin.step if cap is None else min(cap, origin.step)
            number = origin.attempt
        return allowed


@dataclass
class RunFacts:
    """The facts that scheduling needs. `operator` is the last launch or resume; adoptions do not change it."""

    stages: dict[str, StageFacts] = field(default_factory=dict)
    operator: RunStarted | None = None
    ended: RunEnded | None = None
    latest_start: RunStarted | None = None
    roles: dict[str, WriterRole] = field(default_factory=dict)
    """role of each writer, by its id"""
    changes: dict[int, FieldChanged] = field(default_factory=dict)
    """fields that resumes changed, by number"""
    hosts: dict[str, str] = field(default_factory=dict)
    """name of each writer's machine, by the writer's id"""

    def stage(self, name: str) -> StageFacts:
        return self.stages.setdefault(name, StageFacts())

    @property
    def operator_t(self) -> float:
        return self.operator.t if self.operator else 0.0

    @property
    def host(self) -> str:
        """The machine of the newest supervisor; empty if its first record was lost."""
        return self.hosts.get(self.latest_start.w, "") if self.latest_start else ""

    @property
    def has_ended(self) -> bool:
        return self.ended is not None and (self.latest_start is None or _later(self.ended, self.latest_start))


def read_facts(run: RunDir) -> RunFacts:
    """The facts of a run, from the current content of its journal; of a long journal, from its side index and the rest.

    The journals of ranks above 0 have no facts that scheduling needs.
    """
    facts = RunFacts()
    writers = (w for w in read_now(run).state.writers if w.opened is None or w.opened.rank == 0)
    add_facts(facts, (event for writer in writers for _, event in writer.lifecycle))
    return facts


def _later(a: AnyEvent, b: AnyEvent) -> bool:
    return (a.t, a.w, a.seq) > (b.t, b.w, b.seq)


def add_facts(facts: RunFacts, events: Iterable[AnyEvent]) -> None:
    """Add events to the facts. Their order between writers does not matter."""
    for event in events:
        match event:
            case RunStarted() | RunEnded():
                _take_run(facts, event)
            case StageSucceeded():
                facts.stage(event.stage).successes.append((event.t, event))
            case StageStarted() | AttemptStarted() | GuardTripped():
                _take_attempt(facts.stage(event.stage).attempt(event.attempt), event)
            case AttemptEnded():
                _take_end(facts, event)
            case CheckpointCommitted():
                attempt = facts.stage(event.stage).attempt(event.attempt)
                attempt.saved_step = max(event.step, attempt.saved_step or 0)
            case WriterOpened():
                facts.roles[event.w] = event.role
                facts.hosts[event.w] = event.host
                if event.role == WriterRole.ENGINE and event.stage is not None and event.attempt is not None:
                    facts.stage(event.stage).attempt(event.attempt).opened = event
            case _:
                pass


def _take_run(facts: RunFacts, event: RunStarted | RunEnded) -> None:
    if isinstance(event, RunEnded):
        if facts.ended is None or _later(event, facts.ended):
            facts.ended = event
        return
    facts.changes |= {change.number: change for change in event.changes}
    if event.reason.is_from_operator and (facts.operator is None or _later(event, facts.operator)):
        facts.operator = event
    if facts.latest_start is None or _later(event, facts.latest_start):
        facts.latest_start = event


def _take_attempt(attempt: AttemptFacts, event: StageStarted | AttemptStarted | GuardTripped) -> None:
    match event:
        case StageStarted():
            attempt.launched_t = event.t
        case AttemptStarted():
            attempt.started = event
        case GuardTripped():
            attempt.guard = event.guard


def _take_end(facts: RunFacts, event: AttemptEnded) -> None:
    attempt = facts.stage(event.stage).attempt(event.attempt)
    if facts.roles.get(event.w, WriterRole.UNKNOWN).is_supervisors_record(event.exit):
        attempt.supervisor_reason, attempt.supervisor_detail = event.reason, event.detail
    else:
        attempt.engine_reason, attempt.engine_detail = event.reason, event.detail
