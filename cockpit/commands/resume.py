"""`cockpit resume RUN`: let a run that ended go on."""

from __future__ import annotations

import argparse

from cockpit.headless.follow import Signals, say
from cockpit.headless.follow_command import follow
from cockpit.runs.find import find_run, runs_root
from cockpit.supervision.launch import resume


def run(args: argparse.Namespace) -> int:
    """Resume, then follow until the end."""
    found = find_run(runs_root(args.runs_dir), args.run)
    signals = Signals()
    with signals.caught(termination=True):
        resume(found, stage=args.stage, checkpoint=args.checkpoint)
        if not (args.detach or args.quiet):
            say(f"run {found.id} goes on; leaving does not stop it")
        return follow(found, args, signals, catching_up=True)
