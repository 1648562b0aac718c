"""`cockpit completion SHELL`: the script with which a shell completes commands, options, runs and recipes."""

from __future__ import annotations

import argparse
import re

from cockpit.command_line import bash, fish, zsh
from cockpit.command_line.parser import CommandParser
from cockpit.runs.find import run_ids, runs_root
from cockpit.text.output import print_out
from engines.run_dir.paths import RunDir
from engines.words import ExitCode
from recipes.problems import OperatorError
from recipes.shipped import shipped_recipes

SCRIPTS = {"bash": bash.script, "zsh": zsh.script, "fish": fish.script}


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit completion`."""
    parser.add_argument("shell", nargs="?", choices=tuple(SCRIPTS), help="the shell that will read the script")
    # The scripts call this when the user presses Tab.
    parser.add_argument("--values", choices=("runs", "stages", "recipes"), help=argparse.SUPPRESS)
    parser.examples = (
        ('eval "$(cockpit completion bash)"', "bash: add this line to ~/.bashrc."),
        ("cockpit completion zsh > ~/.zfunc/_cockpit", "zsh: write it to a folder of fpath, before compinit."),
        (
            "cockpit completion fish > ~/.config/fish/completions/cockpit.fish",
            "fish: write it to the completions folder.",
        ),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Print the script, or with `--values` the candidates that a script requests."""
    if args.values is not None:
        print_out("\n".join(_values(args)))
    elif args.shell is None:
        raise OperatorError(f"SHELL — missing; allowed: {', '.join(SCRIPTS)}", "see: cockpit completion --help")
    else:
        print_out(SCRIPTS[args.shell](args.parser), end="")
    return ExitCode.DONE


def _values(args: argparse.Namespace) -> list[str]:
    """Names of one kind, newest first, without those that a shell could misinterpret."""
    if args.values == "recipes":
        return [path.stem for path in shipped_recipes()]
    root = runs_root(args.runs_dir)
    runs = [("last", name) for name in run_ids(root)[:1]] + [(name, name) for name in run_ids(root)]
    if args.values == "runs":
        names = [shown for shown, _ in runs]
    else:
        names = [f"{shown}:{out.parent.name}" for shown, run in runs for out in RunDir(root / run).all_outs()]
    return [name for name in names if re.fullmatch(r"[\w.:+-]+", name)]
