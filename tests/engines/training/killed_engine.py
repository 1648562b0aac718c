"""`python killed_engine.py MODULE…`: engine processes of training stages that die by SIGKILL where a test says.

Each attempt is a forked child, so that imports are paid once; it runs the engine's own host on a `stage.json`. Reads
lines of JSON, `{"stage_json": PATH, "kill": {"at": PLACE, "step": N, "count": K} or null}`, and prints the exit code of
each child. The places:

- `loaded`: model, data and checkpoint are there; no step was computed. `step` is that of the first step.
- `micro-batch`: before the K-th micro-batch of the step; the gradients of those before it exist.
- `applied`: the optimizer has stepped; no record says so.
- `torn`: in the middle of the step's record in the journal.
- `reported`: right after that record.
- `evaluation`: before the K-th forward pass of the evaluation after the step.
- `save`: before the K-th change to files in the save after the step.
- `staging`: before the K-th copy of that save into memory.
- `fsync`: before the K-th file of that save is made durable.
- `in-flight`: the save waits at its K-th change to files until the next step is in the journal.
- `committed`: the checkpoint of the step has its name; no record says so.
- `rotation`: in the rotation after that save; an old checkpoint is gone, and no record says so.
- `output`: before the K-th change to files of the stage's output.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

_CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link"}


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL returned")


class Countdown:
    """Dies at the `count`-th call while it is armed."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.armed = False

    def __call__(self) -> None:
        if self.armed:
            self.left -= 1
            if self.left == 0:
                self.last()

    def last(self) -> None:
        die()

    def during(self, owner: Any, name: str, applies: Callable[..., bool]) -> None:
        """Arm it during calls of a method, if these apply to the step."""
        real = getattr(owner, name)

        def armed(self_: Any, *args: Any, **kwargs: Any) -> Any:
            self.armed = applies(self_, *args)
            try:
                return real(self_, *args, **kwargs)
            finally:
                self.armed = False

        setattr(owner, name, armed)


def before(owner: Any, name: str, call: Callable[[Any, tuple[Any, ...]], None]) -> None:
    """Call something before each call of a method, with its object and arguments."""
    real = getattr(owner, name)

    def wrapped(self_: Any, *args: Any, **kwargs: Any) -> Any:
        call(self_, args)
        return real(self_, *args, **kwargs)

    setattr(owner, name, wrapped)


def before_function(module: Any, name: str, call: Callable[[], None]) -> None:
    """Call something before each call of a module's function."""
    real = getattr(module, name)

    def wrapped(*args: Any) -> Any:
        call()
        return real(*args)

    setattr(module, name, wrapped)


def die_if(condition: bool) -> None:
    if condition:
        die()


def prepare(at: str, step: int, count: int) -> None:
    """Make this process die at a place."""
    import torch

    from engines.context import StageContext
    from engines.events.attempts import Phase
    from engines.events.steps import CheckpointCommitted, CheckpointRemoved, Step
    from engines.finetune import stage as finetune
    from engines.training.saves.staging import _Copies
    from engines.training.saving import CheckpointWriter
    from engines.training.session import Session
    from engines.training.steps.mixin import EngineMixin

    countdown = Countdown(count)

    def on_record(matches: Callable[[Any], bool], call: Callable[[], None], *, late: bool = False) -> None:
        real = StageContext.emit

        def emit(self_: Any, event: Any) -> int:
            if matches(event) and not late:
                call()
            seq = real(self_, event)
            if matches(event) and late:
                call()
            return seq

        setattr(StageContext, "emit", emit)  # noqa: B010 - a method with other types

    def tear() -> None:
        def write(fd: int, data: Any) -> int:
            real_write(fd, bytes(data)[: len(data) // 2])
            die()

        real_write, os.write = os.write, write

    def step_record(event: Any) -> bool:
        return isinstance(event, Step) and event.step == step

    def of_save(_: Any, save: Any) -> bool:
        return bool(save.step == step)

    def watch_files(owner: Any, name: str, part: str, applies: Callable[..., bool]) -> None:
        def heard(event: str, args: tuple[Any, ...]) -> None:
            if event in _CHANGES and isinstance(args[0], str | os.PathLike) and part in str(args[0]):
                if event == "open" and not (args[2] & (os.O_WRONLY | os.O_RDWR)):
                    return  # only read
                countdown()

        sys.addaudithook(heard)
        countdown.during(owner, name, applies)

    match at:
        case "loaded":
            on_record(lambda e: isinstance(e, Phase) and e.name == "first step", die, late=True)
        case "micro-batch":
            before(
                EngineMixin,
                "training_step",
                lambda self, _: die_if(self.state.global_step + 1 == step and len(self.window.losses) + 1 == count),
            )
        case "applied":
            before(Session, "after_optimizer_step", lambda self, _: die_if(self.step == step))
        case "torn":
            on_record(step_record, tear)
        case "reported":
            on_record(step_record, die, late=True)
        case "evaluation":
            before(torch.nn.Embedding, "forward", lambda *_: countdown())
            countdown.during(Session, "evaluate", lambda self: bool(self.step == step))
        case "save":
            watch_files(CheckpointWriter, "_complete", "/checkpoints/", of_save)
        case "staging":
            before(_Copies, "_filled", lambda *_: countdown())
            countdown.during(CheckpointWriter, "_staged", of_save)
        case "fsync":
            before_function(os, "fsync", countdown)
            countdown.during(CheckpointWriter, "_complete", of_save)
        case "in-flight":
            stepped = threading.Event()
            on_record(lambda e: isinstance(e, Step) and e.step == step + 1, stepped.set, late=True)
            countdown.last = lambda: die_if(stepped.wait(300.0))  # type: ignore[method-assign]
            watch_files(CheckpointWriter, "_complete", "/checkpoints/", of_save)
        case "committed":
            on_record(lambda e: isinstance(e, CheckpointCommitted) and e.step == step, die)
        case "rotation":
            saved = [0]
            before(CheckpointWriter, "commit", lambda _, args: saved.append(int(args[0].state.global_step)))
            on_record(lambda e: isinstance(e, CheckpointRemoved) and saved[-1] == step, die)
        case "output":
            watch_files(finetune, "save_model", "out.tmp", lambda *_: True)
            preference = sys.modules.get("engines.preference.stage")
            if preference is not None:
                countdown.during(preference, "save_model", lambda *_: True)
        case _:
            raise ValueError(at)


def attempt(stage_json: str, kill: dict[str, Any] | None) -> NoReturn:
    from engines.host import host_main
    from recipes.stages.registry import modules_of

    if kill is not None:
        prepare(kill["at"], kill["step"], kill.get("count", 1))
    host_main(["killed_engine", stage_json], modules_of("engines.run"))


def main() -> None:
    import torch

    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        importlib.import_module(name)
    answers = os.dup(1)
    os.dup2(2, 1)
    for line in sys.stdin:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            os.close(answers)
            attempt(wanted["stage_json"], wanted["kill"])
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
