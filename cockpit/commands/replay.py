"""`cockpit replay RUN|FILE`: play back a run, on the screen or as the lines that were printed live. Starts nothing."""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from cockpit.command_line.arguments import speed
from cockpit.command_line.parser import CommandParser
from cockpit.headless.follow import Display, OutputClosedError, write_out
from cockpit.headless.follow_command import warn_of_unreadable
from cockpit.headless.lines import JsonLines, LiveLines, PlainLines
from cockpit.headless.report import report_lines
from cockpit.runs.find import find_run, runs_root
from cockpit.runs.state import RunState
from cockpit.runs.tail import RunTail
from engines.journal import Record
from engines.run_dir.paths import is_run_dir
from engines.words import ExitCode

BATCH = 500
LONGEST_SLEEP_S = 86_400.0
"""The system refuses to sleep for the years that a very small `--speed` asks for."""


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit replay`."""
    parser.add_argument(
        "run",
        metavar="RUN|FILE",
        help="a run's id, a unique prefix of the id, a run directory, last, or a journal file",
    )
    parser.add_argument(
        "--speed",
        type=speed,
        metavar="X|max",
        help="multiple of real time, or max (default: 8 on the screen, max for lines)",
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--plain", action="store_true", help="print lines instead of opening the screen")
    how.add_argument("--json", action="store_true", help="print only the lines of the run's journal")
    parser.examples = (
        ("cockpit replay last --speed 10", "Play back the newest run on the screen, ten times as fast."),
        ("cockpit replay last --plain", "Print the lines that were printed during the run."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Open the Replay screen on a terminal, else print lines."""
    source = _source(args)
    if not (args.plain or args.json) and sys.stdout.isatty() and sys.stdin.isatty():
        code: ExitCode = args.open_screen(args.runs_dir, replay=source, speed=args.speed)
        return code
    tail = RunTail(source)
    paced = args.speed is not None and math.isfinite(args.speed)
    display: Display = JsonLines() if args.json else LiveLines() if paced and sys.stdout.isatty() else PlainLines()
    state = RunState()
    try:
        for batch in _batches(tail.rest(), args.speed if paced else None):
            state.apply_all(record.event for record in batch)
            display.show(batch, state)
            display.tick(state)
        display.close()
        if not args.json:
            write_out("\n".join(["", *report_lines(state, reasons=False)]) + "\n")
    except OutputClosedError:
        return ExitCode.DONE
    state.unreadable, state.unknown = tail.bad, tail.unknown
    warn_of_unreadable(state)
    return ExitCode.DONE


def _source(args: argparse.Namespace) -> Path:
    """A journal file, or a run directory."""
    path = Path(args.run).expanduser()
    if path.is_file():
        return path.absolute()
    wanted = args.run if os.sep in args.run or not is_run_dir(path) else f".{os.sep}{args.run}"
    return find_run(runs_root(args.runs_dir), wanted).root


def _batches(records: Iterable[Record], speed: float | None) -> Iterator[list[Record]]:
    """Records in batches; with a speed, one at a time, each at its own time."""
    if speed is None:
        portion: list[Record] = []
        for record in records:
            portion.append(record)
            if len(portion) >= BATCH:
                yield portion
                portion = []
        yield portion
        return
    begun_s, first_t = time.monotonic(), None
    for record in records:
        first_t = record.event.t if first_t is None else first_t
        due_s = begun_s + (record.event.t - first_t) / speed
        while (wait_s := due_s - time.monotonic()) > 0:
            time.sleep(min(wait_s, LONGEST_SLEEP_S))
        yield [record]
