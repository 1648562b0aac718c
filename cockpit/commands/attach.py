"""`cockpit attach RUN`: follow a run that was launched before, on the screen or as lines."""

from __future__ import annotations

import argparse
import sys

from cockpit.command_line.arguments import RUN_END_CODES, add_output, add_run
from cockpit.command_line.parser import CommandParser
from cockpit.headless.follow import Signals
from cockpit.headless.follow_command import follow
from cockpit.launching.adoption import ATTACH, adopt
from cockpit.runs.find import find_run, runs_root
from engines.words import ExitCode


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit attach`."""
    add_run(parser)
    add_output(parser, plain=True)
    parser.add_argument(
        "--all", action="store_true", help="with --plain: print every line since the launch, not the newest"
    )
    parser.exit_codes = {**RUN_END_CODES, ExitCode.DONE: "the run succeeded, or its screen was closed"}
    parser.examples = (
        ("cockpit attach last", "Open the newest run on the screen."),
        ("cockpit attach last --plain", "Follow it as lines; Ctrl-C asks whether to detach or to stop."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Open the screen on a terminal, else follow as lines; both start a supervisor if an engine runs without one."""
    found = find_run(runs_root(args.runs_dir), args.run)
    as_lines = args.plain or args.json or args.quiet
    if not as_lines and sys.stdout.isatty() and sys.stdin.isatty():
        code: ExitCode = args.open_screen(args.runs_dir, run=found.root)  # the screen adopts, after its first paint
        return code
    adopt(found, ATTACH)
    signals = Signals()
    with signals.caught(termination=False):
        return follow(found, args, signals, past=args.all)
