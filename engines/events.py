"""The events of a run's journal: their meaning, their units, and their form on the wire.

A record is one JSON object on one line. It begins `{"v":1,"w":"<writer>","seq":<n>,"t":<Unix s>,"m":<monotonic s>,`;
the event follows: `"k":"<kind>"` and its fields. Names have units: `_s` seconds, `_bytes` bytes. Losses are mean nats
per loss token. JSON cannot write NaN and the infinities, so they are the strings "NaN", "Infinity" and "-Infinity";
null means "not measurable" and is never zero. A field may be missing when it has its default value.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import msgspec

from engines.words import EndReason, GateResult, MemoryEnd, RunStatus, StartReason, WriterRole

MAX_RECORD_BYTES = 65_536
MAX_TIME_S = 253_402_300_799.0
"""The end of the year 9999. Seconds above it are damage, and so large ones have no room for a second more."""
_NONFINITE = {"NaN", "Infinity", "-Infinity"}


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="k", omit_defaults=True):
    """One fact. Reading a record fills in the five header fields; a writer does not set them."""

    v: int = 0
    w: str = ""
    seq: int = -1
    t: float = 0.0
    m: float = 0.0


class WriterOpened(Event, frozen=True, kw_only=True, tag="writer_opened"):
    """The first record of every writer: which process it is."""

    role: WriterRole
    host: str
    boot_id: str
    pid: int
    start_time: int
    stage: str | None = None
    attempt: int | None = None
    rank: int = 0
    launch: int = 0
    """number of the supervisor that the process is, or that started it; see `RunStarted`"""


class FieldChanged(msgspec.Struct, frozen=True, kw_only=True):
    """A field of the recipe that an operator changed at a resume.

    `number` counts the changes of the run from 1. `stage` is empty for a field of the recipe itself. `old` and `new`
    are TOML, or `none`.
    """

    number: int
    stage: str
    field: str
    old: str
    new: str

    @property
    def sentence(self) -> str:
        """`tuned.learning_rate 2e-4 → 1e-4`; not safe to print before `safe_text`."""
        return (
            f"{self.stage}.{self.field} {self.old} → {self.new}"
            if self.stage
            else f"{self.field} {self.old} → {self.new}"
        )


class AcceptedInput(msgspec.Struct, frozen=True, kw_only=True):
    """An input that is not the recorded one, accepted by the operator. `files` names the first differences, `more`
    counts the rest; `sha256` identifies the accepted content."""

    stage: str
    field: str
    name: str
    sha256: str
    files: list[str] = []
    more: int = 0


class Adjusted(msgspec.Struct, frozen=True, kw_only=True):
    """A field that an attempt has another value of than the recipe, because an earlier attempt ran out of memory.

    `old` and `new` are TOML. `attempt` is the attempt that ran out of memory, `because` what it reported.
    """

    field: str
    old: str
    new: str
    attempt: int = 0
    because: str = ""

    @property
    def sentence(self) -> str:
        """`per_device_train_batch_size 8 → 4`; not safe to print before `safe_text`."""
        return f"{self.field} {self.old} → {self.new}"


class RunStarted(Event, frozen=True, kw_only=True, tag="run_started"):
    """A supervisor started on the run: at launch, at an operator's resume, or to adopt it after a supervisor died."""

    run: str
    recipe: str
    reason: StartReason
    stages: list[str]
    kinds: list[str]
    redo: list[str] = []
    """stages that an operator requested to rerun (with the stages that depend on them)"""
    only: list[str] = []
    """stages to run; empty for all"""
    checkpoint: int | None = None
    """step from which an operator's resume continues"""
    checkpoint_stage: str | None = None
    parent: str | None = None
    changes: list[FieldChanged] = []
    """fields that the operator changed at this resume"""
    launch: int = 0
    """number of this supervisor among those of the run, from 1; it orders their records. 0 in older journals"""
    attempts: dict[str, int] = {}
    """the highest attempt number of each stage before this start"""
    accepted_inputs: list[AcceptedInput] = []
    """inputs that had changed, and that the operator accepted for this resume"""


class RunEnded(Event, frozen=True, kw_only=True, tag="run_ended"):
    """The run ended in `state`."""

    state: RunStatus
    reason: str = ""
    launch: int = 0
    """of the supervisor that ended it; see `RunStarted`"""


