"""Run the command whose output is the data, and record what ran: its arguments, its files and its output by hash."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.data.preparing.room import refuse_a_full_disk
from engines.files import file_sha256, open_regular
from engines.inputs.command import OUT_WORD, PYTHON, files_of_command, missing_of_command, program_of
from recipes.problems import OperatorError, printable

ERROR_LINES = 8
LISTED_FILES = 200
"""Most output files that the record lists one by one."""
_ERROR_BYTES = 64 * 1024
_LOOK_S = 0.1
_GRACE_S = 5.0
Waiting = Callable[[int], None]


@dataclass(frozen=True)
class CommandOutput:
    """What a command left: `place` is a file or a folder with the data, `record` is for the metadata."""

    place: Path
    record: dict[str, Any]


def run_command(command: Sequence[str], folder: Path, scratch: Path, waiting: Waiting) -> CommandOutput:
    """Run a command and wait for its end.

    Its standard output is the data, as JSON Lines. A command with `{out}` among its arguments writes files instead:
    `{out}` becomes the path of a new folder, and standard output belongs to the log. The words python and python3 mean
    the interpreter of the stage.

    Args:
        command: the program and its arguments; no shell reads them.
        folder: the working directory.
        scratch: an existing folder for the output.
        waiting: called several times a second with the bytes of standard output so far; an exception from it ends the
            command.

    Raises:
        OperatorError: the program cannot be started, exits with a status other than 0, gives no output, or fills the
            disk.
    """
    program = _program(command, folder)
    target = scratch / "command-output"
    target.mkdir()
    into_folder = any(OUT_WORD in word for word in command)
    argv = [program, *(word.replace(OUT_WORD, str(target)) for word in command[1:])]
    printed, errors = scratch / "command.jsonl", scratch / "command.log"
    before = _hashes(files_of_command(command, folder))
    status = _finished(argv, folder, printed, errors, waiting)
    if status:
        raise OperatorError(f"the command {_words(command)} {_end(status)}{_last_lines(errors)}", _hint(folder))
    if _hashes(files_of_command(command, folder)) != before:
        raise OperatorError(f"a file of the command {_words(command)} changed while it ran", "resume the run")
    place = target if into_folder else printed
    return CommandOutput(place, _record(command, folder, program, before, place))


def _program(command: Sequence[str], folder: Path) -> str:
    if missing := missing_of_command(command, folder):
        raise OperatorError(f"command — {missing}", _hint(folder))
    found = sys.executable if command[0] in PYTHON else program_of(command[0], folder)
    assert found is not None, "a missing program is refused above"
    return found


def _finished(argv: list[str], folder: Path, printed: Path, errors: Path, waiting: Waiting) -> int:
    """Run a program to its end; returns its exit status, negative for a signal."""
    with printed.open("wb") as out, errors.open("wb") as log:
        try:
            process = subprocess.Popen(
                argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=log, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise OperatorError(f"command — {printable(argv[0], 200)} cannot be started: {error}") from error
        handle = os.pidfd_open(process.pid)
        try:
            while not _has_ended(handle, _LOOK_S):
                refuse_a_full_disk(printed.parent)
                waiting(printed.stat().st_size)
        finally:
            _end_all(process, handle)
            os.close(handle)
        return process.returncode


def _has_ended(handle: int, timeout_s: float) -> bool:
    return bool(select.select([handle], [], [], timeout_s)[0])


def _end_all(process: subprocess.Popen[bytes], handle: int) -> None:
    """End a command, and what it started in its group: that could still write the rows while they are read.

    The command is not reaped before, so that its group's number belongs to no other group.
    """
    if not _has_ended(handle, 0):
        with contextlib.suppress(PermissionError):
            os.killpg(process.pid, signal.SIGTERM)
        _has_ended(handle, _GRACE_S)
    with contextlib.suppress(PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _record(command: Sequence[str], folder: Path, program: str, files: dict[str, str], place: Path) -> dict[str, Any]:
    listed = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.is_file())
    if not any(path.stat().st_size for path in listed):
        how = f"wrote no files into {OUT_WORD}" if place.is_dir() else "printed nothing"
        raise OperatorError(
            f"the command {_words(command)} {how}",
            f"print the rows as JSON Lines, or write files into the folder that the argument {OUT_WORD} names",
        )
    names = {path: path.name if place.is_file() else path.relative_to(place).as_posix() for path in listed}
    return {
        "argv": list(command),
        "folder": str(folder),
        "program": program,
        "program_sha256": file_sha256(Path(program)),
        "files": files,
        "output": [
            {"path": names[path], "bytes": path.stat().st_size, "sha256": file_sha256(path)}
            for path in listed[:LISTED_FILES]
        ],
        "output_files": len(listed),
        "output_bytes": sum(path.stat().st_size for path in listed),
    }


def _hashes(files: list[tuple[str, Path]]) -> dict[str, str]:
    return {name: file_sha256(path) for name, path in files}


def _words(command: Sequence[str]) -> str:
    return printable(" ".join(command), 200)


def _end(status: int) -> str:
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"


def _last_lines(errors: Path) -> str:
    with open_regular(errors) as log:
        log.seek(max(errors.stat().st_size - _ERROR_BYTES, 0))
        lines = log.read(_ERROR_BYTES).decode(errors="replace").strip().splitlines()[-ERROR_LINES:]
    return "; its last lines: " + printable(" | ".join(lines), 1000) if lines else ""


def _hint(folder: Path) -> str:
    return f"try it by hand in {folder}"
