"""Real runs for tests: launched as an operator launches them; tests wait for facts in their journals."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from cockpit.launching.launch import launch
from cockpit.runs.reader import read_now
from cockpit.runs.state import RunState
from cockpit.supervision.process_tree import kill_tree, run_processes
from engines.control import put_request
from engines.events.kinds import AnyEvent
from engines.events.runs import ControlApplied
from engines.events.steps import Step, StepsPlanned
from engines.journal import read_journal
from engines.run_dir.locks import lock_holder, lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import Verb
from recipes.load import load_recipe_text
from tests.patience import PATIENCE_S

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
"""How long a fact may take on a machine that is busy with other tests; a pass never waits that long."""


def wait_for(fact: Callable[[], T | None], what: str, patience_s: float = PATIENCE_S) -> T:
    """Wait until a fact holds (is truthy) and return it."""
    give_up_s = time.monotonic() + patience_s
    while True:
        value = fact()
        if value:
            return value
        if time.monotonic() > give_up_s:
            raise AssertionError(f"waited {patience_s:g} s in vain for: {what}")
        time.sleep(0.01)


def fake_recipe(*stages: Mapping[str, Any], **top: Any) -> str:
    """A recipe of fake stages as TOML."""
    lines = ["schema = 1", 'name = "fake"', *(f"{key} = {json.dumps(value)}" for key, value in top.items())]
    for number, fields in enumerate(stages, 1):
        values = {"name": f"part-{number}", "kind": "fake", **fields}
        tables = {key: value for key, value in values.items() if isinstance(value, dict)}
        lines += ["[[stage]]", *(f"{key} = {json.dumps(value)}" for key, value in values.items() if key not in tables)]
        for key, table in tables.items():
            lines += [f"[stage.{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def launch_text(text: str, folder: Path, **options: Any) -> RunDir:
    """Launch a recipe given as text; its runs are in `folder`/runs."""
    return launch(load_recipe_text(text, folder / "recipe.toml"), runs_root=folder / "runs", **options)


def run_to_success(recipe: Path, runs: Path, *sets: str) -> tuple[RunDir, str]:
    """Run a recipe from the command line, to its success; returns the run and what the command printed."""
    command = [sys.executable, "-m", "cockpit", "run", str(recipe), "--runs-dir", str(runs)]
    for one in sets:
        command += ["--set", one]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run = RunDir(next(path.parent for path in runs.glob("*/run.json")))
    assert read_now(run).look() == "succeeded"
    assert_contiguous(run)
    assert_no_process_left(run)
    return run, done.stdout


@contextmanager
def nothing_left(*roots: Path) -> Iterator[None]:
    """Whatever happens, no process of these runs survives the test."""
    try:
        yield
    finally:
        for root in roots:
            for run_root in root.glob("*/run.json"):
                run = RunDir(run_root.parent)
                kill_supervisor(run)
                kill_tree(run.root, [], term_grace_s=0.0)


def kill_supervisor(run: RunDir) -> int | None:
    """SIGKILL the run's supervisor, if it has one, and wait for its end; returns its pid."""
    if not lock_is_held(run.supervisor_lock):
        return None
    pid = lock_holder(run.supervisor_lock).get("pid")
    if not isinstance(pid, int):
        return None
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return None
    wait_for(lambda: not lock_is_held(run.supervisor_lock), "the supervisor's lock to be free")
    return pid


def ended(run: RunDir) -> str | None:
    """The run's state if the run and its supervisor have ended."""
    if lock_is_held(run.supervisor_lock):
        return None
    state = read_now(run).look()
    return state if state.has_ended else None


def wait_for_end(run: RunDir, patience_s: float = PATIENCE_S) -> str:
    """Wait until the run has ended; returns its state."""
    return wait_for(lambda: ended(run), f"the end of {run.id}", patience_s)


def events(run: RunDir) -> list[AnyEvent]:
    """The journal as it is now."""
    return list(read_journal(run.journal))


def state(run: RunDir) -> RunState:
    """The fold of the journal as it is now."""
    return read_now(run).state


def step_of(run: RunDir, stage: str = "part-1") -> int:
    """The highest step of a stage in the journal as it is now; 0 before the first."""
    return max((e.step for e in events(run) if isinstance(e, Step) and e.stage == stage), default=0)


def wait_for_step(run: RunDir, step: int = 1, stage: str = "part-1") -> None:
    """Wait until the journal has a step of the stage that is at least this one."""
    wait_for(lambda: step_of(run, stage) >= step, f"step {step} of {stage}")


def end_soon(run: RunDir, more: int = 20, stage: str = "part-1") -> int:
    """Ask a stage that would train on to end some steps after this one; returns its last step, as it answers.

    A test that does something to a training stage lets it train without an end, does it, and then asks for the end:
    a stage with few steps would now and then end before a slow test has done it.
    """
    number = put_request(run.control, Verb.MAX_STEPS, step_of(run, stage) + more, stage=stage).number
    wait_for(
        lambda: any(isinstance(e, ControlApplied) and e.number == number for e in events(run)), "the answer to the end"
    )
    return [e.total_steps for e in events(run) if isinstance(e, StepsPlanned) and e.stage == stage][-1]


def wait_for_engine(run: RunDir, stage: str = "part-1", attempt: int = 1) -> int:
    """The pid of an attempt's engine, once the supervisor has recorded it: the engine may be at its steps before."""
    return wait_for(lambda: engine_pid(run, stage, attempt), f"the record of the engine of attempt {attempt}")


def engine_pid(run: RunDir, stage: str, attempt: int) -> int | None:
    """The pid that the supervisor recorded for an attempt."""
    try:
        value = json.loads((run.attempt_dir(stage, attempt) / "engine.json").read_text())
    except (OSError, ValueError):
        return None
    return int(value["pid"])


def acknowledged(path: Path) -> tuple[str, int] | None:
    """The writer and sequence number that the fake engine stored last, after `emit` had returned."""
    try:
        seq, writer = struct.unpack("<q32s", path.read_bytes()[:40])
    except (OSError, struct.error):
        return None
    name = writer.rstrip(b"\0").decode()
    return (name, seq) if name else None


def assert_contiguous(run: RunDir) -> dict[str, int]:
    """Every writer's records are 0, 1, 2, …; returns the last number of each."""
    last: dict[str, int] = {}
    for event in events(run):
        assert event.seq == last.get(event.w, -1) + 1, f"{event.w}: {event.seq} after {last.get(event.w)}"
        last[event.w] = event.seq
    return last


def assert_no_process_left(run: RunDir) -> None:
    """Wait until no process of the run is left."""
    wait_for(lambda: not run_processes(run.root, []), "the end of every process of the run")
    assert not lock_is_held(run.supervisor_lock)
