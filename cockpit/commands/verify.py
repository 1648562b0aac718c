"""`cockpit verify`: check an artifact and its ancestors by SHA-256. Changes nothing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.runs.find import find_run, runs_root
from cockpit.runs.verify import Link, Verdict, check_descent, made_from
from cockpit.schedule.resolved_recipe import RunRecipe
from cockpit.text.output import print_json, print_out
from cockpit.text.safe_text import safe_text
from engines.artifacts.manifest import MANIFEST
from engines.run_dir import RunDir, RunDirError, is_run_dir
from engines.words import ExitCode
from recipes.problems import OperatorError, printable

_MARKS: dict[Verdict, str] = {"whole": "✓", "damaged": "✗", "gone": "·", "known by name": "·"}
_SHOWN: dict[Verdict, str] = {
    "whole": "intact",
    "damaged": "damaged",
    "gone": "not found",
    "known by name": "recorded by name only, not checked",
}


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit verify`."""
    parser.add_argument(
        "artifact", metavar="RUN|RUN:STAGE|DIR|FILE", help="a run, a stage, or a folder or file that a stage wrote"
    )
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "nothing is damaged",
        ExitCode.FAILED: "something is damaged",
        ExitCode.MISTAKE: "there is nothing to check",
    }
    parser.examples = (
        ("cockpit verify last", "Check every finished stage of the newest run."),
        ("cockpit verify ~/models/demo-Q4_K_M.gguf", "Find the run that a copied file comes from, and check it."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Check and print; exit code 1 if something is damaged."""
    root = runs_root(args.runs_dir)
    links: dict[str, Link] = {}
    for folder in folders_of(root, args.artifact):
        for link in check_descent(folder, [root]):
            if link.id not in links:
                links[link.id] = link
                if not args.json:
                    print_out(_line(link), flush=True)
    damaged = [link for link in links.values() if link.verdict == "damaged"]
    if args.json:
        print_json({"whole": not damaged, "links": [link.record() for link in links.values()]})
    else:
        print_out("\n" + _summary(links.values()))
    return ExitCode.FAILED if damaged else ExitCode.DONE


def folders_of(root: Path, artifact: str) -> list[Path]:
    """The finished folders to check, the last stage first.

    Raises:
        OperatorError: there is no finished folder.
    """
    path = Path(artifact).expanduser()
    if path.is_file():
        return [made_from(path.absolute(), [root])]
    if path.is_dir() and not is_run_dir(path):
        return [path.absolute()]
    run_part, colon, stage = artifact.rpartition(":")
    if colon and run_part and os.sep not in stage:
        found = find_run(root, run_part)
        folders = [found.out(stage)]
    else:
        found = find_run(root, artifact)
        folders = _last_stage_first(found)
    folders = [folder for folder in folders if (folder / MANIFEST).is_file()]
    if not folders:
        raise OperatorError(f"{printable(artifact, 300)} has no finished output", f"see: cockpit show {found.id}")
    return folders


def _last_stage_first(run: RunDir) -> list[Path]:
    """The outputs of a run in the order of its recipe, not of the times of files, which copies and clocks change."""
    outs = run.all_outs()
    with suppress(RunDirError):
        order = [run.out(stage) for stage in RunRecipe.read(run).order]
        outs.sort(key=lambda out: order.index(out) if out in order else -1)
    return outs[::-1]


def _line(link: Link) -> str:
    text = f"{_MARKS[link.verdict]} {link.kind:<10.10}  {link.id[:12]}  {safe_text(link.name, 120)}"
    if link.verdict != "whole":
        text += f"  {_SHOWN[link.verdict]}"
    return "\n".join([text, *(f"    {safe_text(problem, 300)}" for problem in link.problems)])


def _summary(links: Iterable[Link]) -> str:
    counted = {verdict: sum(link.verdict == verdict for link in links) for verdict in _MARKS}
    return ", ".join(f"{count} {_SHOWN[verdict]}" for verdict, count in counted.items() if count)