class StageStarted(Event, frozen=True, kw_only=True, tag="stage_started"):
    stage: str
    kind: str
    attempt: int = 1
    steps: int | None = None
    """optimizer steps planned, when known"""
    launch: int = 0
    """of the supervisor that started it; see `RunStarted`"""
    adjusted: list[Adjusted] = []
    """fields that this attempt has other values of than the recipe, oldest change first"""


class StageSucceeded(Event, frozen=True, kw_only=True, tag="stage_succeeded"):
    """The engine writes it after it has renamed out/ into place."""

    stage: str
    attempt: int
    fingerprint: str
    manifest_sha256: str
    metrics: dict[str, float | None] = {}


class StageFailed(Event, frozen=True, kw_only=True, tag="stage_failed"):
    """The supervisor writes it when no attempt is left, or when a gate refused the result (`refused`)."""

    stage: str
    reason: str
    refused: bool = False


class StageSkipped(Event, frozen=True, kw_only=True, tag="stage_skipped"):
    """The stage is already done (its fingerprint and manifest match) or was not requested."""

    stage: str
    reason: str


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


class StepsPlanned(Event, frozen=True, kw_only=True, tag="steps_planned"):
    """The number of optimizer steps that the attempt will have; written when the engine knows it."""

    stage: str
    attempt: int
    total_steps: int


class Step(Event, frozen=True, kw_only=True, tag="step"):
    """One optimizer step (or, when a guard tripped, the step that the guard refused).

    Attributes:
        loss: mean nats per loss token over the accumulation window and all ranks.
        learning_rate: the learning rate of this step.
        grad_norm: L2 norm before clipping.
        tokens: real (unpadded) tokens of all ranks, cumulative over the stage's lineage.
        loss_tokens: tokens that the loss counts, cumulative.
        step_s: duration of the step.
        data_wait_s: the part of `step_s` spent waiting for data.
        metrics: what the training's method measured besides, by the names of the method's own library: for preferences
            `rewards/margins`, `logps/chosen`, `kl` and others. Each name is a series of the stage.
    """

    stage: str
    attempt: int
    step: int
    epoch: float
    loss: float | None
    learning_rate: float | None
    grad_norm: float | None
    tokens: int
    loss_tokens: int
    step_s: float
    data_wait_s: float | None = None
    metrics: dict[str, float | None] = {}


class Evaluated(Event, frozen=True, kw_only=True, tag="evaluated"):
    """Loss and perplexity on held-out data, weighted by tokens. `protocol` names the method.

    `metrics` are what the method measured besides; during a training, with the names that its steps have.
    """

    stage: str
    attempt: int
    step: int | None
    loss: float | None
    perplexity: float | None
    tokens: int
    protocol: str
    metrics: dict[str, float | None] = {}


class SampledText(Event, frozen=True, kw_only=True, tag="sampled_text"):
    """Greedy text of the model: hostile until rendered safe. `expected` is the held-out answer, if there is one."""

    stage: str
    attempt: int
    step: int | None
    prompt: str
    text: str
    expected: str | None = None


class CheckpointCommitted(Event, frozen=True, kw_only=True, tag="checkpoint_committed"):
    """The engine renamed a checkpoint into place. `path` is relative to the run directory; `sha256` is that of its
    manifest. With `evaluated`, it is the attempt's checkpoint of this step that was committed before its evaluation:
    the same files, with the loss in a new manifest. `rng_sha256` is the SHA-256 of all random states at the step:
    Python's, numpy's, and torch's of each device. `write_s`: seconds from its first file to its final name; `stall_s`:
    those of them, and of the copy before, for which the training waited."""

    stage: str
    attempt: int
    step: int
    path: str
    sha256: str
    healthy: bool
    best: bool = False
    bytes: int = 0
    loss: float | None = None
    evaluated: bool = False
    rng_sha256: str = ""
    stall_s: float | None = None
    write_s: float | None = None


