"""`cockpit prune`: remove checkpoints and replaced outputs that nothing needs."""

from __future__ import annotations

import argparse
from itertools import groupby

from cockpit.command_line.parser import CommandParser
from cockpit.commands.house.asking import confirmed
from cockpit.keeping.prune import Removal, removals, remove
from cockpit.keeping.uses import Uses, uses_in
from cockpit.runs.find import find_run, run_ids, runs_root
from cockpit.runs.reader import RunReader
from cockpit.text import formatting as fmt
from cockpit.text.output import print_out, say
from cockpit.text.safe_text import safe_text
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import ExitCode
from recipes.problems import OperatorError


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit prune`."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="runs to prune (default: all that are not live)")
    parser.add_argument("--dry-run", action="store_true", help="list what would be removed, and remove nothing")
    parser.add_argument("--yes", action="store_true", help="remove without a question")
    parser.exit_codes = {
        ExitCode.DONE: "it was removed, or there is nothing to remove",
        ExitCode.MISTAKE: "a run does not exist or could not be pruned",
        ExitCode.INTERRUPTED: "the question was answered with no; nothing was removed",
    }
    parser.examples = (
        ("cockpit prune --dry-run", "List the checkpoints and replaced outputs that no run needs, with their sizes."),
        ("cockpit prune last", "Remove those of the newest run, after a question."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """List, ask, remove."""
    root = runs_root(args.runs_dir)
    runs = [find_run(root, name) for name in args.runs] or [RunDir(root / name) for name in run_ids(root)]
    uses = uses_in(root)
    found: list[Removal] = []
    for one in runs:
        try:
            found += _of_run(one, uses)
        except (OperatorError, RunDirError, OSError) as error:
            say(f"{safe_text(one.id, 100)} is left out: {safe_text(error, 300)}")
    for removal in found:
        print_out(f"{fmt.size(removal.bytes):>10}  {safe_text(removal.path.relative_to(root), 300)}  {removal.why}")
    total = f"{fmt.counted(len(found), 'folder')}, {fmt.size(sum(removal.bytes for removal in found))}"
    if not found:
        print_out("nothing to remove: every checkpoint and output is needed")
        return ExitCode.DONE
    if args.dry_run:
        print_out(f"{total} could be removed")
        return ExitCode.DONE
    if not confirmed(f"remove {total}?", yes=args.yes):
        say("nothing was removed")
        return ExitCode.INTERRUPTED
    freed, code = 0, ExitCode.DONE
    for one, items in groupby(found, key=lambda removal: removal.run):
        try:
            freed += sum(removal.bytes for removal in remove(one, list(items), uses))
        except OperatorError as error:  # the other runs are pruned nevertheless
            say(safe_text(error.message, 400))
            code = ExitCode.MISTAKE
    print_out(f"removed {fmt.size(freed)}")
    return code


def _of_run(run: RunDir, uses: Uses) -> list[Removal]:
    """What can be removed from a run; nothing, with a sentence, from a live one."""
    state = RunReader(run, indexed=True).refresh()
    if state.is_live:
        say(f"{safe_text(run.id, 100)} is {state}: it is left as it is")
        return []
    return removals(run, uses)
