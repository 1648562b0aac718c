"""Events of an attempt: its inputs, devices and processes, its progress where it has no steps, and its end."""

from __future__ import annotations

import msgspec

from engines.events.event import Event
from engines.words import EndReason, MemoryEnd


class ResumedFrom(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoint that an attempt resumes from; `sha256` is the SHA-256 of its manifest."""

    attempt: int
    step: int
    sha256: str


class AttemptStarted(Event, frozen=True, kw_only=True, tag="attempt_started"):
    """The engine writes it: one process begins one attempt."""

    stage: str
    kind: str
    attempt: int
    resumed_from: ResumedFrom | None = None
    total_steps: int | None = None
    learning_rate_scale: float = 1.0
    pid: int = 0
    launch: int = 0
    """of the supervisor that started it; see `RunStarted`"""


class RecordedInput(msgspec.Struct, frozen=True, kw_only=True):
    """One input as the attempt read it. `method` says what `sha256` is of: the contents of the files, a manifest, or
    nothing (`name`: a model of a hub). `files` and `bytes` are totals; the attempt's `inputs.json` lists the files.
    `revision` is the commit of a model of a hub."""

    field: str
    name: str
    method: str
    sha256: str = ""
    files: int = 0
    bytes: int = 0
    revision: str = ""


class InputsRecorded(Event, frozen=True, kw_only=True, tag="inputs_recorded"):
    """The engine read its inputs and recorded what they contain, before it used them. `fingerprint` is of the stage's
    fields and these inputs."""

    stage: str
    attempt: int
    inputs: list[RecordedInput]
    fingerprint: str = ""


class UsedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """An accelerator as its engine knows it: torch's number and name, and what identifies it on the machine.

    `uuid` has NVML's form (`GPU-…`); `pci` is the bus address as `domain:bus:device`, in hexadecimal digits. Either is
    empty where torch does not know it. `capability` is the compute capability (`9.0`).
    """

    number: int
    name: str
    uuid: str = ""
    pci: str = ""
    capability: str = ""


class DevicesUsed(Event, frozen=True, kw_only=True, tag="devices_used"):
    """The accelerators that the engine computes on; written once they are known, and not on the CPU. `visible` is the
    engine's CUDA_VISIBLE_DEVICES, null where it is not set."""

    stage: str
    attempt: int
    devices: list[UsedDevice]
    visible: str | None = None


class ProgramUsed(Event, frozen=True, kw_only=True, tag="program_used"):
    """A program besides the engine that measures for the attempt; written before it is started.

    Attributes:
        program: its name.
        version: its own statement.
        argv: its command.
    """

    stage: str
    attempt: int
    program: str
    version: str
    argv: list[str]


class Phase(Event, frozen=True, kw_only=True, tag="phase"):
    """A named part of an attempt that has no steps: importing, loading, tokenizing, first step, saving, …"""

    stage: str
    attempt: int
    name: str


class Progress(Event, frozen=True, kw_only=True, tag="progress"):
    """Work done and total work, in one unit (files, tokens, tensors, positions, …)."""

    stage: str
    attempt: int
    done: float
    total: float | None
    unit: str


class EngineStalled(Event, frozen=True, kw_only=True, tag="engine_stalled"):
    """The supervisor saw no progress of an engine for much longer than usual.

    Attributes:
        silence_s: seconds since the engine's newest record.
        usual_step_s: the usual time between two records of progress; null when none is known.
        last_progress: the engine's newest record, for people ("step 412", "loading").
        process_state: the letter of /proc/PID/stat ("T": stopped by a signal); empty when unknown.
        cpu_s: CPU seconds that the engine used in the last seconds of the silence; null when unknown.
        stacks: the engine was asked to write the stacks of its threads into console.log.
        stopped_ranks: of several processes, those that a signal has stopped; the others wait for them.
    """

    stage: str
    attempt: int
    silence_s: float
    usual_step_s: float | None = None
    last_progress: str = ""
    process_state: str = ""
    cpu_s: float | None = None
    stacks: bool = False
    stopped_ranks: list[int] = []


class EngineRecovered(Event, frozen=True, kw_only=True, tag="engine_recovered"):
    """An engine that had stalled makes progress again, after `silence_s` seconds without it."""

    stage: str
    attempt: int
    silence_s: float


class AttemptEnded(Event, frozen=True, kw_only=True, tag="attempt_ended"):
    """The engine writes it with its own reason, the supervisor with the exit status; the reader combines both.

    `exit` is the exit status, negative for a signal, null when it is unknown: a supervisor is not the parent of an
    engine that it adopted.
    """

    stage: str
    attempt: int
    reason: EndReason
    exit: int | None = None
    detail: str = ""
    step: int | None = None
    cpu_s: float | None = None
    """CPU seconds of the process and of those that it waited for; null when they are unknown"""
    phase: str = ""
    """the phase in which memory ran out; empty for any other end"""
    memory: MemoryEnd = MemoryEnd.UNKNOWN
    """whether the process was killed because memory ran out"""


class RanksPlaced(Event, frozen=True, kw_only=True, tag="ranks_placed"):
    """The processes of an attempt compute together: what they really do, by the modules and the devices in use.

    `strategy` is how they share the training, `devices` what each computes on, by rank.
    """

    stage: str
    attempt: int
    world_size: int
    strategy: str
    devices: list[str] = []
    host: str = ""
    """of rank 0"""
    run: str = ""
    """of rank 0: on its host, it has the shared facts and the results"""


class RankReport(Event, frozen=True, kw_only=True, tag="rank_report"):
    """A process above rank 0 lives: its newest step and phase, at most once a second. Shared facts are rank 0's."""

    stage: str
    attempt: int
    rank: int
    step: int | None = None
    phase: str = ""


class RankEnded(Event, frozen=True, kw_only=True, tag="rank_ended"):
    """A process above rank 0 ended, by its own record."""

    stage: str
    attempt: int
    rank: int
    reason: EndReason
    detail: str = ""
