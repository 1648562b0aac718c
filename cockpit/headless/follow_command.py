"""The second half of `run`, `resume`, `merge` and `export`: follow the run that was started, or detach from it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cockpit.headless.follow import Following, OutputClosedError, Signals, write_out
from cockpit.headless.lines import JsonLines, chosen_display
from cockpit.headless.report import report_lines
from cockpit.launching.launch import launch_text
from cockpit.one_stage.recipe import OneStageRecipe
from cockpit.runs.find import runs_root
from cockpit.runs.state import RunState
from cockpit.text.formatting import counted
from cockpit.text.output import print_out, say
from engines.run_dir.paths import RunDir
from engines.words import ExitCode


def follow(run: RunDir, args: argparse.Namespace, signals: Signals, *, past: bool = True) -> ExitCode:
    """Follow a run to its end, then print the report; returns the exit code.

    Args:
        run: the run.
        args: has the flags `json` and `quiet`, and perhaps `detach`.
        signals: counts of Ctrl-C and TERM.
        past: print the lines of what happened before; if False, a summary and the newest of them.
    """
    if getattr(args, "detach", False):
        print_out(run.id)
        return ExitCode.DONE
    display = chosen_display(json=args.json, quiet=args.quiet)
    following = Following(run, display, signals, raw=isinstance(display, JsonLines), past=past)
    code = following.until_end()
    warn_of_unreadable(following.state)
    if following.detached or args.json or args.quiet or not following.state.state.has_ended:
        return code
    with suppress(OutputClosedError):
        write_out("\n".join(["", *report_lines(following.state, reasons=False)]) + "\n")
    return code


def warn_of_unreadable(state: RunState) -> None:
    """Print on stderr how many records of a journal could not be used."""
    if state.unreadable:
        say(f"warning: {counted(state.unreadable, 'journal line')} could not be read")
    if state.unknown:
        say(f"warning: {counted(state.unknown, 'record')} of kinds or versions that this Cockpit does not support")


def launch_made(made: OneStageRecipe, args: argparse.Namespace, sets: Sequence[str] = ()) -> ExitCode:
    """Launch a recipe that a command created, and follow the run; `sets` are overrides, `stage.field=value`."""
    signals = Signals()
    with signals.caught(termination=True):
        root = runs_root(args.runs_dir)
        run = launch_text(
            made.text, runs_root=root, folder=Path.cwd(), sets=sets, name=args.name, parent=made.parent or None
        )
        if not (args.detach or args.quiet):
            say(f"run {run.id} in {run.root}; detaching does not stop it")
        return follow(run, args, signals)
