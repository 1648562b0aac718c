"""Run one attempt of one stage in a separate process.

`python -m engines.run STAGE_JSON` and `python -m exporters.run STAGE_JSON` call `host_main` with the modules of their
kinds. The life of an attempt: lock, open the journal, `attempt_started`, the stage's work, gates, the commit of `out/`,
`stage_succeeded`, `attempt_ended`. The journal has the result before the process ends.
"""

from __future__ import annotations

import errno
import faulthandler
import importlib
import json
import logging
import os
import resource
import shutil
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from engines.commit import commit_output
from engines.context import (
    GuardTrippedError,
    Input,
    InputsChangedError,
    ResumePoint,
    StageContext,
    StageFailedError,
    StageFunction,
    StageResult,
    StopRequested,
)
from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded, AttemptStarted, ResumedFrom
from engines.exhausted_memory import exhausted_memory, is_full_shared_memory
from engines.gates import check_gates
from engines.inputs.at_start import record_inputs
from engines.ranks.own import RankWriter, end_with_parent, is_of_another_rank, print_into
from engines.run_dir.ended_attempts import remove_scratch
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir, engine_lock_of, rank_console_name, rank_lock_of
from engines.stage_file import StageFile, StageInput, moment, present_moment, read_stage_file
from engines.words import EndReason, ExitCode, WriterRole
from engines.world import World, world
from recipes import quantities
from recipes.problems import OperatorError, printable
from recipes.stages.fields import StageFields
from recipes.stages.registry import STAGE_TYPES, row_of

_MAX_CAUSES = 16
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - where the system has it
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def load_context(given: StageFile, stage_json: Path) -> StageContext[StageFields]:
    """The context of an attempt, from the content of its `stage.json`, with an open journal writer.

    Raises:
        OperatorError: the file names a stage that this version cannot run.
    """
    declared = _stage(given.stage, given.tag, stage_json)
    stage = _stage({**given.stage, **given.adjusted}, given.tag, stage_json) if given.adjusted else declared
    run, here = RunDir(Path(given.run_root)), world()
    if here.local_rank == 0:
        remove_scratch(run, stage.name, given.attempt)
    out, work = run.draft_out(stage.name, given.attempt), run.work(stage.name, given.attempt)
    if not here.is_first:  # what it writes there is not the attempt's output
        out, work = (path.with_name(f"{path.name}.rank{here.rank}") for path in (out, work))
    for scratch in (out, work):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
    checkpoints = run.checkpoints(stage.name, given.attempt)
    checkpoints.mkdir(exist_ok=True)
    resume = given.resume
    return StageContext(
        stage=stage,
        inputs={name: _input(name, item) for name, item in given.inputs.items()},
        out=out,
        work=work,
        attempt=given.attempt,
        resume=None if resume is None else ResumePoint(resume.attempt, resume.step, Path(resume.path), resume.sha256),
        learning_rate_scale=given.learning_rate_scale,
        checkpoints=checkpoints,
        run_id=run.id,
        stage_name=stage.name,
        run_root=run.root,
        writer=_writer(run, stage.name, given, here),
        first_start=moment(given.first_start) or present_moment(),
        guard_trips=given.guard_trips,
        declared=None if stage is declared else declared,
        test_faults=_test_faults(),
        world=here,
    )


def _writer(run: RunDir, stage: str, given: StageFile, here: World) -> EventWriter:
    if here.is_first:
        return EventWriter(
            run.journal, run.fifo, role=WriterRole.ENGINE, stage=stage, attempt=given.attempt, launch=given.launch
        )
    leads = here.local_rank == 0
    return RankWriter(run, stage=stage, attempt=given.attempt, rank=here.rank, launch=given.launch, leads=leads)


def _stage(values: Mapping[str, Any], tag: str, stage_json: Path) -> StageFields:
    hint = "install the same version of Cockpit in this stage's interpreter"
    fields = STAGE_TYPES.get(tag)
    if fields is None:
        known = ", ".join(STAGE_TYPES)
        raise OperatorError(f"{stage_json}: tag — got {printable(tag, 80)}; allowed {known}", hint)
    try:
        return fields.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise OperatorError(f"{stage_json}: stage.{printable(where, 80)} — {first['msg']}", hint) from error


def _input(field: str, given: StageInput) -> Input:
    path = Path(given.path) if given.path else None
    return Input(field, given.origin, given.name, path, given.output, given.manifest_sha256)


