"""The facts of a run that a supervisor needs: launches, attempts, successes and the end, from the journal.

They are few, even if the journal contains a million steps, so a supervisor stays small over thirty hours. The order of
their arrival does not matter, and wall-clock times decide nothing: supervisors of a run are numbered (`launch`), and so
are the attempts of a stage. Only journals of older versions, which lack the numbers, are ordered by time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from cockpit.runs.reader import read_now
from engines.events.attempts import AttemptEnded, AttemptStarted, InputsRecorded, ResumedFrom
from engines.events.kinds import AnyEvent
from engines.events.runs import Adjusted, CommandEnded, FieldChanged, RunEnded, RunStarted, StageStarted, StageSucceeded
from engines.events.steps import CheckpointCommitted, GuardTripped
from engines.events.writers import WriterOpened
from engines.run_dir.paths import RunDir
from engines.words import EndReason, MemoryEnd, WriterRole


@dataclass
class AttemptFacts:
    """One attempt, from the records of engine and supervisor, which may arrive in any order."""

    number: int
    launch: int = 0
    launched_t: float = 0.0
    started: AttemptStarted | None = None
    opened: WriterOpened | None = None
    engine_reason: EndReason = EndReason.NOT_GIVEN
    supervisor_reason: EndReason = EndReason.NOT_GIVEN
    engine_detail: str = ""
    supervisor_detail: str = ""
    guard: str = ""
    phase: str = ""
    """the phase in which memory ran out"""
    memory: MemoryEnd = MemoryEnd.UNKNOWN
    adjusted: list[Adjusted] = field(default_factory=list)
    saved_step: int | None = None
    inputs: InputsRecorded | None = None
    announced: bool = False
    has_process: bool = False
    """its folder shows that a process was started, or it has only a folder: no record of it could be written"""

    @property
    def reason(self) -> EndReason:
        """Why it ended: the engine's reason, else the supervisor's; empty while it has not ended."""
        if self.engine_reason.is_unspecific and self.supervisor_reason:
            return self.supervisor_reason
        return self.engine_reason or self.supervisor_reason

    @property
    def detail(self) -> str:
        """The detail of the end: the engine's, else the supervisor's."""
        if self.engine_reason.is_unspecific and self.supervisor_detail:
            return self.supervisor_detail
        return self.engine_detail or self.supervisor_detail

    @property
    def never_began(self) -> bool:
        """Whether its supervisor died before it started the process; then it does not count as an attempt."""
        quiet = self.reason in {EndReason.NOT_GIVEN, EndReason.NOT_STARTED}
        return self.started is None and quiet and not self.has_process

    @property
    def t(self) -> float:
        """When it was launched, Unix seconds, by the later of its records."""
        return max(self.launched_t, self.started.t if self.started else 0.0)


@dataclass
class StageFacts:
    """One stage's attempts and successes."""

    attempts: dict[int, AttemptFacts] = field(default_factory=dict)
    successes: list[StageSucceeded] = field(default_factory=list)

    def attempt(self, number: int) -> AttemptFacts:
        return self.attempts.setdefault(number, AttemptFacts(number))

    @property
    def last_success(self) -> StageSucceeded | None:
        """The success of the highest attempt: its output stands in `out`."""
        return max(self.successes, key=lambda event: event.attempt, default=None)

    @property
    def saved_step(self) -> int | None:
        """The highest step with a checkpoint in the journal; None without checkpoints."""
        return max((a.saved_step for a in self.attempts.values() if a.saved_step is not None), default=None)

    def lineage(self) -> dict[int, int | None]:
        """Attempts whose checkpoints belong to this training, each with its highest valid step (None: no limit).

        The first process records how an attempt began. Of several hosts, those without it have no such record, and no
        checkpoints but copies that the operator put there: all of them count, and the processes compare theirs.
        """
        allowed: dict[int, int | None] = {}
        cap: int | None = None
        begun = [a.number for a in self.attempts.values() if a.started is not None]
        if not begun:
            return dict.fromkeys(self.attempts)
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
    """The facts that scheduling needs."""

    stages: dict[str, StageFacts] = field(default_factory=dict)
    starts: dict[tuple[str, int], RunStarted] = field(default_factory=dict)
    """every supervisor's first record, by writer and number"""
    ended: RunEnded | None = None
    highest_launch: int = 0
    roles: dict[str, WriterRole] = field(default_factory=dict)
    """role of each writer, by its id"""
    changes: dict[int, FieldChanged] = field(default_factory=dict)
    """fields that resumes changed, by number"""
    commands: set[int] = field(default_factory=set)
    """numbers of the operator's starts for whose end a command has been recorded"""
    hosts: dict[str, str] = field(default_factory=dict)
    """name of each writer's machine, by the writer's id"""

    def stage(self, name: str) -> StageFacts:
        return self.stages.setdefault(name, StageFacts())

    @property
    def latest_start(self) -> RunStarted | None:
        return max(self.starts.values(), key=place_of, default=None)

    def operator_starts(self) -> list[RunStarted]:
        """Launch and resumes, oldest first; adoptions are not among them."""
        return sorted((s for s in self.starts.values() if s.reason.is_from_operator), key=place_of)

    @property
    def operator(self) -> RunStarted | None:
        """The last launch or resume; adoptions do not change it."""
        return max((s for s in self.starts.values() if s.reason.is_from_operator), key=place_of, default=None)

    @property
    def host(self) -> str:
        """The machine of the newest supervisor; empty if its first record was lost."""
        return self.hosts.get(self.latest_start.w, "") if self.latest_start else ""

    @property
    def has_ended(self) -> bool:
        latest = self.latest_start
        return self.ended is not None and (latest is None or place_of(self.ended) > place_of(latest))

    @property
    def next_launch(self) -> int:
        """The number of the next supervisor: one above every number that a record of the run has."""
        return max(self.highest_launch, len(self.starts)) + 1

    def attempts_since(self, start: RunStarted | None, name: str) -> list[AttemptFacts]:
        """The stage's attempts that began after this start, oldest first."""
        attempts = [attempt for _, attempt in sorted(self.stage(name).attempts.items()) if not attempt.never_began]
        return [attempt for attempt in attempts if start is None or self._is_after(attempt, start, name)]

    def succeeded_since(self, start: RunStarted, name: str) -> bool:
        """Whether an attempt of the stage succeeded that began after this start."""
        stage = self.stage(name)
        return any(
            self._is_after(stage.attempt(event.attempt), start, name) or (not start.launch and event.t >= start.t)
            for event in stage.successes
        )

    def _is_after(self, attempt: AttemptFacts, start: RunStarted, name: str) -> bool:
        if start.launch:
            return attempt.number > start.attempts.get(name, 0)
        return attempt.launch > 0 or attempt.t >= start.t

    def note_folders(self, run: RunDir, names: Iterable[str]) -> None:
        """Count attempts by their folders too: on a full disk, an attempt may have left nothing else."""
        for name in names:
            for number in run.attempts(name):
                attempt = self.stage(name).attempt(number)
                attempt.has_process = not attempt.announced or run.console_log(name, number).exists()


