"""`cockpit answers FILE [BASELINE]`: the rows of an evaluation, on the screen or as lines."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cockpit.command_line.parser import CommandParser
from cockpit.talking.answers_target import AnswersTarget
from cockpit.talking.browsing import ALL, WITH_BASELINE, Browsing
from cockpit.text.output import print_json_lines, print_out
from cockpit.text.safe_text import safe_text
from engines.words import ExitCode
from recipes.problems import OperatorError, printable

DEFAULT_LIMIT = 20


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit answers`."""
    parser.add_argument("file", metavar="FILE", help="results that cockpit evaluate --output wrote")
    parser.add_argument("baseline", nargs="?", metavar="BASELINE", help="results of another model on the same rows")
    parser.add_argument(
        "--filter", choices=WITH_BASELINE, default=ALL, help="rows to print without the screen (default: all)"
    )
    parser.add_argument(
        "--limit", type=_count, default=DEFAULT_LIMIT, metavar="N", help=f"most rows printed (default: {DEFAULT_LIMIT})"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--lines", action="store_true", help="print a line for each row instead of opening the screen")
    how.add_argument("--json", action="store_true", help="print one JSON object for each row")
    parser.exit_codes = {
        ExitCode.DONE: "rows were shown",
        ExitCode.MISTAKE: "wrong usage, or a file that is not a file of results",
    }
    parser.examples = (
        ("cockpit answers tuned.json base.json", "Browse rows; those that changed are a filter."),
        ("cockpit answers tuned.json base.json --filter lost --json", "Print the rows that only the baseline passes."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Open the screen on a terminal, else print rows."""
    target = AnswersTarget(_file(args.file), None if args.baseline is None else _file(args.baseline))
    if not (args.lines or args.json) and sys.stdin.isatty() and sys.stdout.isatty():
        code: ExitCode = args.open_screen(args.runs_dir, answers=target)
        return code
    browsing = Browsing(target)
    if args.filter not in browsing.filters:
        raise OperatorError(
            f"--filter — {args.filter} needs a BASELINE; allowed without: {', '.join(browsing.filters)}"
        )
    for at in browsing.rows(args.filter)[: args.limit]:
        row = browsing.index.row(at)
        if args.json:
            import msgspec

            print_json_lines(msgspec.json.encode(row).decode() + "\n")
        else:
            mark = "passed" if row.passed else "failed"
            print_out(f"{at + 1:>6}  {mark}  {safe_text(row.name, 30)}  {safe_text(row.answer, 100)}")
    return ExitCode.DONE


def _file(given: str) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise OperatorError(f"FILE — no file {printable(str(path), 400)}", "give the file of cockpit evaluate --output")
    return path


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 1000000; got {text!r}")
    return int(text)