def host_main(argv: list[str], stage_modules: Mapping[str, str]) -> NoReturn:
    """Run one attempt and end the process. The exit status repeats the journal: 0 done or stopped, 1 failed, 3 refused;
    2 when the attempt could not start."""
    os.umask(0o077)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    stage_json, here = Path(argv[1]), world()
    if here.size > 1:
        end_with_parent()
    if not here.is_first:
        print_into(stage_json.parent / rank_console_name(here.rank))
    lock = Lock(engine_lock_of(stage_json.parent) if here.is_first else rank_lock_of(stage_json.parent, here.rank))
    if not lock.acquire({"pid": os.getpid()}):
        sys.stderr.write(f"{stage_json.parent}: another engine is already running this attempt\n")
        os._exit(ExitCode.MISTAKE)
    try:
        given = read_stage_file(stage_json)
        context = load_context(given, stage_json)
    except OperatorError as error:
        sys.stderr.write(f"{error}\n{error.hint}\n")
        os._exit(ExitCode.MISTAKE)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, context.on_signal)
    status = _attempt(context, given, stage_modules)
    context.writer.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: gloo and some native libraries abort during interpreter shutdown, after the work is done.
    os._exit(status)


def _attempt(ctx: StageContext[StageFields], given: StageFile, stage_modules: Mapping[str, str]) -> ExitCode:
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
            launch=given.launch,
        )
    )
    try:
        record_inputs(ctx, given)
        ctx.phase("importing")
        _quiet_libraries()
        first = row_of(ctx.stage).starts_with(ctx.stage)
        if first:
            importlib.import_module(first).start(ctx)
        run: StageFunction = _module_of(stage_modules[ctx.stage.kind]).run
        result = run(ctx)
        if not ctx.world.is_first:
            return _ended(ctx, EndReason.SUCCEEDED)  # the first process commits what all have made
        metrics = _with_cost(result, started_s)
        refused = check_gates(ctx, metrics)
        commit_output(ctx, result, metrics, refused=refused)
        if refused:
            return _ended(ctx, EndReason.REFUSED, "gate failed: " + refused)
        return _ended(ctx, EndReason.SUCCEEDED)
    except StopRequested as stop:
        return _ended(ctx, EndReason.STOPPED, str(stop))
    except GuardTrippedError as error:
        return _ended(ctx, EndReason.GUARD, str(error))
    except InputsChangedError as error:
        lines = ["the inputs are not those that the last attempt read:", *error.lines]
        sys.stderr.write("\n".join(lines) + "\n")
        return _ended(ctx, EndReason.INPUTS_CHANGED, " ".join(lines[:1]) + " " + "; ".join(error.lines))
    except BaseException as error:  # noqa: BLE001 - the boundary: the journal records every exception
        return _failed(ctx, error)


_OWN_FLOORS = frozenset({"engines", "exporters", "recipes"})


def _module_of(name: str) -> Any:
    """The module of a stage's kind, with the libraries that it needs.

    A distribution may be there and not importable: one that it needs itself is missing, or is built for another one.
    transformers names its own object then, not the cause, so the message has what the last error of the chain says;
    but for AttributeError, by which Python notices that a module is no package.

    Raises:
        OperatorError: a library cannot be imported.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        causes: list[BaseException] = [error]
        while (link := causes[-1].__cause__ or causes[-1].__context__) is not None and len(causes) < _MAX_CAUSES:
            causes.append(link)
        traceback.print_exception(error)
        cause = next((one for one in reversed(causes) if not isinstance(one, AttributeError)), error)
        first = str(cause).strip().partition("\n")[0]
        missing = cause.name if isinstance(cause, ImportError) else None
        way_out = f"install {printable(missing, 80)} there" if missing else "install the engines' packages there again"
        if missing and missing.partition(".")[0] in _OWN_FLOORS:  # replaced while this process started
            way_out = "Cockpit's own files there are of two versions: install it again, then resume the run"
        raise OperatorError(
            f"{sys.executable} cannot import what the stage needs: {printable(first, 300)}", way_out
        ) from error


def _quiet_libraries() -> None:
    """Leave out two sentences that libraries say at each start and that no operator can act on.

    bitsandbytes looks for a kernel of the hub, which engines do not download from. PEFT and TRL ask a model of
    transformers for its `is_gradient_checkpointing` by the name that older versions have too.
    """
    logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_about_more_than_a_hub_kernel)
    warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)


def _is_about_more_than_a_hub_kernel(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward from kernels-community")


def _failed(ctx: StageContext[StageFields], error: BaseException) -> ExitCode:
    """Record an error with its reason; an unexpected one shows its traceback."""
    if exhausted_memory(error):
        return _out_of_memory(ctx, error)
    if is_full_shared_memory(error):
        message = _no_shared_memory(ctx)
        _print("".join(traceback.format_exception(error)) + message)
        return _ended(ctx, EndReason.ERROR, message)
    full = _disk_is_full(error)
    if full is not None:
        message = "; ".join(_texts(error)) if isinstance(error, OperatorError) else _no_space(ctx, full)
        for partial in (ctx.out, ctx.work):  # else neither the journal nor the console has room for the reason
            shutil.rmtree(partial, ignore_errors=True)
        _print(message)
        return _ended(ctx, EndReason.ERROR, message)
    if ctx.world.size > 1 and is_of_another_rank(error):
        traceback.print_exception(error)
        first = str(error).strip().partition("\n")[0]
        return _ended(ctx, EndReason.RANK_LOST, f"an exchange with another process failed: {printable(first, 160)}")
    if isinstance(error, OperatorError | StageFailedError):
        texts = _texts(error)
        _print("\n".join(texts))
        return _ended(ctx, EndReason.ERROR, "; ".join(texts))
    if isinstance(error, FileNotFoundError) and not ctx.run_root.exists():
        message = f"{ctx.run_root} was moved or removed while the engine ran; resume the run where it is now"
        _print(message)
        return _ended(ctx, EndReason.ERROR, message)
    _print("".join(traceback.format_exception(error)).rstrip("\n"))
    return _ended(ctx, EndReason.ERROR, f"{type(error).__name__}: {error}")


def _texts(error: BaseException) -> list[str]:
    return [text for text in (str(error), getattr(error, "hint", "")) if text]


def _print(text: str) -> None:
    """Write to the console; a disk that is full takes nothing, and the journal has the reason."""
    with suppress(OSError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _disk_is_full(error: BaseException) -> OSError | None:
    """The system's error, where a disk, a quota or a limit of sizes ended the attempt. safetensors and torch report it
    as text."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in _NO_SPACE:
            return link
        text = "" if isinstance(link, OSError) else str(link)
        found = next((code for code in _NO_SPACE if os.strerror(code) in text), None)
        if found is not None:
            return OSError(found, os.strerror(found))
        link = link.__cause__
    return None


