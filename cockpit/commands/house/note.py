"""`cockpit note RUN "text"`: write a line about a run."""

from __future__ import annotations

import argparse

from cockpit.command_line.arguments import add_run
from cockpit.command_line.parser import CommandParser
from cockpit.keeping.notes import MAX_CHARACTERS, write_note
from cockpit.runs.find import find_run, runs_root
from cockpit.text.output import print_out
from cockpit.text.safe_text import safe_text
from engines.words import ExitCode


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit note`."""
    add_run(parser)
    parser.add_argument(
        "text",
        nargs="?",
        metavar="TEXT",
        help=f'one line, at most {MAX_CHARACTERS} characters; "" removes the note (default: print the note)',
    )
    parser.examples = (
        ('cockpit note last "baseline for the paper"', "Write a note; ls, show and Home show it."),
        ("cockpit note last", "Print the note."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Write or print it."""
    found = find_run(runs_root(args.runs_dir), args.run)
    if args.text is None:
        print_out(safe_text(found.read_note(), MAX_CHARACTERS))
        return ExitCode.DONE
    words = write_note(found, args.text)
    print_out(f"{safe_text(found.id, 100)}: {safe_text(words, MAX_CHARACTERS) if words else 'the note was removed'}")
    return ExitCode.DONE
