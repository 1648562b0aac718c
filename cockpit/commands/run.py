"""`cockpit run RECIPE`: launch a recipe and follow it."""

from __future__ import annotations

import argparse

from cockpit.following import follow
from cockpit.headless import Signals, say
from cockpit.launch import launch
from cockpit.locations import runs_root
from cockpit.recipe_files import load_wanted


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
