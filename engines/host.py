"""What every stage's process shares: its context, its journal writer, requests, signals, and the commit of its output.

`python -m engines.run STAGE_JSON` and `python -m exporters.run STAGE_JSON` call `host_main` with their stage functions.
The life of an attempt: lock, open the journal, `attempt_started`, the stage's own work, `out/` made durable and renamed,
gates, `stage_succeeded`, `attempt_ended`. Whatever happens is in the journal before the process ends.
"""

from __future__ import annotations

import errno
import faulthandler
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NoReturn, Protocol

from engines import control
from engines.custody import Parent, custody_of
from engines.emitter import EventWriter
from engines.events import (
    ArtifactCommitted,
    AttemptEnded,
    AttemptStarted,
    ControlApplied,
    Event,
    GateChecked,
    Phase,
    Progress,
    ResumedFrom,
    StageSucceeded,
    Warned,
)
from engines.json_text import read_json
from engines.manifest import commit_folder, read_manifest, write_manifest
from engines.run_dir import Lock, RunDir, checkpoint_name, engine_lock_of
from engines.words import IGNORED, EndReason, ExitCode, GateResult, Verb, WriterRole
from recipes import quantities
from recipes.problems import OperatorError
from recipes.stages.fields import StageFields
from recipes.stages.registry import STAGE_TYPES, row_of

PROGRESS_INTERVAL_S = 0.2
STAGE_FORMAT = 1


class StopRequested(Exception):  # noqa: N818 - an outcome, not an error
    """The operator asked the stage to stop, and it has."""


class GuardTrippedError(Exception):
    """A guard refused a step; its `guard_tripped` is in the journal already."""


class StageFailedError(Exception):
    """The stage did its work and found the result wrong (a parity that does not hold, say). The text is for operators."""


@dataclass(frozen=True)
class Input:
    """Where one of the stage's inputs is.

    `path` is absolute: the finished folder of a stage or what the operator named; None for a hub id.
    `output` is what it holds, by the words of `accepts`, when a stage made it.
    """

    field: str
    origin: Literal["stage", "path", "hub"]
    name: str
    path: Path | None
    output: str | None = None
    manifest_sha256: str | None = None


@dataclass(frozen=True)
class ResumePoint:
    """The checkpoint that the attempt goes on from; `sha256` is its manifest's."""

    attempt: int
    step: int
    path: Path
    sha256: str


@dataclass(frozen=True)
class Artifact:
    """Something in `out/` for use; `path` is relative to it, "." is the whole folder."""

    name: str
    kind: str
    path: str


@dataclass(frozen=True)
class StageResult:
    """What a stage reports when it is done. Metric names end in their units."""

    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: list[Artifact] = field(default_factory=list)


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class StageFunction(Protocol):
    """The one function of a stage's module."""

    def __call__(self, ctx: StageContext) -> StageResult: ...