def read_facts(run: RunDir) -> RunFacts:
    """The facts of a run, from the current content of its journal; of a long journal, from its side index and the rest.

    The journals of ranks above 0 have no facts that scheduling needs.
    """
    facts = RunFacts()
    writers = (w for w in read_now(run).state.writers if w.opened is None or w.opened.rank == 0)
    add_facts(facts, (event for writer in writers for _, event in writer.lifecycle))
    return facts


def place_of(event: RunStarted | RunEnded) -> tuple[int, float, str, int]:
    """The place of a supervisor's record among those of the run: by the number of the supervisor.

    Records without a number are of older versions; they come first, by their time.
    """
    return (event.launch, 0.0, "", event.seq) if event.launch else (0, event.t, event.w, event.seq)


def add_facts(facts: RunFacts, events: Iterable[AnyEvent]) -> None:
    """Add events to the facts. Their order between writers does not matter."""
    for event in events:
        match event:
            case RunStarted() | RunEnded():
                _take_run(facts, event)
            case StageSucceeded():
                facts.stage(event.stage).successes.append(event)
            case StageStarted() | AttemptStarted() | GuardTripped() | InputsRecorded():
                _take_attempt(facts, event)
            case AttemptEnded():
                _take_end(facts, event)
            case CommandEnded():
                facts.commands.add(event.number)
            case CheckpointCommitted():
                attempt = facts.stage(event.stage).attempt(event.attempt)
                attempt.saved_step = max(event.step, attempt.saved_step or 0)
            case WriterOpened():
                facts.roles[event.w] = event.role
                facts.highest_launch = max(facts.highest_launch, event.launch)
                facts.hosts[event.w] = event.host
                if event.role == WriterRole.ENGINE and event.stage is not None and event.attempt is not None:
                    facts.stage(event.stage).attempt(event.attempt).opened = event
            case _:
                pass


def _take_run(facts: RunFacts, event: RunStarted | RunEnded) -> None:
    facts.highest_launch = max(facts.highest_launch, event.launch)
    if isinstance(event, RunStarted):
        facts.starts[event.w, event.seq] = event
        facts.changes |= {change.number: change for change in event.changes}
    elif event.state.has_ended and (facts.ended is None or place_of(event) > place_of(facts.ended)):
        facts.ended = event


def _take_attempt(facts: RunFacts, event: StageStarted | AttemptStarted | GuardTripped | InputsRecorded) -> None:
    attempt = facts.stage(event.stage).attempt(event.attempt)
    match event:
        case StageStarted() | AttemptStarted():
            attempt.announced = True
            attempt.launch = max(attempt.launch, event.launch)
            facts.highest_launch = max(facts.highest_launch, event.launch)
            if isinstance(event, StageStarted):
                attempt.launched_t, attempt.adjusted = event.t, event.adjusted
            else:
                attempt.started = event
        case GuardTripped():
            attempt.guard = event.guard
        case InputsRecorded():
            attempt.inputs = event


def _take_end(facts: RunFacts, event: AttemptEnded) -> None:
    attempt = facts.stage(event.stage).attempt(event.attempt)
    if facts.roles.get(event.w, WriterRole.UNKNOWN).is_supervisors_record(event.exit):
        attempt.supervisor_reason, attempt.supervisor_detail = event.reason, event.detail
        attempt.memory = event.memory
    else:
        attempt.engine_reason, attempt.engine_detail, attempt.phase = event.reason, event.detail, event.phase
