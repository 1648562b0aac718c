"""One engine process: its resolved `stage.json`, its environment, its start, and the reason of its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cockpit import CODE_ROOT
from cockpit.provenance.mark import MAX_IDENTITY_BYTES, RunMark, launcher_of, lives, started_process
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.supervision.freed_memory import keep_few_kernels, keep_freed_memory
from cockpit.supervision.launcher import interpreter_of, launched
from cockpit.supervision.memory_kills import MemoryKills
from cockpit.supervision.shared_cards import CARD_ENV, DRIVER, card_words, engines_on_card, first_card
from cockpit.supervision.shared_cores import other_engines, sharing_words, thread_waits
from cockpit.supervision.stop_ladder import Rung
from engines.files import open_append, write_durably
from engines.identity import Identity, boot_id
from engines.json_text import read_json
from engines.processor import usable_cores
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir
from engines.stage_file import (
    ExpectedInputs,
    StageFile,
    StageResume,
    first_start_of,
    present_moment,
    read_stage_file,
    write_stage_file,
)
from engines.words import EndReason
from recipes.problems import printable
from recipes.stages.fields import DeviceFields, StageFields
from recipes.stages.launch.fields import launch_of
from recipes.stages.registry import row_of, tag_of_stage
from recipes.stages.training import TrainingFields

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Variables with the settings of torch's allocator on a GPU: its present name and its earlier one."""
_TORCHELASTIC = "TORCHELASTIC_RUN_ID"
"""A variable that torchrun sets for the processes that it starts."""
TORCHRUN = "engines.ranks.torchrun"


@dataclass
class EngineProcess:
    """A running engine: this process's `child`, or adopted from a supervisor that died (`child` is None)."""

    stage: str
    attempt: int
    identity: Identity
    child: subprocess.Popen[bytes] | None
    pidfd: int
    kills: MemoryKills = field(default_factory=MemoryKills)
    """the kernel's counts of kills for memory, at its start or when it was adopted"""
    launcher: str = ""
    """the program that starts the engine for this process; empty where this process itself started it"""
    behind: Path | None = None
    """the engine's `stage.json`, while only the launcher is known: `identity` is the launcher's"""

    @property
    def reaped(self) -> frozenset[int]:
        """The process whose exit status is collected with that of the engine."""
        return frozenset({self.identity.pid if self.child is None else self.child.pid})

    def close(self) -> None:
        os.close(self.pidfd)


def write_stage_json(
    run: RunDir,
    plan: RunRecipe,
    name: str,
    attempt: int,
    *,
    resume: StageResume | None,
    learning_rate_scale: float,
    guard_trips: int,
    launch: int,
    expected: ExpectedInputs | None,
    adjusted: Mapping[str, Any],
) -> Path:
    """Write `stage.json`: everything that an engine reads, resolved."""
    stage = plan.stage(name)
    path = run.stage_json(name, attempt)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = StageFile(
        run_root=str(run.root),
        tag=tag_of_stage(stage),
        stage=stage.model_dump(mode="json"),
        attempt=attempt,
        inputs=plan.stage_inputs(run, name),
        resume=resume,
        learning_rate_scale=learning_rate_scale,
        guard_trips=guard_trips,
        launch=launch,
        expected=expected,
        adjusted=dict(adjusted),
        first_start=first_start_of(run, name) or present_moment(),
    )
    write_stage_file(path, content)
    return path


