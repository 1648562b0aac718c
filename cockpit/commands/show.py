"""`cockpit show RUN`: report on one run, from its journal. Starts nothing."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from cockpit.command_line.arguments import add_json, add_run
from cockpit.command_line.parser import CommandParser
from cockpit.headless.follow_command import warn_of_unreadable
from cockpit.headless.hyperparameters import EDITED, field_lines
from cockpit.headless.report import report_lines
from cockpit.headless.run_json import run_json
from cockpit.runs.ending import ending_of, last_lines
from cockpit.runs.find import find_run, runs_root
from cockpit.runs.reader import read_now
from cockpit.runs.state import RunState
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out
from cockpit.text.safe_text import safe_text
from engines.run_dir.paths import RunDir
from engines.words import ExitCode, RunStatus

CONSOLE_LINES = 10


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit show`."""
    add_run(parser)
    add_json(parser)
    parser.add_argument("--fields", action="store_true", help="list every field of every stage, defaults too")
    parser.examples = (
        ("cockpit show last", "Show the newest run."),
        ("cockpit show 20261120-2130 --json", "Show the run whose id starts with 20261120-2130, as JSON."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Print the report."""
    found = find_run(runs_root(args.runs_dir), args.run)
    reader = read_now(found)
    state, real = reader.state, reader.look()
    health = reader.health(real)
    facts = found.read_run_json()
    if args.json:
        print_json(run_json(found, facts, state, real, health))
        return ExitCode.DONE
    print_out(f"{found.id}: {real}")
    print_out("".join(f"{line}\n" for line in _why(found, state)), end="")
    if real == RunStatus.LOST:
        print_out(f"  none of its processes is alive; resume it: cockpit resume {found.id}")
    if real.is_live and health.line != real:
        ago = "" if health.silence_s is None else f" (last progress {fmt.ago(health.silence_s)})"
        print_out(f"health: {safe_text(health.line, 400)}{ago}")
    print_out(
        f"recipe {safe_text(facts.get('recipe'), 60)}"
        + (f", started from run {safe_text(facts['parent'], 100)}" if facts.get("parent") else "")
    )
    print_out(f"in {found.root}")
    note = found.read_note()
    print_out(f"note: {safe_text(note, 500)}\n" if note else "")
    if found.recipe_was_edited():
        print_out(f"{EDITED}\n")
    print_out("\n".join(report_lines(state)))
    print_out("\n".join(_checkpoints_and_artifacts(found, state)))
    print_out("\n".join(["", *_sets(facts), *field_lines(found, every=args.fields)]))
    warn_of_unreadable(state)
    return ExitCode.DONE


def _why(run: RunDir, state: RunState) -> list[str]:
    """Why the run ended, in full, and the end of the console.log of the stage that ended it."""
    ending = ending_of(state)
    if ending is None:
        return []
    lines = [f"  {safe_text(sentence, None)}" for sentence in ending.sentences]
    console = last_lines(run, ending, CONSOLE_LINES)
    if console and ending.stage is not None and ending.attempt is not None:
        lines.append(f"  the end of {safe_text(run.console_log(ending.stage, ending.attempt), None)}:")
        lines += [f"    {safe_text(line)}" for line in console]
    return lines


def _sets(facts: Mapping[str, Any]) -> list[str]:
    """The overrides of the launch, as typed."""
    sets = facts.get("sets")
    return [f"launched with --set {safe_text(text, 300)}" for text in sets] if isinstance(sets, list) else []


def _checkpoints_and_artifacts(run: RunDir, state: RunState) -> list[str]:
    """Checkpoints to resume from, and artifacts. A checkpoint whose folder was removed, by `prune` or by hand, is
    named as such: the journal does not have its removal."""
    lines = []
    for stage in state.stages:
        there = [c for c in stage.checkpoints if (run.root / c.path).is_dir()]
        gone = [str(c.step) for c in stage.checkpoints if c not in there]
        best = stage.best_checkpoint
        steps = [f"{c.step}{' ★' if c is best else ''}{'' if c.healthy else ' (not healthy)'}" for c in there]
        if stage.checkpoints:
            removed = f" (removed: {', '.join(gone)})" if gone else ""
            lines.append(f"checkpoints of {safe_text(stage.name, 40)}: {', '.join(steps) or 'none'}{removed}")
    for stage in state.stages:
        lines += [f"{safe_text(a.kind, 20)} {safe_text(a.path, 300)} ({fmt.size(a.bytes)})" for a in stage.artifacts]
    return ["", *lines] if lines else []
