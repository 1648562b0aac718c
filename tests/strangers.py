"""A stranger's run folder in many variants: what it names, what its files are, who may write it.

Each variant begins as a copy of a run that looks like one that lost its supervisor and its engine: a resume, or an
adoption, would start the interpreter in its `recipe.json`, a canary that leaves a trace. `VARIANTS` spoil it further.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.emitter import EventWriter
from engines.events.attempts import AttemptStarted
from engines.events.records import encode_record
from engines.events.runs import RunEnded, RunStarted, StageStarted
from engines.events.writers import WriterOpened
from engines.identity import Identity
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir, taken_requests
from engines.words import RunStatus, StartReason, WriterRole
from tests.runs.harness import fake_recipe

ANOTHER_USER = 54_321
DEEP = "[" * 200_000
FORGED_TIMES = ("Infinity", '"NaN"', "1e308", "-1e308", "1" * 400)


@dataclass(frozen=True)
class Canary:
    """What must stay untouched: a process of this user that the folders name, and a file that the interpreter makes."""

    pid: int
    interpreter: Path
    trace: Path


def make_canary_interpreter(folder: Path) -> tuple[Path, Path]:
    """A program that a stranger's recipe names as its interpreter, and the file that it makes when it is started."""
    program, trace = folder / "interpreter", folder / "was-started"
    program.write_text(f"#!/bin/sh\ntouch {trace}\nexec sleep 1\n")
    program.chmod(0o755)
    return program, trace


@contextmanager
def untouched_canary(folder: Path) -> Iterator[Canary]:
    """A canary that must live, and whose interpreter must not have been started, when the block ends."""
    program, trace = make_canary_interpreter(folder)
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield Canary(process.pid, program, trace)
        assert process.poll() is None, "the process that the folders name was signalled"
        assert not trace.exists(), "the interpreter that the folders name was started"
    finally:
        process.kill()
        process.communicate()