class CheckpointStaged(Event, frozen=True, kw_only=True, tag="checkpoint_staged"):
    """The engine has a copy of a checkpoint in memory and writes it while the training continues; it is no checkpoint
    before its `checkpoint_committed`. The training waited `stall_s` for the copy, `waited_s` of it for the checkpoint
    before. `bytes` are those of the copy."""

    stage: str
    attempt: int
    step: int
    bytes: int
    stall_s: float
    waited_s: float = 0.0


class CheckpointRemoved(Event, frozen=True, kw_only=True, tag="checkpoint_removed"):
    stage: str
    attempt: int
    step: int
    path: str
    sha256: str
    healthy: bool = True
    best: bool = False


class ArtifactCommitted(Event, frozen=True, kw_only=True, tag="artifact_committed"):
    """A file or folder for use. `path` is relative to the run directory; `parents` are the SHA-256 of its sources."""

    stage: str
    attempt: int
    name: str
    kind: str
    path: str
    bytes: int
    sha256: str
    parents: list[str] = []


class GuardTripped(Event, frozen=True, kw_only=True, tag="guard_tripped"):
    """The engine refused to apply a step. `value` is the measured value, `limit` the allowed one (null: any finite
    number)."""

    stage: str
    attempt: int
    guard: str
    step: int
    value: float | None
    limit: float | None


class GateChecked(Event, frozen=True, kw_only=True, tag="gate_checked"):
    """The engine compared a gate of its stage with the measured value."""

    stage: str
    metric: str
    op: str
    limit: float
    value: float | None
    result: GateResult
    stretch: float | None = None
    stretch_met: bool | None = None


class ControlApplied(Event, frozen=True, kw_only=True, tag="control_applied"):
    """A request from `control/` was answered. `by` is who requested it, or the supervisor when that answered; `effect`
    is the result, `number` the request's number (0: a signal, or a record of an older version)."""

    request: str
    by: str
    effect: str
    step: int | None = None
    stage: str | None = None
    number: int = 0


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


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """One accelerator; null means "not reported". On a unified-memory machine its memory is the machine's.

    `id` is NVML's number. `uuid` and `pci` identify the device, as in `UsedDevice`; empty in older journals.
    `other_processes` counts the processes that compute on it beside the engine's; null where the engine's own are not
    seen on it, because the engine computes elsewhere or the driver numbers processes differently (in a container).
    """

    id: int
    name: str
    util_percent: float | None = None
    memory_used_bytes: int | None = None
    memory_total_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    uuid: str = ""
    pci: str = ""
    other_processes: int | None = None


class MachineSampled(Event, frozen=True, kw_only=True, tag="machine_sampled"):
    """A reading of the machine. `cpu_percent` and `engine_cpu_percent` (the engine's process tree) are shares of all
    `cores`; null means "not measurable"."""

    host: str
    cpu_percent: float | None
    ram_total_bytes: int | None
    ram_available_bytes: int | None
    engine_rss_bytes: int | None
    unified: bool
    devices: list[Device]
    stage: str | None = None
    engine_cpu_percent: float | None = None
    cores: int | None = None


class Warned(Event, frozen=True, kw_only=True, tag="warned"):
    """A warning for the operator; the text may quote data and is hostile until rendered safe."""

    message: str
    stage: str | None = None
    attempt: int | None = None


class Gap(Event, frozen=True, kw_only=True, tag="gap"):
    """This writer could not write `lost` records (a full disk, for example); training continued."""

    lost: int
    reason: str = ""


class CommandEnded(Event, frozen=True, kw_only=True, tag="command_ended"):
    """A command of the recipe for the end of the run (`on_success`, `on_failure`) has ended, or was not started.

    `number` is that of the operator's launch or resume whose end it was started for: it is started once for each.
    `exit` is its status, negative for a signal; None if it is not known. `output` is the end of what it printed.
    """

    command: str
    number: int
    argv: list[str] = []
    exit: int | None = None
    detail: str = ""
    took_s: float | None = None
    output: str = ""


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

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyEvent)
_raw_decoder = msgspec.json.Decoder()
_KINDS = frozenset(t.__struct_config__.tag for t in AnyEvent.__args__)


class UnreadableRecordError(ValueError):
    """A line that is not a record (torn, or not JSON, or with fields of the wrong type)."""


class UnknownKindError(UnreadableRecordError):
    """A well-formed record of an unknown kind: readers skip and count it."""


