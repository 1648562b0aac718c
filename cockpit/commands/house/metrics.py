"""`cockpit metrics RUN`: the curves of a run as a file, without a browser."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from cockpit.command_line.arguments import add_run
from cockpit.command_line.parser import CommandParser
from cockpit.curves.figure import figure_of
from cockpit.curves.png import png
from cockpit.curves.svg import svg
from cockpit.curves.table import csv_lines
from cockpit.runs.find import find_run, runs_root
from cockpit.runs.reader import read_now
from cockpit.runs.state import RunState
from cockpit.runs.tail import RunTail
from cockpit.text.output import print_out, say
from cockpit.text.safe_text import safe_text
from engines.events.kinds import AnyEvent
from engines.files import atomic_file
from engines.run_dir.paths import RunDir
from engines.words import ExitCode
from recipes.problems import OperatorError, printable


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit metrics`."""
    add_run(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="every step and evaluation as CSV, with all digits (default)")
    form.add_argument("--svg", action="store_true", help="charts as SVG")
    form.add_argument("--png", action="store_true", help="charts as PNG")
    parser.add_argument("--stage", action="append", default=[], metavar="STAGE", help="only this stage (repeatable)")
    parser.add_argument(
        "--log", action="append", default=[], metavar="METRIC", help="logarithmic value axis for a metric (repeatable)"
    )
    parser.add_argument("--out", metavar="FILE", help="write to this file (default: standard output)")
    parser.examples = (
        ("cockpit metrics last --csv > curves.csv", "Write every value of the newest run."),
        ("cockpit metrics last --png --log loss --out curves.png", "Draw its charts, the loss on a logarithmic axis."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Write the file."""
    found = find_run(runs_root(args.runs_dir), args.run)
    state = read_now(found).state
    _require_known(args, state)
    if (args.png or args.svg) and args.out is None and sys.stdout.isatty():
        raise OperatorError("--out — missing; a picture is not printed on a terminal", "give a file: --out curves.svg")
    if args.png or args.svg:
        figure = figure_of(state, stages=args.stage, log=args.log)
        parts: Iterable[bytes] = [png(figure) if args.png else svg(figure).encode()]
    else:
        parts = (line.encode() for line in csv_lines(state, _events(found), args.stage))
    if args.out is None and (args.png or args.svg):
        for part in parts:
            sys.stdout.buffer.write(part)  # not a terminal: checked above
        return ExitCode.DONE
    if args.out is None:
        for part in parts:
            print_out(part.decode(), end="")
        return ExitCode.DONE
    path = Path(args.out).expanduser()
    try:
        with atomic_file(path) as file:
            for part in parts:
                file.write(part)
    except OSError as error:
        raise OperatorError(f"--out — {path} could not be written: {error.strerror or error}") from error
    say(f"wrote {safe_text(path, 400)}")
    return ExitCode.DONE


def _events(run: RunDir) -> Iterator[AnyEvent]:
    for record in RunTail(run.root).rest():
        yield record.event


def _require_known(args: argparse.Namespace, state: RunState) -> None:
    stages = [stage.name for stage in state.stages]
    for name in args.stage:
        if name not in stages:
            raise OperatorError(f"--stage — got {printable(name)}; allowed: {printable(', '.join(stages), 400)}")
    names = list(dict.fromkeys(name for stage in stages for name in state.series_names(stage)))
    for name in args.log:
        if name not in names:
            raise OperatorError(f"--log — got {printable(name)}; allowed: {printable(', '.join(names), 400)}")
