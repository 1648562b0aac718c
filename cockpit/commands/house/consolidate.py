"""`cockpit consolidate`: write the whole weights of a checkpoint in shards."""

from __future__ import annotations

import argparse
from pathlib import Path

from cockpit.command_line.parser import CommandParser
from cockpit.launching.run_outputs import checkpoint_of
from cockpit.runs.find import find_run, runs_root
from cockpit.text import formatting as fmt
from cockpit.text.output import print_out
from cockpit.text.safe_text import safe_text
from engines.artifacts.consolidate import consolidate
from engines.words import ExitCode
from recipes.graph import RUN_STAGE
from recipes.problems import OperatorError, printable


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit consolidate`."""
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="the folder of a checkpoint, or RUN:STAGE@STEP of a run that has ended"
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="the new folder of the model")
    parser.exit_codes = {
        ExitCode.DONE: "the model was written",
        ExitCode.MISTAKE: "the checkpoint is damaged or is not in shards, or the folder exists",
    }
    parser.examples = (
        ("cockpit consolidate last:base@400 --out ./base-400", "Write the model of step 400, for a chat or an export."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Find, check, write."""
    out = Path(args.out).expanduser().absolute()
    written = consolidate(_checkpoint(runs_root(args.runs_dir), args.checkpoint), out)
    print_out(f"wrote {safe_text(out, 400)}, {fmt.size(written)}")
    return ExitCode.DONE


def _checkpoint(root: Path, wanted: str) -> Path:
    """The folder of a checkpoint.

    Raises:
        OperatorError: no checkpoint has this name.
    """
    folder = Path(wanted).expanduser()
    if folder.is_dir():
        return folder.absolute()
    named = RUN_STAGE.fullmatch(wanted)
    if named is None or named[3] is None:
        raise OperatorError(
            f"CHECKPOINT — no folder {printable(wanted, 400)}; allowed: the folder of a checkpoint, or RUN:STAGE@STEP",
            "the steps of a run: cockpit show RUN",
        )
    return checkpoint_of(find_run(root, named[1]), named[2], int(named[3])).path
