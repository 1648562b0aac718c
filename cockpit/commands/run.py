"""`cockpit run RECIPE`: launch a recipe and follow it."""

from __future__ import annotations

import argparse

from cockpit.command_line.arguments import RUN_END_CODES, add_following, add_recipe
from cockpit.command_line.parser import CommandParser
from cockpit.forms.find import load_wanted
from cockpit.headless.follow import Signals, say
from cockpit.headless.follow_command import follow
from cockpit.launching.launch import launch
from cockpit.runs.find import runs_root
from engines.words import ExitCode


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit run`."""
    add_recipe(parser)
    parser.add_argument("--name", metavar="NAME", help="name in the run's id (default: the recipe's name)")
    parser.add_argument("--stage", metavar="STAGE", help="run only this stage and the stages it depends on")
    add_following(parser)
    parser.exit_codes = RUN_END_CODES
    parser.examples = (
        ("cockpit run demo", "Run the shipped demo and follow it; Ctrl-C asks whether to detach or to stop."),
        (
            "cockpit run mine.toml --set base.learning_rate=1e-3 --detach",
            "Start a recipe with a changed field in the background.",
        ),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Launch the recipe, then follow the run to its end."""
    loaded = load_wanted(args.recipe, args.sets)
    signals = Signals()
    # The handler for a batch system's TERM must be installed before there is a run to stop.
    with signals.caught(termination=True):
        only = [args.stage] if args.stage else []
        launched = launch(loaded, runs_root=runs_root(args.runs_dir), name=args.name, only=only)
        if not (args.detach or args.quiet):
            say(f"run {launched.id} in {launched.root}; detaching does not stop it")
        return follow(launched, args, signals)
