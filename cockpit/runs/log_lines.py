"""One line of text for each event, for the log pane and for headless output.

The text quotes data; it is not safe to print before `safe_text`.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

from cockpit.text import formatting as fmt
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
from engines.events.event import kind_of
from engines.events.kinds import AnyEvent
from engines.events.machine import MachineSampled
from engines.events.results import ArtifactCommitted, Evaluated, GateChecked, SampledText
from engines.events.runs import (
    AcceptedInput,
    Adjusted,
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
from engines.words import IGNORED, EndReason, GateResult, RunStatus, StageStatus, StartReason

Level: TypeAlias = Literal["quiet", "info", "good", "warn", "error"]


HEADLINES = {"rewards/margins": "margin", "rewards/accuracies": "accuracy", "kl": "KL"}
"""Metrics of methods that lines show, and the words for them."""


class LogLine(NamedTuple):
    """Time (Unix seconds), severity and text."""

    t: float
    level: Level
    text: str


def line_of(event: AnyEvent) -> LogLine:
    """The line for an event."""
    level, text = _words(event)
    return LogLine(event.t, level, text)


def _words(event: AnyEvent) -> tuple[Level, str]:
    match event:
        case RunStarted() | RunEnded() | WriterOpened():
            return _of_run(event)
        case StageStarted() | StageSucceeded() | StageFailed() | StageSkipped():
            return _of_stage(event)
        case (
            AttemptStarted()
            | AttemptEnded()
            | InputsRecorded()
            | DevicesUsed()
            | ProgramUsed()
            | Phase()
            | StepsPlanned()
            | Progress()
        ):
            return _of_attempt(event)
        case CheckpointCommitted() | CheckpointStaged() | CheckpointRemoved() | ArtifactCommitted():
            return _of_product(event)
        case Step() | Evaluated() | GuardTripped() | GateChecked():
            return _of_numbers(event)
        case SampledText():
            return "info", f"sample {event.prompt!r} → {event.text!r}"
        case ControlApplied():
            level: Level = "warn" if event.effect.startswith(IGNORED) else "info"
            return level, f"{event.request} by {event.by}{_at(event.step)}: {event.effect}"
        case Warned() | Gap() | EngineStalled() | EngineRecovered() | CommandEnded():
            return _of_trouble(event)
        case RanksPlaced() | RankReport() | RankEnded() | MachineSampled():
            return _of_ranks(event)


def _of_ranks(event: RanksPlaced | RankReport | RankEnded | MachineSampled) -> tuple[Level, str]:
    if isinstance(event, MachineSampled):
        return "quiet", kind_of(event)
    where = f"{event.stage} attempt {event.attempt}"
    match event:
        case RanksPlaced():
            on = ", ".join(dict.fromkeys(event.devices))
            return "info", f"{where}: {event.world_size} processes, {event.strategy}{f' on {on}' if on else ''}"
        case RankReport():
            return "quiet", f"{where}: rank {event.rank} {event.phase}{_at(event.step)}"
        case RankEnded():
            quiet = event.reason in {EndReason.SUCCEEDED, EndReason.STOPPED, EndReason.RANK_LOST}
            detail = f": {event.detail}" if event.detail else ""
            return "quiet" if quiet else "error", f"{where}: rank {event.rank} ended ({event.reason}){detail}"


def _of_trouble(event: Warned | Gap | EngineStalled | EngineRecovered | CommandEnded) -> tuple[Level, str]:
    match event:
        case CommandEnded():
            return _of_command(event)
        case EngineStalled():
            return "error", f"{event.stage} attempt {event.attempt}: {_stall(event)}"
        case EngineRecovered():
            return (
                "good",
                f"{event.stage} attempt {event.attempt}: progress again after {fmt.duration(event.silence_s)}",
            )
        case Warned():
            return "warn", f"{event.stage + ': ' if event.stage else ''}{event.message}"
        case Gap():
            return (
                "error",
                f"{fmt.counted(event.lost, 'record')} could not be written: {event.reason or 'unknown reason'}",
            )


def _of_command(event: CommandEnded) -> tuple[Level, str]:
    took = "" if event.took_s is None else f" after {fmt.duration(event.took_s)}"
    how = event.detail or f"exited with status {event.exit}"
    output = f": {event.output}" if event.output else ""
    return "info" if event.exit == 0 else "warn", f"{event.command}: {how}{took}{output}"


def stopped_words(ranks: Sequence[int]) -> str:
    """That the engine's process is stopped, or which of several; the others wait for them."""
    if not ranks:
        return "the process is stopped (SIGSTOP)"
    names = ", ".join(f"rank {rank}" for rank in ranks)
    return f"{names} {'is' if len(ranks) == 1 else 'are'} stopped (SIGSTOP)"


def _stall(event: EngineStalled) -> str:
    after = f" after {event.last_progress}" if event.last_progress else ""
    usual = f", usually {fmt.duration(event.usual_step_s)}" if event.usual_step_s is not None else ""
    how = f"; {stopped_words(event.stopped_ranks)}" if event.process_state == "T" else ""
    stacks = "; its stacks are in console.log" if event.stacks else ""
    return f"no progress for {fmt.duration(event.silence_s)}{after}{usual}{how}{stacks}"


