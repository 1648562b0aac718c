"""`cockpit models`: models on this machine, and what can be done with each. It reads small files and headers only."""

from __future__ import annotations

import argparse
from pathlib import Path

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.models.look import FoundModel
from cockpit.models.places import ROOTS_VARIABLE, Search, configured_roots
from cockpit.models.uses import USES
from cockpit.runs.find import runs_root
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from engines.words import ExitCode
from recipes.problems import OperatorError, printable

_TITLES = ("model", "family", "parameters", "type", "size", "template", "licence", *USES)
_YES, _NO = "yes", "-"


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit models`."""
    parser.add_argument(
        "places",
        nargs="*",
        metavar="PLACE",
        help=f"folders or files to look into (default: {ROOTS_VARIABLE}, the hub's cache, and outputs of your runs)",
    )
    parser.add_argument("--why", action="store_true", help="print the reason for every use that is not possible")
    add_json(parser)
    parser.exit_codes = {ExitCode.DONE: "the list was printed", ExitCode.MISTAKE: "a place does not exist"}
    parser.examples = (
        ("cockpit models", "List the models of the hub's cache and of your runs."),
        ("cockpit models ~/models --why", "List what lies in a folder, and why something cannot be done with it."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Look and print."""
    search = Search()
    given = [Path(one).expanduser().absolute() for one in args.places]
    for place in given:
        if not place.exists():
            raise OperatorError(f"PLACE — no file or folder {printable(str(place), 400)}")
    search.folders(given or configured_roots())
    if not given:
        search.cache()
        search.runs(runs_root(args.runs_dir))
    if args.json:
        print_json({"models": [one.record() for one in search.found], "complete": search.whole})
        return ExitCode.DONE
    if not search.found:
        print_out("no models found; download one: cockpit pull ID, or name a folder: cockpit models FOLDER")
        return ExitCode.DONE
    print_out("\n".join(text_table(_TITLES, [_row(one) for one in search.found], right=(2, 4))))
    for one in search.found:
        for line in _notes(one, why=args.why):
            print_out(line)
    if not search.whole:
        say("warning: there are more folders than one search opens; name a folder that lies deeper")
    return ExitCode.DONE


def _row(one: FoundModel) -> list[str]:
    template = "" if one.template is None else _YES if one.template else _NO
    uses = one.uses
    return [
        safe_text(one.name, 70),
        safe_text(one.family, 40),
        fmt.count(one.parameters),
        safe_text(one.dtype, 24),
        fmt.size(one.size_bytes),
        template,
        safe_text(one.licence, 24),
        *("" if use not in uses else _NO if uses[use] else _YES for use in USES),
    ]


def _notes(one: FoundModel, *, why: bool) -> list[str]:
    name = safe_text(one.name, 200)
    lines = [f"{name}: cannot be read: {safe_text(one.problem, 300)}"] if one.problem else []
    if why:
        lines += [f"{name}: {use}: {safe_text(reason, 300)}" for use, reason in one.uses.items() if reason]
    return lines
