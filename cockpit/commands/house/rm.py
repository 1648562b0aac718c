"""`cockpit rm RUN…`: remove runs."""

from __future__ import annotations

import argparse

from cockpit.command_line.parser import CommandParser
from cockpit.commands.house.asking import confirmed
from cockpit.keeping.remove import leftovers, refuse_live, refuse_used, remove_leftover, remove_run, users_of
from cockpit.keeping.sizes import Sizes, sizes_of
from cockpit.runs.find import find_run, runs_root
from cockpit.text import formatting as fmt
from cockpit.text.output import print_out, say
from cockpit.text.safe_text import safe_text
from engines.run_dir.paths import RunDir
from engines.words import ExitCode
from recipes.problems import OperatorError


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit rm`."""
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="a run's id, a unique prefix of the id, or a run directory"
    )
    parser.add_argument("--yes", action="store_true", help="remove without a question")
    parser.add_argument(
        "--force", action="store_true", help="also remove runs that artifacts of other runs were made from"
    )
    parser.exit_codes = {
        ExitCode.DONE: "the runs were removed",
        ExitCode.MISTAKE: "a run is live, is an ancestor of another one, or does not exist; nothing was removed",
        ExitCode.INTERRUPTED: "the question was answered with no; nothing was removed",
    }
    parser.examples = (
        ("cockpit rm 20261120-2130-atlas", "List what goes, ask, and remove the run."),
        ("cockpit rm 20261120-2130-atlas 20261120-2145-atlas --yes", "Remove two runs without a question."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Check all runs, list what goes, ask, remove."""
    root = runs_root(args.runs_dir)
    runs = list({found.root: found for found in (_exactly(root, name) for name in args.runs)}.values())
    refuse_live(runs)
    if not args.force:
        refuse_used(users_of(runs, root))
    sizes = {one.id: sizes_of(one) for one in runs}
    for one in runs:
        say(f"{safe_text(one.id, 100)}: {_words(sizes[one.id])}, in {safe_text(one.root, 400)}")
    total = fmt.size(sum(size.total for size in sizes.values()))
    if not confirmed(f"remove {fmt.counted(len(runs), 'run')}, {total}?", yes=args.yes):
        say("nothing was removed")
        return ExitCode.INTERRUPTED
    refuse_live(runs)  # one may have been resumed since the question
    for one in runs:
        remove_run(one)
        print_out(f"removed {safe_text(one.id, 100)}, {fmt.size(sizes[one.id].total)}")
    for folder in leftovers(root):
        try:
            remove_leftover(folder)
        except OSError as error:
            say(f"{safe_text(folder, 400)} could not be removed: {error.strerror or error}")
    return ExitCode.DONE


def _exactly(root: object, name: str) -> RunDir:
    """The run; `last` is refused, because it names another run as soon as one is started.

    Raises:
        OperatorError: no run has this name.
    """
    if name == "last":
        raise OperatorError("RUN — got last; allowed: an id or a prefix of one", "list the runs: cockpit ls")
    return find_run(runs_root(str(root)), name)


def _words(sizes: Sizes) -> str:
    shown = [f"{part} {fmt.size(size)}" for part, size in sizes.parts.items() if size]
    return f"{fmt.size(sizes.total)}{' or more' if not sizes.complete else ''} ({', '.join(shown) or 'no files'})"
