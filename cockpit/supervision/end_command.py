"""The command of a recipe for the end of its run: started once, bounded in time, with the result as JSON.

A file that is created before the start, and is never created twice, makes it once: a supervisor that adopts the run
waits for what its predecessor started, and starts nothing itself. So a command may be missing after a crash at the
wrong moment, and never runs twice.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cockpit.provenance.mark import RunMark
from cockpit.supervision.process_tree import kill_tree
from engines.events.runs import CommandEnded
from engines.files import fsync_file, fsync_folder, open_append, open_regular, write_durably
from engines.identity import Identity
from engines.inputs.command import PYTHON, program_of
from engines.json_text import read_json
from engines.run_dir.paths import RunDir
from engines.words import RunStatus
from recipes import quantities
from recipes.schema import Recipe

MAX_OUTPUT_BYTES = 16 << 20
"""Output after which a command is ended."""
SHOWN_BYTES = 2000
GRACE_S = 2.0
_FAILED = frozenset({RunStatus.FAILED, RunStatus.REFUSED})


@dataclass(frozen=True)
class EndCommand:
    """One command of a run.

    Attributes:
        name: its field in the recipe.
        argv: program and arguments.
        timeout_s: seconds until it is ended.
        number: the operator's start for whose end it is.
    """

    run: RunDir
    name: str
    argv: Sequence[str]
    timeout_s: float
    number: int

    @staticmethod
    def of(run: RunDir, recipe: Recipe, state: RunStatus, number: int) -> EndCommand | None:
        """The command for this end; None if the recipe has none for it."""
        name = "on_success" if state == RunStatus.SUCCEEDED else "on_failure" if state in _FAILED else ""
        argv = getattr(recipe, name) if name else []
        return EndCommand(run, name, argv, recipe.command_timeout_s, number) if argv else None

    def carry_out(self, result: bytes, wait: Callable[[], None], is_unwanted: Callable[[], bool]) -> CommandEnded:
        """Start the command and wait for its end, or for the end of the one that an earlier supervisor started.

        Args:
            result: what it reads, as JSON.
            wait: waits a fraction of a second, and serves the screens meanwhile.
            is_unwanted: whether the operator asks to end now.
        """
        began_s = time.monotonic()
        try:
            self._claim(result)
        except FileExistsError:
            return self._of_predecessor(wait, is_unwanted)
        except OSError as error:
            return self._ended(None, f"was not started: its input could not be written: {error.strerror}", began_s)
        try:
            child = self._start()
        except (OSError, ValueError) as error:
            return self._ended(None, f"could not be started: {error}", began_s)
        identity = Identity.of(child.pid) or Identity(child.pid, 0, "")
        with suppress(OSError):
            write_durably(self.run.end_command(self.number, "process.json"), json.dumps(vars(identity)).encode())
        why = self._until_end(lambda: child.poll() is None, wait, is_unwanted)
        if why:
            self._kill([identity])
        status = child.wait()
        self._kill([])  # what it left behind in the background
        return self._ended(status, why or _words(status), began_s)

    def _claim(self, result: bytes) -> None:
        """Write the input under a name that exists once.

        Raises:
            FileExistsError: an earlier supervisor has started the command.
            OSError: it could not be written; then no supervisor has started or will start it.
        """
        path = self.run.end_command(self.number, "json")
        path.parent.mkdir(mode=0o700, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(result)
        fsync_file(path)
        fsync_folder(path.parent)

    def _start(self) -> subprocess.Popen[bytes]:
        folder = self._folder()
        program = sys.executable if self.argv[0] in PYTHON else program_of(self.argv[0], folder)
        if program is None:
            raise ValueError(f"{self.argv[0]} is not a program on this machine")
        log = open_append(self.run.end_command(self.number, "log"))
        try:
            with open_regular(self.run.end_command(self.number, "json")) as result:
                return subprocess.Popen(
                    [program, *self.argv[1:]],
                    stdin=result,
                    stdout=log,
                    stderr=log,
                    cwd=folder,
                    env={**os.environ, **RunMark.of(self.run).environment()},
                    start_new_session=True,
                )
        finally:
            os.close(log)

    def _folder(self) -> Path:
        """The recipe's folder, or the run directory where that does not exist any more."""
        given = self.run.read_run_json().get("recipe_path")
        folder = Path(given).parent if isinstance(given, str) else self.run.root
        return folder if folder.is_dir() else self.run.root

    def _until_end(self, lives: Callable[[], bool], wait: Callable[[], None], is_unwanted: Callable[[], bool]) -> str:
        """Wait; why the command must be ended, or empty when it has ended itself."""
        deadline_s = time.monotonic() + self.timeout_s
        while lives():
            if time.monotonic() > deadline_s:
                return f"was ended after its {quantities.exact(self.timeout_s)} seconds (command_timeout_s)"
            if self._output_bytes() > MAX_OUTPUT_BYTES:
                return f"was ended because it printed more than {MAX_OUTPUT_BYTES >> 20} MiB"
            if is_unwanted():
                return "was ended on request"
            wait()
        return ""

    def _of_predecessor(self, wait: Callable[[], None], is_unwanted: Callable[[], bool]) -> CommandEnded:
        began_s = time.monotonic()
        identity = self._recorded()
        mark = RunMark.of(self.run)
        if identity is not None and identity.is_alive() and mark.is_carried_by(identity.pid):
            self._until_end(identity.is_alive, wait, is_unwanted)
        self._kill([])
        detail = "was started by a supervisor that died; its exit status is unknown, and it is not started again"
        return self._ended(None, detail, began_s)

    def _recorded(self) -> Identity | None:
        try:
            value = read_json(self.run.end_command(self.number, "process.json"), 4096)
            return Identity(int(value["pid"]), int(value["start_time"]), str(value["boot_id"]))
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None

    def _kill(self, roots: list[Identity]) -> None:
        kill_tree(self.run.root, roots, term_grace_s=GRACE_S, keep=frozenset(root.pid for root in roots))

    def _output_bytes(self) -> int:
        with suppress(OSError):
            return self.run.end_command(self.number, "log").stat().st_size
        return 0

    def _ended(self, status: int | None, detail: str, began_s: float) -> CommandEnded:
        return CommandEnded(
            command=self.name,
            number=self.number,
            argv=[word[:200] for word in self.argv[:20]],
            exit=status,
            detail=detail,
            took_s=round(time.monotonic() - began_s, 3),
            output=self._last_output(),
        )

    def _last_output(self) -> str:
        path = self.run.end_command(self.number, "log")
        with suppress(OSError), open_regular(path) as log:
            log.seek(max(0, path.stat().st_size - SHOWN_BYTES))
            return log.read(SHOWN_BYTES).decode(errors="replace").strip()
        return ""


def _words(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
    return f"was ended by {name}"
