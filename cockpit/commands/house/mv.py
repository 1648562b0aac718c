"""`cockpit mv RUN NAME`: rename a run."""

from __future__ import annotations

import argparse

from cockpit.command_line.arguments import add_run
from cockpit.command_line.parser import CommandParser
from cockpit.keeping.rename import rename
from cockpit.runs.find import find_run, runs_root
from cockpit.text.output import print_out
from engines.words import ExitCode


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit mv`."""
    add_run(parser)
    parser.add_argument("name", metavar="NAME", help="the new name in the run's id; the date before it is kept")
    parser.examples = (("cockpit mv last baseline", "Rename 20261120-2130-atlas to 20261120-2130-baseline."),)


def run(args: argparse.Namespace) -> ExitCode:
    """Rename it; prints the new id."""
    found = find_run(runs_root(args.runs_dir), args.run)
    print_out(rename(found, args.name).id)
    return ExitCode.DONE