def kind_of(event: Event) -> str:
    """The event's kind on the wire."""
    return str(type(event).__struct_config__.tag)


def encode_record(event: Event, *, writer: str, seq: int, t: float, m: float) -> bytes:
    """One complete line, newline included. `t` is Unix seconds, `m` monotonic seconds."""
    try:
        body = _encoder.encode(event)
    except UnicodeEncodeError:
        body = _encoder.encode(_name_nonfinite(_without_surrogates(msgspec.to_builtins(event))))
    if b"null" in body:  # None and non-finite floats become null: distinguish them on this rare path
        body = _encoder.encode(_name_nonfinite(_without_surrogates(msgspec.to_builtins(event))))
    head = b'{"v":1,"w":"%s","seq":%d,"t":%.6f,"m":%.6f,' % (writer.encode(), seq, t, m)
    return head + body[1:] + b"\n"


def decode_record(line: bytes) -> AnyEvent:
    """The event of one line.

    Raises:
        UnknownKindError: the record has an unknown kind.
        UnreadableRecordError: the line is not a record.
    """
    try:
        event = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError):
        event = _decode_slowly(line)
    if event.seq < 0 or not event.w:
        raise UnreadableRecordError("the record has no writer or no sequence number")
    if not (abs(event.t) <= MAX_TIME_S and abs(event.m) <= MAX_TIME_S):
        raise UnreadableRecordError("the record has a time that no clock shows")
    return event


def _decode_slowly(line: bytes) -> AnyEvent:
    try:
        raw = _raw_decoder.decode(line)
        if isinstance(raw, dict) and raw.get("k") not in _KINDS and "seq" in raw and "w" in raw:
            raise UnknownKindError(f"kind {raw.get('k')!r}")
        floats = _FLOATS.get(str(raw.get("k"))) if isinstance(raw, dict) else None
        return msgspec.convert(_number_nonfinite(raw, floats), AnyEvent)
    except UnknownKindError:
        raise
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError, ValueError, TypeError) as error:
        raise UnreadableRecordError(str(error)) from error


def _name_nonfinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, dict):
        return {key: _name_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_name_nonfinite(item) for item in value]
    return value


def _float_fields(struct: type[msgspec.Struct]) -> dict[str, Any]:
    """Fields that may contain a float, for `_number_nonfinite`: in any other field the word "NaN" is text."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        kind = _float_kind(msgspec.inspect.type_info(field.type))
        if kind is not None:
            found[field.encode_name] = kind
    return found


def _float_kind(info: Any) -> Any:
    """True for a float, a dict for a struct, ("dict" | "list", kind) for a container of them; None where no float is
    allowed."""
    match info:
        case msgspec.inspect.FloatType():
            return True
        case msgspec.inspect.UnionType():
            return next((kind for kind in map(_float_kind, info.types) if kind is not None), None)
        case msgspec.inspect.StructType():
            return _float_fields(info.cls) or None
        case msgspec.inspect.DictType():
            inner = _float_kind(info.value_type)
            return None if inner is None else ("dict", inner)
        case msgspec.inspect.ListType():
            inner = _float_kind(info.item_type)
            return None if inner is None else ("list", inner)
        case _:
            return None


_FLOATS = {str(struct.__struct_config__.tag): _float_fields(struct) for struct in AnyEvent.__args__}


def _number_nonfinite(value: Any, kind: Any) -> Any:
    """Turn the words for non-finite numbers into numbers, where the event has numbers."""
    if kind is True:
        return float(value) if isinstance(value, str) and value in _NONFINITE else value
    if isinstance(kind, dict) and isinstance(value, dict):
        return {key: _number_nonfinite(item, kind[key]) if key in kind else item for key, item in value.items()}
    if isinstance(kind, tuple) and kind[0] == "dict" and isinstance(value, dict):
        return {key: _number_nonfinite(item, kind[1]) for key, item in value.items()}
    if isinstance(kind, tuple) and kind[0] == "list" and isinstance(value, list):
        return [_number_nonfinite(item, kind[1]) for item in value]
    return value


def _without_surrogates(value: Any) -> Any:
    r"""Undecodable bytes in file names become lone surrogates, which JSON text cannot contain: write `\udcff`."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_surrogates(item) for item in value]
    return value
