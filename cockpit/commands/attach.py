"""`cockpit attach RUN`: follow a run that was launched before."""

from __future__ import annotations

import argparse

from cockpit.following import follow
from cockpit.headless import Signals
from cockpit.launch import adopt_if_needed
from cockpit.locations import find_run, runs_root


def run(args: argparse.Namespace) -> int:
    """Adopt the run if nobody supervises it, then follow."""
    found = find_run(runs_root(args.runs_dir), args.run)
    adopt_if_needed(found)
    if args.screen:
        code: int = args.open_screen(args.runs_dir, run=found.root)
        return code
    signals = Signals()
    with signals.caught(termination=False):
        return follow(found, args, signals, catching_up=True)
