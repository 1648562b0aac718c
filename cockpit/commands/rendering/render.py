"""`cockpit render slurm RECIPE`: print the batch script with which Slurm starts a recipe."""

from __future__ import annotations

import argparse
from pathlib import Path

from cockpit.command_line.arguments import add_recipe
from cockpit.command_line.parser import CommandParser
from cockpit.forms.find import load_wanted
from cockpit.planning.slurm import SlurmOptions, slurm_script
from cockpit.runs.find import runs_root
from cockpit.text.output import print_out
from engines.words import ExitCode
from recipes.problems import OperatorError

_MOST = 100_000


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit render`."""
    parser.add_argument("system", choices=["slurm"], help="the program that reads the script")
    add_recipe(parser)
    parser.add_argument("--time", metavar="LIMIT", default="", help="time limit of the job, such as 24:00:00 or 2-00")
    parser.add_argument("--partition", metavar="NAME", default="", help="partition of the job")
    parser.add_argument("--account", metavar="NAME", default="", help="account of the job")
    parser.add_argument(
        "--cpus", metavar="N", type=int, default=None, help="processors of each host (default: the whole host)"
    )
    parser.add_argument(
        "--gpus", metavar="N", type=int, default=None, help="GPUs of each host (default: one for each process)"
    )
    parser.exit_codes = {
        ExitCode.DONE: "the script is printed",
        ExitCode.MISTAKE: "the recipe has problems, or a value is no word of a script",
    }
    parser.examples = (
        ("cockpit render slurm mine.toml --time 24:00:00 > mine.sbatch", "Write the script of a job of one day."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Print the script.

    Raises:
        OperatorError: a value cannot be part of a script.
        RecipeError: the recipe has problems.
    """
    for option, value in (("--cpus", args.cpus), ("--gpus", args.gpus)):
        least = 1 if option == "--cpus" else 0
        if value is not None and not least <= value <= _MOST:
            raise OperatorError(f"{option} — got {value}; allowed a whole number from {least} to {_MOST}", "")
    loaded = load_wanted(args.recipe, args.sets, runs_root(None), paths_here=False)
    options = SlurmOptions(args.time, args.partition, args.account, args.cpus, args.gpus)
    print_out(slurm_script(loaded, Path(loaded.path), tuple(args.sets), options), end="")
    return ExitCode.DONE