def _out_of_memory(ctx: StageContext[StageFields], error: BaseException) -> ExitCode:
    """Record that memory ran out. The frames of the error hold what filled it, so they are released first."""
    with suppress(MemoryError):
        traceback.print_exception(error)
    link: BaseException | None = error
    while link is not None:
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__
    with suppress(MemoryError):
        first = str(error).strip().partition("\n")[0]
        detail = f"{type(error).__name__}: {first} ({exhausted_memory(error)})"
        return _ended(ctx, EndReason.OUT_OF_MEMORY, detail, phase=ctx.phase_name)
    return _ended(ctx, EndReason.OUT_OF_MEMORY)


def _with_cost(result: StageResult, started_s: float) -> dict[str, float | None]:
    """The stage's metrics, and the time and memory that this process used since `started_s` (monotonic clock)."""
    return {
        **result.metrics,
        "wall_s": time.monotonic() - started_s,
        "cpu_s": _cpu_s(),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _cpu_s() -> float:
    """CPU seconds of this process and of the children that it waited for."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _no_shared_memory(ctx: StageContext[StageFields]) -> str:
    """The message for a /dev/shm that is full, through which processes hand tensors to each other."""
    with suppress(OSError):
        found = shutil.disk_usage(_SHARED_MEMORY)
        return (
            f"{_SHARED_MEMORY} is full ({quantities.size(found.free)} of {quantities.size(found.total)} are free): the"
            " processes that prepare batches hand them over there; give it more space (docker: --shm-size), or set"
            f" {ctx.stage_name}.dataloader_num_workers = 0"
        )
    return f"the system has no shared memory: set {ctx.stage_name}.dataloader_num_workers = 0"


def _no_space(ctx: StageContext[StageFields], error: OSError) -> str:
    """The message for a full disk, a reached quota or a reached limit on file sizes."""
    written = error.filename2 or error.filename  # of a copy, the second name is the file that is written
    where = f" {written}" if written else f" in {ctx.out}"
    free = shutil.disk_usage(ctx.out).free if ctx.out.exists() else 0
    return (
        f"no space to write{where}: {error.strerror}; {quantities.size(free)} are free; inputs and finished files are "
        "unchanged, and partial output is not used; free some space, then resume the run"
    )


_STATUS = {EndReason.SUCCEEDED: ExitCode.DONE, EndReason.STOPPED: ExitCode.DONE, EndReason.REFUSED: ExitCode.REFUSED}
"""Exit status of an engine's process by reason; any other reason is a failure."""


def _ended(ctx: StageContext[StageFields], reason: EndReason, detail: str = "", phase: str = "") -> ExitCode:
    ctx.emit(
        AttemptEnded(
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            reason=reason,
            detail=detail[:2000],
            cpu_s=round(_cpu_s(), 3),
            phase=phase,
        )
    )
    return _STATUS.get(reason, ExitCode.FAILED)


def _test_faults() -> dict[str, Any]:
    """Faults that tests request (COCKPIT_TEST_FAULTS, a JSON object); empty in a real run."""
    text = os.environ.get("COCKPIT_TEST_FAULTS", "")
    value = json.loads(text) if text else {}
    return value if isinstance(value, dict) else {}