@dataclass
class StageContext:
    """Everything a stage may know and do."""

    stage: Any
    inputs: Mapping[str, Input]
    out: Path
    work: Path
    attempt: int
    resume: ResumePoint | None
    learning_rate_scale: float
    checkpoints: Path
    run_id: str
    stage_name: str
    run_root: Path
    writer: EventWriter
    test_faults: dict[str, Any] = field(default_factory=dict)
    _progress_due_s: float = 0.0
    _signal: int | None = None
    _signal_answered: bool = False

    def emit(self, event: Event) -> int:
        """Append an event; it is in the journal when this returns."""
        return self.writer.emit(event)

    def phase(self, name: str) -> None:
        """Name what the attempt is doing now."""
        self.emit(Phase(stage=self.stage_name, attempt=self.attempt, name=name))

    def warn(self, message: str) -> None:
        """Tell the operator something that does not stop the work."""
        self.emit(Warned(message=message, stage=self.stage_name, attempt=self.attempt))

    def progress(self, done: float, total: float | None, unit: str) -> None:
        """Report work done, at most five times a second and always the last.

        Raises:
            StopRequested: the operator asked to stop.
        """
        now_s = time.monotonic()
        if now_s >= self._progress_due_s or (total is not None and done >= total):
            self._progress_due_s = now_s + PROGRESS_INTERVAL_S
            self.emit(Progress(stage=self.stage_name, attempt=self.attempt, done=done, total=total, unit=unit))
            self.check_stop()

    def check_stop(self) -> None:
        """Between steps of work without checkpoints: end here if a stop was asked for.

        Raises:
            StopRequested: it was.
        """
        for request in self.requests():
            if request.verb.is_stop:
                origin = "afresh" if self.resume is None else f"from its checkpoint of step {self.resume.step}"
                self.applied(request, f"stopping; this stage starts {origin} when the run is resumed")
                raise StopRequested
            known = row_of(self.stage).trains
            reason = "training has not begun" if known else f"a {self.stage.kind} stage has nothing to {request.verb}"
            self.applied(request, f"{IGNORED}: {reason}")

    def requests(self) -> Iterator[control.Request]:
        """New requests, oldest first; each is given once, and a termination signal is one of them.

        One is taken only when the one before it has been dealt with, so that whoever pauses finds its `continue` here.
        """
        for request in control.pending(RunDir(self.run_root).control):
            if control.take(RunDir(self.run_root).control, request):
                yield request
        if self._signal is not None and not self._signal_answered:
            self._signal_answered = True
            yield control.Request(0, Verb.STOP_AFTER_CHECKPOINT, by=signal.Signals(self._signal).name)

    def applied(self, request: control.Request, effect: str, step: int | None = None) -> None:
        """Acknowledge a request with what came of it."""
        asked = request.verb if request.value is None else f"{request.verb} {quantities.exact(request.value)}"
        self.emit(ControlApplied(request=asked, by=request.by, effect=effect, step=step, stage=self.stage_name))

    def on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Remember a termination signal; it acts at the next step boundary."""
        self._signal = number


def load_context(stage_json: Path) -> tuple[StageContext, dict[str, Any]]:
    """The context of an attempt, from its resolved `stage.json`."""
    spec = read_json(stage_json)
    if spec["format"] > STAGE_FORMAT:
        raise OperatorError(
            f"{stage_json}: format — got {spec['format']}; allowed up to {STAGE_FORMAT}",
            "this interpreter's engines are older than the cockpit: install the same version in both",
        )
    run = RunDir(Path(spec["run_root"]))
    attempt = int(spec["attempt"])
    fields = spec["stage"]
    stage: StageFields = STAGE_TYPES[spec["tag"]].model_validate(fields)
    out, work = run.draft_out(stage.name, attempt), run.work(stage.name, attempt)
    for scratch in (out, work):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    run.checkpoints(stage.name, attempt).mkdir(exist_ok=True)
    inputs = {
        name: Input(
            name,
            value["origin"],
            value["name"],
            Path(value["path"]) if value["path"] else None,
            value["output"],
            value["manifest_sha256"],
        )
        for name, value in spec["inputs"].items()
    }
    resume = spec["resume"]
    context = StageContext(
        stage=stage,
        inputs=inputs,
        out=out,
        work=work,
        attempt=attempt,
        resume=ResumePoint(resume["attempt"], resume["step"], Path(resume["path"]), resume["sha256"])
        if resume
        else None,
        learning_rate_scale=float(spec["learning_rate_scale"]),
        checkpoints=run.checkpoints(stage.name, attempt),
        run_id=run.id,
        stage_name=stage.name,
        run_root=run.root,
        writer=EventWriter(run.journal, run.fifo, role=WriterRole.ENGINE, stage=stage.name, attempt=attempt),
        test_faults=_test_faults(),
    )
    return context, spec


def host_main(argv: list[str], stage_modules: Mapping[str, str]) -> NoReturn:
    """Run one attempt and end the process. The exit status repeats what the journal says: 0 done, 1 not, 3 refused."""
    os.umask(0o077)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    stage_json = Path(argv[1])
    lock = Lock(engine_lock_of(stage_json.parent))
    if not lock.acquire({"pid": os.getpid()}):
        sys.stderr.write(f"{stage_json.parent}: another engine works on this attempt\n")
        os._exit(ExitCode.MISTAKE)
    try:
        context, spec = load_context(stage_json)
    except OperatorError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        os._exit(ExitCode.MISTAKE)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, context.on_signal)
    status = _attempt(context, spec, stage_modules)
    context.writer.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: gloo and some native libraries abort while the interpreter is torn down, after all is done and said.
    os._exit(status)


def _attempt(ctx: StageContext, spec: dict[str, Any], stage_modules: Mapping[str, str]) -> ExitCode:
    started_s = time.monotonic()
    point = ctx.resume
    resumed = None if point is None else ResumedFrom(attempt=point.attempt, step=point.step, sha256=point.sha256)
    ctx.emit(
        AttemptStarted(
            stage=ctx.stage_name,
            kind=ctx.stage.kind,
            attempt=ctx.attempt,
            resumed_from=resumed,
            learning_rate_scale=ctx.learning_rate_scale,
            pid=os.getpid(),
        )
    )
    try:
        ctx.phase("importing")
        run: StageFunction = importlib.import_module(stage_modules[ctx.stage.kind]).run
        result = run(ctx)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        metrics: dict[str, float | None] = {
            **result.metrics,
            "wall_s": time.monotonic() - started_s,
            "cpu_s": usage.ru_utime + usage.ru_stime + children.ru_utime + children.ru_stime,
            "peak_rss_bytes": usage.ru_maxrss * 1024,
        }
        refused = _check_gates(ctx, metrics)
        _commit(ctx, spec, result, metrics, refused=refused)
        if refused:
            return _ended(ctx, EndReason.REFUSED, "a gate said no: " + refused)
        return _ended(ctx, EndReason.SUCCEEDED)
    except StopRequested:
        return _ended(ctx, EndReason.STOPPED)
    except GuardTrippedError as error:
        return _ended(ctx, EndReason.GUARD, str(error))
    except (OperatorError, StageFailedError) as error:
        said = [text for text in (str(error), getattr(error, "hint", "")) if text]
        sys.stderr.write("\n".join(said) + "\n")
        return _ended(ctx, EndReason.ERROR, "; ".join(said))
    except MemoryError as error:
        traceback.print_exc()
        return _ended(ctx, EndReason.OUT_OF_MEMORY, str(error))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            traceback.print_exc()
            return _ended(ctx, EndReason.ERROR, f"{type(error).__name__}: {error}")
        words = _no_room(ctx, error)
        sys.stderr.write(words + "\n")
        return _ended(ctx, EndReason.ERROR, words)
    except BaseException as error:  # noqa: BLE001 - the boundary: whatever it was, the journal says it
        traceback.print_exc()
        reason = EndReason.OUT_OF_MEMORY if type(error).__name__ == "OutOfMemoryError" else EndReason.ERROR
        return _ended(ctx, reason, f"{type(error).__name__}: {error}")


def _no_room(ctx: StageContext, error: OSError) -> str:
    """What to tell when a disk, a quota or a limit on file sizes is reached."""
    where = f" {error.filename}" if error.filename else f" in {ctx.out}"
    free = shutil.disk_usage(ctx.out).free if ctx.out.exists() else 0
    return (
        f"no room to write{where}: {error.strerror}; {quantities.size(free)} are free there; inputs and finished files are untouched, and"
        " nothing half-written has its final name: make room, then resume the run"
    )


_STATUS = {EndReason.SUCCEEDED: ExitCode.DONE, EndReason.STOPPED: ExitCode.DONE, EndReason.REFUSED: ExitCode.REFUSED}
"""How an engine's process ends; any other reason is a failure."""


