"""`cockpit run RECIPE`: launch a recipe and follow it."""

from __future__ import annotations

import argparse
from pathlib import Path

from cockpit.command_line.arguments import RUN_END_CODES, add_following, add_recipe, step
from cockpit.command_line.parser import CommandParser
from cockpit.forms.find import load_wanted
from cockpit.headless.follow import Signals
from cockpit.headless.follow_command import follow
from cockpit.launching.launch import launch
from cockpit.launching.start_from import recipe_from
from cockpit.runs.find import runs_root
from cockpit.supervision.engine_process import what_it_shares
from cockpit.text.output import say
from engines.words import ExitCode
from recipes.load import LoadedRecipe
from recipes.problems import OperatorError


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit run`."""
    add_recipe(parser, optional=True)
    parser.add_argument(
        "--from",
        metavar="RUN:STAGE",
        dest="start",
        help="instead of RECIPE: run this stage of another run again, and what depends on it; a stage that trains"
        " starts from its finished weights, with a new optimizer",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="STEP",
        type=step,
        help="with --from: continue training from this step's checkpoint, with its optimizer and schedule",
    )
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
        (
            "cockpit run --from last:tuned --set tuned.num_train_epochs=2",
            "Train two more epochs, from the finished weights of a stage.",
        ),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Launch the recipe, then follow the run to its end."""
    root = runs_root(args.runs_dir)
    loaded, parent = _recipe(args, root)
    signals = Signals()
    # The handler for a batch system's TERM must be installed before there is a run to stop.
    with signals.caught(termination=True):
        only = [args.stage] if args.stage else []
        launched = launch(loaded, runs_root=root, name=args.name, only=only, parent=parent)
        if not (args.detach or args.quiet):
            say(f"run {launched.id} in {launched.root}; detaching does not stop it")
        if args.detach and not args.quiet:  # a follower reads it in the journal
            for words in what_it_shares(launched, loaded.recipe.stage[0]):
                say(words)
        return follow(launched, args, signals)


def _recipe(args: argparse.Namespace, root: Path) -> tuple[LoadedRecipe, str | None]:
    """The recipe, and the run that it starts from.

    Raises:
        OperatorError: neither RECIPE nor --from is given, or both are; or the recipe has problems.
    """
    if args.start is not None and args.recipe is not None:
        raise OperatorError("--from — cannot be combined with RECIPE", "give one of the two")
    if args.start is not None:
        loaded, run = recipe_from(root, args.start, args.checkpoint, args.sets, args.stage)
        return loaded, run.id
    if args.recipe is None:
        raise OperatorError(
            "RECIPE — missing; allowed: a recipe file, the name of a shipped recipe, or --from RUN:STAGE"
        )
    if args.checkpoint is not None:
        raise OperatorError("--checkpoint — needs --from RUN:STAGE", "or continue a run itself: cockpit resume RUN")
    return load_wanted(args.recipe, args.sets, root), None
