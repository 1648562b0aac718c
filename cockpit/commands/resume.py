"""`cockpit resume RUN`: continue a run that has ended."""

from __future__ import annotations

import argparse

from cockpit.command_line.arguments import RUN_END_CODES, add_following, add_run, step
from cockpit.command_line.parser import CommandParser
from cockpit.headless.follow import Signals
from cockpit.headless.follow_command import follow
from cockpit.headless.hyperparameters import EDITED
from cockpit.headless.inputs_progress import InputsProgress
from cockpit.launching.launch import resume
from cockpit.runs.find import find_run, runs_root
from cockpit.text.output import say
from cockpit.text.safe_text import safe_text
from engines.words import ExitCode


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit resume`."""
    add_run(parser)
    parser.add_argument("--stage", metavar="STAGE", help="rerun this stage and the stages that depend on it")
    parser.add_argument(
        "--checkpoint",
        metavar="STEP",
        type=step,
        help="resume training from this step's checkpoint (default: the newest)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="sets",
        help="change a field from here on: stage.field=value (repeatable); what a checkpoint cannot continue with is"
        " refused",
    )
    parser.add_argument(
        "--accept-changed-inputs",
        action="store_true",
        help="continue although files of the inputs changed since the stage read them; the journal lists them",
    )
    add_following(parser)
    parser.exit_codes = RUN_END_CODES
    parser.examples = (
        ("cockpit resume last", "Resume the newest run from its last checkpoint."),
        (
            "cockpit resume last --accept-changed-inputs",
            "Resume although the data changed; without the option, the changed files are listed and nothing starts.",
        ),
        ("cockpit resume last --stage adapter --checkpoint 200", "Rerun a stage from the checkpoint of step 200."),
        ("cockpit resume last --set base.learning_rate=1e-4", "Continue with a lower learning rate."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Resume the run, then follow it to its end."""
    found = find_run(runs_root(args.runs_dir), args.run)
    signals = Signals()
    with signals.caught(termination=True):
        changes = resume(
            found,
            stage=args.stage,
            checkpoint=args.checkpoint,
            sets=args.sets,
            accept_changed_inputs=args.accept_changed_inputs,
            progress=InputsProgress(signals),
        )
        if not (args.detach or args.quiet):
            say(f"run {found.id} resumed; detaching does not stop it")
            if found.recipe_was_edited():
                say(EDITED)
            for change in changes:
                say(f"changed: {safe_text(change.sentence, 300)}")
        return follow(found, args, signals, past=False)
