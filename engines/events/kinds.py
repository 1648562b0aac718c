"""All kinds of events, and which of them the writer drops first."""

from __future__ import annotations

from typing import TypeAlias

from engines.events.attempts import (
    AttemptEnded,
    AttemptStarted,
    DevicesUsed,
    EngineRecovered,
    EngineStalled,
    InputsRecorded,
    Phase,
    ProgramUsed,
    Progress,
    RankEnded,
    RankReport,
    RanksPlaced,
)
from engines.events.machine import MachineSampled
from engines.events.results import ArtifactCommitted, Evaluated, GateChecked, SampledText
from engines.events.runs import (
    CommandEnded,
    ControlApplied,
    RunEnded,
    RunStarted,
    StageFailed,
    StageSkipped,
    StageStarted,
    StageSucceeded,
)
from engines.events.steps import (
    CheckpointCommitted,
    CheckpointRemoved,
    CheckpointStaged,
    GuardTripped,
    Step,
    StepsPlanned,
)
from engines.events.writers import Gap, Warned, WriterOpened

AnyEvent: TypeAlias = (
    WriterOpened
    | RunStarted
    | RunEnded
    | StageStarted
    | StageSucceeded
    | StageFailed
    | StageSkipped
    | AttemptStarted
    | InputsRecorded
    | DevicesUsed
    | RanksPlaced
    | RankReport
    | RankEnded
    | ProgramUsed
    | AttemptEnded
    | Phase
    | Progress
    | StepsPlanned
    | Step
    | Evaluated
    | SampledText
    | CheckpointCommitted
    | CheckpointStaged
    | CheckpointRemoved
    | ArtifactCommitted
    | GuardTripped
    | GateChecked
    | ControlApplied
    | EngineStalled
    | EngineRecovered
    | MachineSampled
    | Warned
    | CommandEnded
    | Gap
)

METRIC_KINDS = frozenset({"step", "progress", "machine_sampled", "phase", "sampled_text", "rank_report"})
"""Kinds that the writer drops first when it cannot write the journal; all others are lifecycle records."""