def _ended(ctx: StageContext, reason: EndReason, detail: str = "") -> ExitCode:
    ctx.emit(AttemptEnded(stage=ctx.stage_name, attempt=ctx.attempt, reason=reason, detail=detail[:2000]))
    return _STATUS.get(reason, ExitCode.FAILED)


def _check_gates(ctx: StageContext, metrics: Mapping[str, float | None]) -> str:
    """Journal every gate; returns what was refused, or the empty string."""
    refused = []
    for gate in ctx.stage.gate:
        value = metrics.get(gate.metric)
        met = None if value is None else holds(value, gate.op, gate.value)
        ctx.emit(
            GateChecked(
                stage=ctx.stage_name,
                metric=gate.metric,
                op=gate.op,
                limit=gate.value,
                value=value,
                result=GateResult.NOT_MEASURED if met is None else GateResult.PASS if met else GateResult.FAIL,
                stretch=gate.stretch,
                stretch_met=None if value is None or gate.stretch is None else holds(value, gate.op, gate.stretch),
            )
        )
        if not met:
            shown = "not measured" if value is None else quantities.number(value, 6)
            refused.append(f"{gate.metric} {gate.op} {quantities.exact(gate.value)} (got {shown})")
    return "; ".join(refused)


def holds(value: float, op: str, limit: float) -> bool:
    """Whether `value op limit`; never for a NaN."""
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[op]