def _of_run(event: RunStarted | RunEnded | WriterOpened) -> tuple[Level, str]:
    match event:
        case RunStarted():
            back = f" from step {event.checkpoint}" if event.checkpoint is not None else ""
            changes = f" with {', '.join(change.sentence for change in event.changes)}" if event.changes else ""
            accepted = [f"{item.stage}.{item.field}: {accepted_words(item)}" for item in event.accepted_inputs]
            inputs = f"; changed inputs accepted: {'; '.join(accepted)}" if accepted else ""
            level: Level = "warn" if changes or inputs else "info"
            return level, f"run {event.run} {_PAST.get(event.reason, event.reason)}{back}{changes}{inputs}"
        case RunEnded():
            return _RUN_LEVELS.get(
                event.state, "error"
            ), f"run {event.state}{': ' + event.reason if event.reason else ''}"
        case _:
            return "quiet", f"{event.role} process {event.pid} on {event.host}"


def accepted_words(item: AcceptedInput) -> str:
    """The differences of an input that the operator accepted."""
    return ", ".join([*item.files, *([f"{item.more} more"] if item.more else [])])


def devices_words(event: DevicesUsed) -> str:
    """The accelerators of an engine, each with its name and UUID: `NVIDIA H100 (GPU-…)`."""
    cards = [f"{card.name} ({card.uuid or card.pci or f'number {card.number}'})" for card in event.devices]
    visible = "" if event.visible is None else f", of CUDA_VISIBLE_DEVICES={event.visible}"
    return ", ".join(cards) + visible


def _inputs(event: InputsRecorded) -> str:
    """The files and bytes of each input outside the run."""
    return ", ".join(
        f"{item.field} ({fmt.counted(item.files, 'file')}, {fmt.size(item.bytes)}, SHA-256 {item.sha256[:12]})"
        for item in event.inputs
        if item.files or item.method == "content"
    )


_RUN_LEVELS: dict[RunStatus, Level] = {RunStatus.SUCCEEDED: "good", RunStatus.STOPPED: "warn"}
_ATTEMPT_LEVELS: dict[EndReason, Level] = {
    EndReason.SUCCEEDED: "quiet",
    EndReason.STOPPED: "warn",
    EndReason.RANK_LOST: "warn",
}
_PAST = {
    StartReason.LAUNCH: "launched",
    StartReason.RESUME: "resumed",
    StartReason.ADOPT: "adopted, as its supervisor had ended",
}


def _of_stage(event: StageStarted | StageSucceeded | StageFailed | StageSkipped) -> tuple[Level, str]:
    match event:
        case StageStarted():
            attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
            changed = f": {adjusted_words(event.adjusted)}" if event.adjusted else ""
            return ("warn" if changed else "info"), f"stage {event.stage} started ({event.kind}{attempt}){changed}"
        case StageSucceeded():
            formats = {"loss": fmt.number, "perplexity": fmt.number, "steps": fmt.whole}
            shown = [f"{name} {formats[name](value)}" for name, value in event.metrics.items() if name in formats]
            return "good", f"stage {event.stage} succeeded{': ' + ', '.join(shown) if shown else ''}"
        case StageFailed():
            state = StageStatus.REFUSED if event.refused else StageStatus.FAILED
            return "error", f"stage {event.stage} {state}: {event.reason}"
        case _:
            return "quiet", f"stage {event.stage} skipped: {event.reason}"


def _of_attempt(
    event: AttemptStarted | AttemptEnded | InputsRecorded | DevicesUsed | ProgramUsed | Phase | StepsPlanned | Progress,
) -> tuple[Level, str]:
    name = f"{event.stage} attempt {event.attempt}"
    match event:
        case AttemptStarted():
            origin = event.resumed_from
            back = f" from checkpoint {origin.step} of attempt {origin.attempt}" if origin else ""
            scaled = (
                f", learning rate x{fmt.exact(event.learning_rate_scale)}" if event.learning_rate_scale != 1 else ""
            )
            return "info", f"{name} started{back}{scaled}"
        case AttemptEnded():
            if event.exit is not None and event.reason.is_from_engine and not event.detail:
                return "quiet", f"{name}: the process exited with status {event.exit}"
            level = _ATTEMPT_LEVELS.get(event.reason, "error")
            status = f", exit status {event.exit}" if event.exit is not None else ""
            return (
                level,
                f"{name} ended: {event.reason}{status}{_at(event.step)}{': ' + event.detail if event.detail else ''}",
            )
        case InputsRecorded() | DevicesUsed() | ProgramUsed():
            return _of_surroundings(event)
        case Phase():
            return "quiet", f"{event.stage}: {event.name}"
        case StepsPlanned():
            return "quiet", f"{event.stage}: {event.total_steps} steps planned"
        case _:
            return "quiet", f"{event.stage}: {fmt.count(event.done)} of {fmt.count(event.total)} {event.unit}"


