"""The command line: the parser, the exit codes and the error messages; each command is a module in `cockpit/commands/`.

This module imports nothing heavy, and only this module opens the screen: `cockpit --help` takes a tenth of a second,
and headless commands do not load Textual. stdout is for output, stderr for diagnostics.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import cockpit
from cockpit.command_line.arguments import add_runs_dir
from cockpit.command_line.parser import CommandParser
from cockpit.commands import PURPOSES, module_of
from cockpit.text.output import say
from engines.words import ExitCode

if TYPE_CHECKING:
    from cockpit.forms.rows_target import RowsTarget
    from cockpit.talking.answers_target import AnswersTarget
    from cockpit.talking.target import ChatTarget
    from cockpit.talking.votes import Votes

PURPOSE = "train language models from a recipe; without a command, open the screen"
EXIT_CODES = {
    ExitCode.DONE: "done",
    ExitCode.FAILED: "the run failed, or a check failed",
    ExitCode.MISTAKE: "wrong usage or an invalid recipe; nothing was started",
    ExitCode.REFUSED: "a gate failed",
    ExitCode.INTERRUPTED: "interrupted, or the run was stopped",
}
ENVIRONMENT = {
    "COCKPIT_RUNS_DIR": "folder of the runs; --runs-dir overrides it",
    "COCKPIT_MODELS": "folders with models that cockpit models lists, separated as in PATH",
    "COCKPIT_LLAMA_CPP": "your llama.cpp: a folder that contains llama-quantize, or a checkout with a build in it",
    "COCKPIT_LLAMA_CPP_PYTHON": "Python interpreter for the conversion script of your llama.cpp checkout",
    "COCKPIT_THEME": "theme of the screen: cockpit, cockpit-light, ansi-dark or ansi-light",
    "COCKPIT_GLYPHS": "ascii draws the screen without braille and other symbols",
}
EXAMPLES = (
    ("cockpit run demo", "Train the shipped demo, from source text to quantized files."),
    ("cockpit run --help", "Explain one command."),
)


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Run one command; returns the exit code."""
    _complete_standard_streams()
    try:
        parser = build_parser()
        args = parser.parse_args(argv)
        args.runs_dir = getattr(args, "runs_dir", None)
        args.open_screen, args.parser = open_screen, parser
        if args.command is None:
            return open_screen(args.runs_dir)
        code = _command(args.command).run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of the output closed the pipe (`| head -1`). Without this, Python reports the error again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.DONE
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO) or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say(f"cockpit: could not write the output: {error.strerror}")
        return ExitCode.FAILED
    except _operator_errors() as error:  # evaluated only when an exception was raised
        _report(error)
        return ExitCode.MISTAKE
    return code


def _complete_standard_streams() -> None:
    """Open the streams that the caller closed (`>&-`), and print `?` for what the output's encoding does not have.

    The lowest free number is opened first, so no file of a run gets the number of a standard stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
            os.set_inheritable(getattr(sys, name).fileno(), True)
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper) and (out.errors == "strict" or out.encoding.lower() != "utf-8"):
        out.reconfigure(errors="replace")


def open_screen(
    runs_dir: str | None,
    *,
    run: Path | None = None,
    replay: Path | None = None,
    speed: float | None = None,
    rows: RowsTarget | None = None,
    chat: ChatTarget | None = None,
    votes: Votes | None = None,
    answers: AnswersTarget | None = None,
) -> ExitCode:
    """Open the terminal screen: at Home, at a run, replaying a journal, or at rows of data.

    Args:
        runs_dir: `--runs-dir` as given.
        run: directory of the run to open at.
        replay: run directory or journal file to play back.
        speed: playback speed, a multiple of real time; infinite for as fast as possible; None for the screen's default.
        rows: rows of data to show.
        chat: models to talk with.
        votes: answers to choose between.
        answers: answers of an evaluation to show.
    """
    from cockpit.runs.find import runs_root
    from recipes.problems import OperatorError

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise OperatorError(
            "the screen needs a terminal", "without a terminal: cockpit run, ls, show, attach, replay --plain"
        )
    if os.environ.get("TERM", "") in ("", "dumb", "unknown"):
        raise OperatorError(
            f"the screen needs a terminal that can move its cursor; TERM is {os.environ.get('TERM', '')!r}",
            "set TERM, for example TERM=xterm-256color, or use: cockpit run, ls, show, attach --plain, replay --plain",
        )
    from cockpit.tui.app import CockpitApp

    app = CockpitApp(
        runs_root(runs_dir),
        open_run=run,
        replay=replay,
        speed=speed,
        rows=rows,
        chat=chat,
        votes=votes,
        answers=answers,
    )
    app.run()
    return {0: ExitCode.DONE, ExitCode.INTERRUPTED: ExitCode.INTERRUPTED}.get(app.return_code or 0, ExitCode.FAILED)


def _report(error: Exception) -> None:
    """Print the error and its hint on stderr."""
    from cockpit.text.safe_text import error_text

    say(error_text(error, getattr(error, "hint", "")))


def _operator_errors() -> tuple[type[Exception], ...]:
    """Exceptions that are reported in two lines; any other exception is a bug in Cockpit and shows its traceback."""
    from engines.run_dir.paths import RunDirError
    from recipes.problems import OperatorError

    return OperatorError, RunDirError


class _Command(Protocol):
    """A module in `cockpit/commands/`."""

    def declare(self, parser: CommandParser) -> None: ...

    def run(self, args: argparse.Namespace) -> ExitCode: ...


def _command(name: str) -> _Command:
    return cast(_Command, importlib.import_module(module_of(name)))


def build_parser() -> CommandParser:
    """The parser of all commands; a command's module is imported when its parser is first used."""
    parser = CommandParser(prog="cockpit", purpose=PURPOSE)
    parser.add_argument(
        "--version", action="version", version=f"cockpit {cockpit.__version__}", help="print the version"
    )
    add_runs_dir(parser)
    parser.add_commands(PURPOSES, _declare)
    parser.exit_codes = EXIT_CODES
    parser.environment = ENVIRONMENT
    parser.examples = EXAMPLES
    return parser


def _declare(name: str, parser: CommandParser) -> None:
    add_runs_dir(parser)
    _command(name).declare(parser)


if __name__ == "__main__":
    sys.exit(main())