def engine_environment(run: RunDir, stage: StageFields) -> dict[str, str]:
    """The engine's environment: the run's mark, no model hub unless the operator allows it, a thread limit, and
    the stage's GPUs."""
    environment = dict(os.environ)
    environment |= RunMark.of(run).environment()
    paths = [str(CODE_ROOT), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    environment["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(paths))
    environment.setdefault("HF_HUB_OFFLINE", "1")
    environment.setdefault("TOKENIZERS_PARALLELISM", "false")
    environment["PYTHONUNBUFFERED"] = "1"
    environment |= thread_waits(environment, other_engines(run))
    if not any(name in environment for name in _ALLOCATOR):
        # Sequences of many lengths otherwise leave twice the memory that a training needs in pieces of the wrong sizes.
        environment[_ALLOCATOR[0]] = "expandable_segments:True"
    environment["OMP_NUM_THREADS"] = str(engine_threads(stage))
    if isinstance(stage, DeviceFields) and stage.devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(stage.devices)
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # else CUDA numbers the fastest first, and nvidia-smi does not
    if isinstance(stage, DeviceFields):
        environment[CARD_ENV] = first_card(environment)
    if not DRIVER.is_dir():
        environment |= keep_few_kernels(environment)
        if isinstance(stage, TrainingFields):
            environment |= keep_freed_memory(environment)
    return environment


def engine_threads(stage: StageFields) -> int:
    """The number of CPU threads of each process of a stage: its field, else OMP_NUM_THREADS, else its share of the
    physical cores that this process may use, which the engine inherits.

    It does not depend on what else runs: a resume with another number would not be bit-exact.
    """
    given = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if stage.threads or (given.isdecimal() and int(given) > 0):
        return stage.threads or int(given)
    return max(1, usable_cores() // launch_of(stage).processes)


def what_it_shares(run: RunDir, stage: StageFields) -> list[str]:
    """What a launch says about other runs on the cores and on the GPU of a stage's engine, and about other hosts."""
    card = engine_environment(run, stage).get(CARD_ENV, "")
    said = [
        sharing_words(other_engines(run), os.cpu_count() or 1, engine_threads(stage)),
        card_words(engines_on_card(run, card), card),
        _retry_words(stage),
    ]
    return [words for words in said if words]


def _retry_words(stage: StageFields) -> str:
    """What a retry over several hosts needs; empty for a stage without one."""
    hosts, attempts = launch_of(stage).nodes, stage.retry.max_attempts
    if hosts == 1 or attempts == 1 or not row_of(stage).trains:
        return ""
    return (
        f"a retry of {stage.name} over {hosts} hosts needs the checkpoints of rank 0's run in the run of every host:"
        " without them it ends before its first step and names the missing folder; to resume, copy that folder first"
    )


def program_of(stage: StageFields) -> str:
    """The module that is started for a stage: that of its kind, or torchrun, which starts that one several times."""
    return TORCHRUN if launch_of(stage).world_size > 1 else row_of(stage).program


def start_engine(run: RunDir, stage: StageFields, attempt: int, stage_json: Path) -> EngineProcess:
    """Start the process in a new session, without a terminal or stdin; its output goes to `console.log`.

    Raises:
        OSError: the interpreter cannot be started.
    """
    console = open_append(run.console_log(stage.name, attempt))
    environment = engine_environment(run, stage)
    words = [interpreter_of(stage), "-m", program_of(stage), str(stage_json)]
    if launch_of(stage).launcher:
        words = launched(words, stage, run, read_stage_file(stage_json).inputs.values(), environment)
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=console,
            cwd=stage_json.parent,
            env=environment,
            start_new_session=True,
        )
    finally:
        os.close(console)
    pidfd = os.pidfd_open(child.pid)
    identity = Identity.of(child.pid) or Identity(child.pid, 0, "")
    engine = EngineProcess(stage.name, attempt, identity, child, pidfd, MemoryKills.read(child.pid))
    if launch_of(stage).launcher:
        engine.launcher, engine.behind = launch_of(stage).launcher[0], stage_json
    _write_identity(run, engine)
    return engine


def find_behind_launcher(run: RunDir, engine: EngineProcess) -> bool:
    """Find the engine that a launcher has started, if it is there now; from then on `identity` is the engine's own."""
    if engine.behind is None:
        return False
    found = _by_command(RunMark.of(run), str(engine.behind))
    if found is None:
        return False
    engine.identity, engine.kills, engine.behind = found, MemoryKills.read(found.pid), None
    _write_identity(run, engine)
    return True


def _write_identity(run: RunDir, engine: EngineProcess) -> None:
    with suppress(OSError):  # on a full disk, the engine is found by its command line instead
        known = {**vars(engine.identity), "memory_kills": dict(engine.kills.groups)}
        known |= {"launcher": engine.launcher} if engine.launcher else {}
        write_durably(run.engine_json(engine.stage, engine.attempt), json.dumps(known).encode())


def find_engine(run: RunDir, stage: str, attempt: int) -> EngineProcess | None:
    """The attempt's engine, if it lives: found by its recorded identity, else by its command line.

    It must carry the run's mark: what the folder says about processes may have been written by another user.
    """
    mark, stage_json = RunMark.of(run), run.stage_json(stage, attempt)
    identity, launcher = started_process(run.engine_json(stage, attempt)), launcher_of(run.engine_json(stage, attempt))
    behind = None
    if identity is None or launcher or not identity.is_alive():
        found = _by_command(mark, str(stage_json))
        behind = stage_json if launcher and found is None else None
        identity = found or identity
    if identity is None:
        return None
    try:
        pidfd = os.pidfd_open(identity.pid)
    except (OSError, ValueError, OverflowError):  # a forged pid may be any number
        return None
    # The second check of the identity follows the mark: the mark was read from this process, not from a later one.
    if not (identity.is_alive() and mark.is_carried_by(identity.pid) and identity.is_alive()):
        os.close(pidfd)
        return None
    return EngineProcess(stage, attempt, identity, None, pidfd, MemoryKills.read(identity.pid), launcher, behind)


def engine_lives(run: RunDir, stage: str, attempt: int) -> bool:
    """Whether the attempt's engine is running, by its lock or its recorded identity; cheap, and it starts nothing."""
    if lock_is_held(run.engine_lock(stage, attempt)):
        return True
    identity = recorded_engine(run, stage, attempt)
    return identity is not None and lives(run, identity)


def recorded_engine(run: RunDir, stage: str, attempt: int) -> Identity | None:
    """The engine that the attempt's folder names; None without one."""
    return started_process(run.engine_json(stage, attempt))


def recorded_kills(run: RunDir, stage: str, attempt: int) -> MemoryKills:
    """The kernel's counts when the attempt's engine was started; empty where they are unknown, or of another boot."""
    path = run.engine_json(stage, attempt)
    identity = started_process(path)
    if identity is None or identity.boot_id != boot_id():
        return MemoryKills()
    with suppress(OSError, ValueError):
        return MemoryKills.of_groups(read_json(path, MAX_IDENTITY_BYTES).get("memory_kills"))
    return MemoryKills()


def _by_command(mark: RunMark, stage_json: str) -> Identity | None:
    """An engine whose supervisor died after it started the engine and before it recorded its identity.

    Of several processes it is torchrun; without torchrun, the kernel ends them.
    """
    for process in psutil.process_iter(["pid"]):
        try:
            command = process.cmdline()
            if command[1:2] != ["-m"] or command[3:] != [stage_json] or _TORCHELASTIC in process.environ():
                continue  # a launcher's command ends in the same words
            if mark.is_carried_by(process.pid):
                return Identity.of(process.pid)
        except (psutil.Error, OSError):
            continue
    return None


def exit_status(engine: EngineProcess) -> int | None:
    """The exit status of an engine that has ended, negative for a signal; None if this process did not start it.

    A launcher repeats a signal that ended the engine as 128 and its number, as shells do.
    """
    if engine.child is None:
        return None
    status = engine.child.wait()
    return 128 - status if engine.launcher and 128 < status <= 128 + signal.NSIG else status


def exit_reason(status: int | None, sent: Rung = "none", launcher: str = "") -> tuple[EndReason, str]:
    """Reason and detail of an exit status, for an engine that recorded no reason.

    Args:
        status: the exit status, negative for a signal; None if this process did not start the engine.
        sent: the signal that this supervisor sent to it.
        launcher: the program that started the engine; empty if the supervisor did.
    """
    ours = {"none": None, "term": signal.SIGTERM, "kill": signal.SIGKILL}[sent]
    if status is None and ours is not None:
        return EndReason.UNKNOWN, f"the engine ended after this supervisor sent {ours.name}; its exit status is unknown"
    if status is None:
        return (
            EndReason.UNKNOWN,
            "the engine ended; its exit status is unknown to this supervisor, which did not start it",
        )
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        if ours is not None and -status in {signal.SIGTERM, ours}:
            return EndReason.KILLED, f"killed by {name}, which the supervisor sent"
        sender = ", sender unknown (out of memory, or a kill command)" if status == -signal.SIGKILL else ""
        return EndReason.KILLED, f"killed by {name}{sender}"
    if launcher:
        name = printable(Path(launcher).name, 40)
        return EndReason.DIED, f"{name} exited with status {status}, and the engine gave no reason; see console.log"
    return EndReason.DIED, f"exited with status {status} without an error message; see console.log"