def _of_surroundings(event: InputsRecorded | DevicesUsed | ProgramUsed) -> tuple[Level, str]:
    """What an attempt reads, where it computes, and what it starts."""
    name = f"{event.stage} attempt {event.attempt}"
    if isinstance(event, ProgramUsed):
        return "info", f"{name} starts {event.program} {event.version}: {shlex.join(event.argv)}"
    if isinstance(event, InputsRecorded):
        return "quiet", f"{name} reads {_inputs(event)}"
    return "info", f"{name} computes on {devices_words(event)}"


def _of_product(
    event: CheckpointCommitted | CheckpointStaged | CheckpointRemoved | ArtifactCommitted,
) -> tuple[Level, str]:
    match event:
        case CheckpointStaged():
            waited = f", {fmt.duration(event.waited_s)} of it for the checkpoint before" if event.waited_s >= 1 else ""
            text = f"checkpoint {event.step} of {event.stage} is being written; training waited"
            return "quiet", f"{text} {fmt.duration(event.stall_s)} for its copy{waited}"
        case CheckpointCommitted():
            notes = [f"loss {fmt.loss(event.loss)}"] if event.loss is not None else []
            notes += ["★ best"] if event.best else []
            notes += [] if event.healthy else ["NOT healthy"]
            text = f"checkpoint {event.step} of {event.stage} {'evaluated' if event.evaluated else 'saved'}"
            return ("good" if event.healthy else "warn"), text + (f" ({', '.join(notes)})" if notes else "")
        case CheckpointRemoved():
            return "quiet", f"checkpoint {event.step} of {event.stage} removed by rotation"
        case _:
            return "good", f"{event.kind} {event.name} ready ({fmt.size(event.bytes)}): {event.path}"


def _of_numbers(event: Step | Evaluated | GuardTripped | GateChecked) -> tuple[Level, str]:
    match event:
        case Step():
            norm = f" grad_norm {fmt.number(event.grad_norm)}" if event.grad_norm is not None else ""
            text = (
                f"step {event.step} loss {fmt.loss(event.loss)}{norm} learning_rate "
                f"{fmt.learning_rate(event.learning_rate)}"
            )
            return "info", text
        case Evaluated():
            return "info", _evaluation(event)
        case GuardTripped():
            limit = f" > {fmt.exact(event.limit)}" if event.limit is not None else ""
            value = "" if event.value is None else f": {fmt.number(event.value)}{limit}"
            return "error", f"guard {event.guard} tripped at step {event.step}{value}"
        case _:
            level: Level = "good" if event.result == GateResult.PASS else "error"
            seen = "not measured" if event.value is None else fmt.number(event.value)
            return level, f"gate {event.metric} {event.op} {fmt.exact(event.limit)}: {event.result} ({seen})"


def headlines(metrics: Mapping[str, float | None], between: str = ", ") -> str:
    """What a method is judged by, behind the loss; empty for a method without it."""
    return "".join(
        f"{between}{word} {fmt.number(metrics[name])}" for name, word in HEADLINES.items() if name in metrics
    )


def adjusted_words(adjusted: Sequence[Adjusted]) -> str:
    """`per_device_train_batch_size 8 → 4, gradient_accumulation_steps 1 → 2, as attempt 1 ran out of memory`."""
    found: dict[int, list[str]] = {}
    for change in adjusted:
        found.setdefault(change.attempt, []).append(change.sentence)
    return "; ".join(
        f"{', '.join(changes)}, as attempt {number} ran out of memory" for number, changes in found.items()
    )


def _at(step: int | None) -> str:
    return f" at step {step}" if step is not None else ""


__all__ = ["Level", "LogLine", "accepted_words", "adjusted_words", "devices_words", "headlines", "line_of"]


def _evaluation(event: Evaluated) -> str:
    """The line of an evaluation; for a file that was compared with its model, its distance from the model."""
    perplexity = "" if event.perplexity is None else f", perplexity {fmt.number(event.perplexity)}"
    figures = f"loss {fmt.loss(event.loss)}{perplexity}{headlines(event.metrics)}"
    of, _, file_type = event.protocol.partition(":")
    if of != "parity":
        return f"evaluated{_at(event.step)}: {figures}"
    top1 = event.metrics.get("top1")
    name, plus, adapter = file_type.partition("+")
    over = f"{name.upper()} + {adapter}" if plus else name.upper()
    distance = f"mean KL {fmt.number(event.metrics.get('mean_kl'))}, top-1 {fmt.percent(top1, 2)}"
    return f"compared {over}: {distance}{_to_trained(event.metrics)}, {figures}"


def _to_trained(metrics: Mapping[str, float | None]) -> str:
    """How far a file is from what was trained over a 4-bit base; empty where that is the exported model."""
    kl = metrics.get("kl_to_trained")
    return "" if kl is None or kl == metrics.get("mean_kl") else f", mean KL to what was trained {fmt.number(kl)}"
