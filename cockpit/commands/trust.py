"""`cockpit trust RUN`: allow Cockpit to act on a run that this user did not launch on this machine."""

from __future__ import annotations

import argparse
import sys

from cockpit.command_line.arguments import add_run
from cockpit.command_line.parser import CommandParser
from cockpit.headless.follow import write_out
from cockpit.launching.trusting import trust, what_would_start
from cockpit.provenance.trust import require_ours, why_untrusted
from cockpit.runs.find import find_run, runs_root
from cockpit.text.output import say
from engines.run_dir.paths import RunDir
from engines.words import ExitCode
from recipes.problems import OperatorError


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit trust`."""
    add_run(parser)
    parser.add_argument("--yes", action="store_true", help="trust the run without asking")
    parser.exit_codes = {
        ExitCode.DONE: "the run is trusted",
        ExitCode.MISTAKE: "another user owns the run or may write it, or there was no terminal to ask on",
        ExitCode.INTERRUPTED: "the answer was no; nothing was changed",
    }
    parser.examples = (
        ("cockpit trust last", "List what the newest run would start, ask, and allow resume and stop."),
        ("cockpit trust /data/copied-run --yes", "Trust a copied run without asking."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """List the commands, ask, and record the trust."""
    found = find_run(runs_root(args.runs_dir), args.run)
    reason = why_untrusted(found)
    if not reason:
        write_out(f"{found.id} is already trusted\n")
        return ExitCode.DONE
    require_ours(found)
    found.require_writable_format()
    lines = [f"  {line}" for line in what_would_start(found)]
    write_out("\n".join([f"{found.id}: {reason}", "", "A resume could start, as you:", *lines]) + "\n")
    if not args.yes and not _confirmed(found):
        return ExitCode.INTERRUPTED
    trust(found)
    write_out(f"{found.id} is trusted\n")
    return ExitCode.DONE


def _confirmed(found: RunDir) -> bool:
    """The operator's answer.

    Raises:
        OperatorError: there is no terminal to ask on.
    """
    if not sys.stdin.isatty():
        raise OperatorError(f"{found.id} was not trusted: there is no terminal to ask on", "without a terminal: --yes")
    say("Trust this run? [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in {"y", "yes"}