def contents(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every path in a folder with its type, size and time of change; links are not followed."""
    found = {}
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files, "."):
            status = (Path(where) / name).lstat()
            found[os.path.join(where, name)] = (status.st_mode, status.st_size, status.st_mtime_ns)  # noqa: PTH118
    return found


def stranger(root: Path, name: str, canary: Canary) -> RunDir:
    """A run without a token that lost its processes, with an interpreter of its own and a forged engine."""
    from cockpit.launching.launch import resolve
    from recipes.load import load_recipe_text

    text = fake_recipe({"max_steps": 5, "name": "base", "python": str(canary.interpreter)})
    recipe = resolve(load_recipe_text(text, root / "recipe.toml")).to_json()
    run = create_run_dir(
        root, name=name, recipe="fake", recipe_toml=text, recipe_json=recipe, plan_json={}, version="1"
    )
    writer = EventWriter(run.journal, None, role=WriterRole.SUPERVISOR)
    writer.emit(RunStarted(run=run.id, recipe="fake", reason=StartReason.LAUNCH, stages=["base"], kinds=["fake"]))
    writer.emit(StageStarted(stage="base", kind="fake", attempt=1, steps=5))
    writer.emit(AttemptStarted(stage="base", kind="fake", attempt=1, total_steps=5))
    writer.close()
    facts = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps(facts | {"created_t": facts["created_t"] - 3600}))
    run.attempt_dir("base", 1).mkdir(parents=True)
    identity = Identity.of(canary.pid)
    assert identity is not None
    run.engine_json("base", 1).write_text(json.dumps(vars(identity)))
    add_record(run, WriterOpened(role=WriterRole.ENGINE, host="h", stage="base", attempt=1, **vars(identity)))
    return run


def add_record(run: RunDir, event: Any, writer: str = "e1") -> None:
    with run.journal.open("ab") as file:
        file.write(encode_record(event, writer=writer, seq=0, t=1.0, m=1.0))


def replace(path: Path, what: str) -> None:
    """Put another kind of file in the place of a file or folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "loop":
            path.symlink_to(path.name)
        case "elsewhere":
            path.symlink_to("/etc/passwd")
        case "deep":
            path.write_text(DEEP)
        case "empty":
            path.write_text("")
        case "list":
            path.write_text("[1, 2]")
        case "binary":
            path.write_bytes(bytes(range(256)) * 64)
        case _:
            raise AssertionError(what)


Spoil = Callable[[RunDir, Canary], object]


def replaced(name: str, what: str) -> Spoil:
    return lambda run, _canary: replace(run.root / name, what)


def _python_is_named(run: RunDir, canary: Canary) -> None:
    assert str(canary.interpreter) in run.recipe_json.read_text()


def _forged_end(run: RunDir, _canary: Canary) -> None:
    bytes_ = run.journal.stat().st_size
    summary = {"id": "x", "path": "/", "recipe": "fake", "state": "succeeded", "loss": "a text", "started_t": DEEP[:99]}
    run.exit_json.write_text(json.dumps({"journal_bytes": bytes_, "state": "succeeded", "summary": summary}))


def _forged_end_with_types(run: RunDir, _canary: Canary) -> None:
    bytes_ = run.journal.stat().st_size
    summary: dict[str, Any] = {"id": 7, "path": [], "recipe": {}, "state": "succeeded", "progress": [], "stage": {}}
    summary |= {"step": "\x1b[2J", "total_steps": "x", "ended_t": "y", "last_event_t": [], "health": 3, "reason": None}
    run.exit_json.write_text(json.dumps({"journal_bytes": bytes_, "state": "succeeded", "summary": summary}))


def _forged_end_in_the_journal(run: RunDir, _canary: Canary) -> None:
    add_record(run, RunEnded(state=RunStatus.SUCCEEDED, reason="\x1b]52;c;eA==\x07"), "f1")


def _forged_times(run: RunDir, _canary: Canary) -> None:
    with run.journal.open("a") as file:
        for number, t in enumerate(FORGED_TIMES):
            file.write(
                f'{{"v":1,"w":"t{number}","seq":0,"t":{t},"m":0,"k":"phase","stage":"base","attempt":1,"name":"x"}}\n'
            )


def _hostile_names(run: RunDir, _canary: Canary) -> None:
    text = "\x1b]0;owned\x07\x9b31m\u202e\r\n"
    add_record(run, RunStarted(run=text, recipe=text, reason=StartReason.RESUME, stages=[text], kinds=[text]), "h1")
    add_record(run, StageStarted(stage=text, kind=text, attempt=1), "h2")


def _many_stages(run: RunDir, _canary: Canary, count: int = 1000) -> None:
    stages = [f"s{number}" for number in range(count)]
    with run.journal.open("ab") as file:
        for at in range(0, len(stages), 2000):
            part = stages[at : at + 2000]
            event = RunStarted(
                run=run.id, recipe="x", reason=StartReason.RESUME, stages=part, kinds=["fake"] * len(part)
            )
            file.write(encode_record(event, writer=f"m{at}", seq=0, t=1.0 + at, m=1.0))
        for number, stage in enumerate(stages):
            event_ = StageStarted(stage=stage, kind="fake", attempt=1)
            file.write(encode_record(event_, writer="many", seq=number, t=2.0 + number, m=1.0))


def _many_journals(run: RunDir, _canary: Canary) -> None:
    for number in range(300):
        (run.journal_parts / f"w{number}.jsonl").write_text("{}\n")


def _long_line(run: RunDir, _canary: Canary) -> None:
    with run.journal.open("ab") as file:
        file.write(b"x" * (8 << 20))


def _forged_run_json(**fields: Any) -> Spoil:
    def spoil(run: RunDir, _canary: Canary) -> None:
        value = json.loads(run.run_json.read_text()) | fields
        run.run_json.write_text(json.dumps(value))

    return spoil


def _lock_names_the_canary(run: RunDir, canary: Canary) -> None:
    run.supervisor_lock.write_text(json.dumps(vars(Identity.of(canary.pid))))


def _requests(run: RunDir, _canary: Canary) -> None:
    os.mkfifo(run.control / "000001-stop.json")
    (run.control / "000002-stop.json").symlink_to("/dev/zero")
    (run.control / "000003-stop.json").write_text(DEEP)


def _big_console(run: RunDir, _canary: Canary) -> None:
    with run.console_log("base", 1).open("wb") as file:
        file.truncate(1 << 40)


def _pipe_in_parts(run: RunDir, _canary: Canary) -> None:
    os.mkfifo(run.journal_parts / "p.jsonl")
    (run.journal_parts / "z.jsonl").symlink_to("/dev/zero")


def _own_token(run: RunDir, _canary: Canary) -> None:
    run.launch_token.write_text("ab" * 32)
    run.launch_token.chmod(0o600)


def _token_pipe(run: RunDir, _canary: Canary) -> None:
    os.mkfifo(run.launch_token)


def _attempt_folders(run: RunDir, _canary: Canary) -> None:
    for number in range(2, 1000):
        run.attempt_dir("base", number).mkdir()


def _another_owner(run: RunDir, _canary: Canary) -> None:
    for path in (run.root, *run.root.rglob("*")):
        os.chown(path, ANOTHER_USER, ANOTHER_USER, follow_symlinks=False)


VARIANTS: dict[str, Spoil] = {
    "interpreter-named": _python_is_named,
    "modes-0777": lambda run, _: run.root.chmod(0o777),
    "modes-group": lambda run, _: run.root.chmod(0o770),
    "recipe-writable": lambda run, _: run.recipe_json.chmod(0o666),
    "token-forged": _own_token,
    "token-pipe": _token_pipe,
    "lock-names-canary": _lock_names_the_canary,
    **{
        f"journal-{what}": replaced("journal.jsonl", what) for what in ("folder", "pipe", "device", "loop", "elsewhere")
    },
    **{f"journal-{what}": replaced("journal.jsonl", what) for what in ("deep", "binary", "empty")},
    **{f"exit-{what}": replaced("exit.json", what) for what in ("folder", "pipe", "device", "deep", "list")},
    "exit-forged": _forged_end,
    "exit-forged-types": _forged_end_with_types,
    "journal-forged-end": _forged_end_in_the_journal,
    "journal-forged-times": _forged_times,
    "journal-hostile-names": _hostile_names,
    "journal-1000-stages": _many_stages,
    "journal-long-line": _long_line,
    **{f"parts-{what}": replaced("journal.d", what) for what in ("pipe", "device", "elsewhere")},
    "parts-pipes": _pipe_in_parts,
    "parts-300": _many_journals,
    **{f"run-json-{what}": replaced("run.json", what) for what in ("device", "deep", "list", "pipe")},
    "run-json-types": _forged_run_json(created_t="soon", parent=["\x1b[2J"], recipe={"a": 1}, format="9"),
    "run-json-times": _forged_run_json(created_t=1e308),
    **{f"recipe-{what}": replaced("recipe.json", what) for what in ("folder", "pipe", "device", "deep")},
    **{f"plan-{what}": replaced("plan.json", what) for what in ("pipe", "device")},
    **{f"lock-{what}": replaced("supervisor.lock", what) for what in ("folder", "pipe", "device")},
    **{f"control-{what}": replaced("control", what) for what in ("pipe", "device", "loop", "empty")},
    "control-requests": _requests,
    **{f"stages-{what}": replaced("stages", what) for what in ("pipe", "loop", "device")},
    "stages-1000-attempts": _attempt_folders,
    "console-huge": _big_console,
    "console-pipe": lambda run, _: os.mkfifo(run.console_log("base", 1)),
    "fifo-folder": replaced("live.fifo", "folder"),
    "fifo-device": replaced("live.fifo", "device"),
    "taken-pipe": lambda run, _: replace(taken_requests(run.control), "pipe"),
}
if os.getuid() == 0:
    VARIANTS["another-owner"] = _another_owner


LISTED: dict[str, Spoil] = VARIANTS | {
    "journal-20000-stages": lambda run, canary: _many_stages(run, canary, 20_000),
}
"""What a list of runs meets, besides."""


def strangers(root: Path, canary: Canary) -> Iterator[tuple[str, RunDir]]:
    """A run for each variant, in a folder of runs."""
    for name, spoil in LISTED.items():
        run = stranger(root, name, canary)
        spoil(run, canary)
        yield name, run
