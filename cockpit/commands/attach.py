"""`cockpit attach RUN`: watch a run that was launched before, on the screen or as lines."""

from __future__ import annotations

import argparse
import sys

from cockpit.headless.follow import Signals
from cockpit.headless.follow_command import follow
from cockpit.runs.find import find_run, runs_root
from cockpit.supervision.launch import adopt_if_needed


def run(args: argparse.Namespace) -> int:
    """Adopt the run if nobody supervises it, then open its screen on a terminal; else follow."""
    found = find_run(runs_root(args.runs_dir), args.run)
    adopt_if_needed(found)
    as_lines = args.plain or args.json or args.quiet
    if not as_lines and sys.stdout.isatty() and sys.stdin.isatty():
        code: int = args.open_screen(args.runs_dir, run=found.root)
        return code
    signals = Signals()
    with signals.caught(termination=False):
        return follow(found, args, signals, catching_up=True)