def _commit(
    ctx: StageContext, spec: dict[str, Any], result: StageResult, metrics: dict[str, float | None], *, refused: str
) -> None:
    """Make `out/` durable, put it into place, and say so. A refused stage's output is kept beside, for a look."""
    run = RunDir(ctx.run_root)
    parents = [item.manifest_sha256 for item in ctx.inputs.values() if item.manifest_sha256]
    ctx.phase("saving")
    sha256 = write_manifest(
        ctx.out,
        run=ctx.run_id,
        stage=ctx.stage_name,
        kind=ctx.stage.kind,
        attempt=ctx.attempt,
        fingerprint=spec["fingerprint"],
        parents=parents,
        custody=_custody(ctx, metrics),
        metrics={name: value for name, value in metrics.items() if value is not None},
        artifacts=[vars(artifact) for artifact in result.artifacts],
    )
    final = run.refused_out(ctx.stage_name, ctx.attempt) if refused else run.out(ctx.stage_name)
    commit_folder(ctx.out, final)
    hashes = {entry["path"]: entry for entry in read_manifest(final)["files"]}
    for artifact in result.artifacts:
        path = final / artifact.path
        entry = hashes.get(artifact.path)
        ctx.emit(
            ArtifactCommitted(
                stage=ctx.stage_name,
                attempt=ctx.attempt,
                name=artifact.name,
                kind=artifact.kind,
                path=run.relative(path if artifact.path != "." else final),
                bytes=entry["bytes"] if entry else sum(item["bytes"] for item in hashes.values()),
                sha256=entry["sha256"] if entry else sha256,
                parents=parents,
            )
        )
    if not refused:
        ctx.emit(
            StageSucceeded(
                stage=ctx.stage_name,
                attempt=ctx.attempt,
                fingerprint=spec["fingerprint"],
                manifest_sha256=sha256,
                metrics=metrics,
            )
        )


def _custody(ctx: StageContext, metrics: Mapping[str, float | None]) -> dict[str, Any]:
    """The descent of what this stage made; a training stage's weights are those of its last checkpoint."""
    steps = metrics.get("steps")
    checkpoint = None
    if row_of(ctx.stage).trains and steps is not None:
        here = ctx.checkpoints / checkpoint_name(int(steps))
        resumed = ctx.resume.path if ctx.resume is not None and ctx.resume.step == steps else None
        checkpoint = here if here.is_dir() else resumed
    parents = [Parent(item.name, item.path) for item in ctx.inputs.values()]
    custody = custody_of(parents, checkpoint)
    for item in ctx.inputs.values():
        if item.path is None or item.manifest_sha256 is None:
            continue
        link = next((link for link in custody["ancestors"] if link["folder"] == str(item.path)), None)
        if link is not None and link["method"] == "name":
            ctx.warn(
                f"{item.path}, an input of this stage, cannot be read any more; the manifest names it without a hash"
            )
        elif link is not None and link["method"] == "manifest" and link["id"] != item.manifest_sha256:
            ctx.warn(f"{item.path}, an input of this stage, was replaced while the stage worked")
    return custody


def _test_faults() -> dict[str, Any]:
    """Faults that tests ask for (COCKPIT_TEST_FAULTS, a JSON object); empty in every real run."""
    text = os.environ.get("COCKPIT_TEST_FAULTS", "")
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}
