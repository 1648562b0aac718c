"""`cockpit run RECIPE`: launch a recipe and follow it."""

from __future__ import annotations

import argparse

from cockpit.forms.find import load_wanted
from cockpit.headless.follow import Signals, say
from cockpit.headless.follow_command import follow
from cockpit.runs.find import runs_root
from cockpit.supervision.launch import launch


def run(args: argparse.Namespace) -> int:
    """Launch, then follow until the end."""
    loaded = load_wanted(args.recipe, args.sets)
    signals = Signals()
    # A batch system's TERM must find us ready as soon as there is a run to stop.
    with signals.caught(termination=True):
        only = [args.stage] if args.stage else []
        launched = launch(loaded, runs_root=runs_root(args.runs_dir), name=args.name, only=only)
        if not (args.detach or args.quiet):
            say(f"run {launched.id} in {launched.root}; leaving does not stop it")
        return follow(launched, args, signals)
