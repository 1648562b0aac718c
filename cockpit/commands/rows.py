"""`cockpit rows TARGET`: the rows of data as the model will see them, on the screen or as lines. Writes nothing."""

from __future__ import annotations

import argparse
import shutil
import sys

import msgspec

from cockpit.command_line.parser import CommandParser
from cockpit.forms.rows_target import find_rows
from cockpit.forms.step_reader import changed_inputs, rows_of_step, trained_stages
from cockpit.headless.row_lines import facts_line, row_lines
from cockpit.planning.row_reader import RowReader
from cockpit.runs.find import find_run, runs_root
from cockpit.text.output import print_json_lines, print_out, say
from cockpit.text.safe_text import safe_text
from engines.look.row_view import RowsRequest, RowView
from engines.words import ExitCode
from recipes.problems import OperatorError

DEFAULT_LIMIT = 3


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit rows`."""
    parser.add_argument(
        "target",
        metavar="STAGE|DATA",
        help="RECIPE:STAGE or RUN:STAGE, a recipe with one such stage, or data: a file, a folder, a dataset in the"
        " hub cache; with --step, a run, or RUN:STAGE",
    )
    parser.add_argument(
        "--step",
        type=_number,
        metavar="N",
        help="print the documents or rows that this step of a training read, by micro-batch",
    )
    parser.add_argument("--model", metavar="MODEL", help="for DATA: a model folder or hub id, whose tokens are shown")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="sets",
        help="for DATA: a field of finetune, such as format=alpaca; for a recipe: stage.field=value (repeatable)",
    )
    parser.add_argument(
        "--split", choices=("train", "val", "test"), default="", help="split to show (default: the first)"
    )
    parser.add_argument("--row", type=_number, default=1, metavar="N", help="number of the first row (default: 1)")
    parser.add_argument("--find", default="", metavar="TEXT", help="show only rows that contain the text, in any case")
    parser.add_argument(
        "--limit", type=_number, metavar="N", help=f"most rows that are printed (default: {DEFAULT_LIMIT})"
    )
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--plain", action="store_true", help="print lines instead of opening the screen")
    how.add_argument("--json", action="store_true", help="print one JSON object a row, with ids and labels")
    parser.exit_codes = {
        ExitCode.DONE: "rows were shown",
        ExitCode.MISTAKE: "wrong usage, or the data or the tokenizer cannot be read",
    }
    parser.examples = (
        ("cockpit rows mine.toml:tuned", "Show the rows that the stage tuned will train on."),
        ("cockpit rows data.jsonl --model ./base --plain", "Print the first rows of a file as a model will see them."),
        ("cockpit rows last:tuned --find refund --json", "Print the rows of the newest run that contain a word."),
        ("cockpit rows last:base --step 1200", "Print the documents behind a spike of the loss."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Open the screen on a terminal, else print rows."""
    if args.step is not None:
        _print_step(args)
        return ExitCode.DONE
    target = find_rows(args.target, runs_root(args.runs_dir), model=args.model, sets=args.sets, split=args.split)
    if not (args.plain or args.json) and sys.stdout.isatty() and sys.stdin.isatty():
        code: ExitCode = args.open_screen(args.runs_dir, rows=target)
        return code
    reader = RowReader(target.job, target.python)
    try:
        _print(reader, args)
    finally:
        reader.close()
    return ExitCode.DONE


def _print_step(args: argparse.Namespace) -> None:
    """Print what a step read.

    Raises:
        OperatorError: there is no such run, stage or step.
    """
    name, _, stage = args.target.rpartition(":")
    run = find_run(runs_root(args.runs_dir), name or args.target)
    trained = trained_stages(run)
    if not name:
        if len(trained) != 1:
            raise OperatorError(
                f"{run.id} has {len(trained)} stages with steps", f"name one: {', '.join(trained) or 'none has begun'}"
            )
        stage = trained[0]
    rows = rows_of_step(run, stage, args.step)
    for phrase in changed_inputs(run, stage):
        say(f"! {safe_text(phrase, 400)}: not as the training read it; the rows are those of the present files")
    if args.json:
        print_json_lines("".join(msgspec.json.encode(row).decode() + "\n" for row in rows))
        return
    for row in rows:
        text = f"  {safe_text(row.text, 100)}" if row.text else ""
        print_out(
            f"micro-batch {row.micro_batch}  example {row.number}  {safe_text(row.name, 200)}"
            f"  {row.tokens} tokens from {row.first_token}{text}"
        )
    say(f"step {args.step} of {stage}: {len({row.number for row in rows})} example(s)")


def _print(reader: RowReader, args: argparse.Namespace) -> None:
    wanted, shown, limit = args.row, 0, args.limit or DEFAULT_LIMIT
    while shown < limit:
        answer = reader.ask(RowsRequest(wanted, find=args.find, tokens=args.json))
        if not answer.views or answer.views[0].number < wanted:
            break
        for view in answer.views:
            print_json_lines(msgspec.json.encode(view).decode() + "\n") if args.json else _print_view(view, answer.last)
        shown += 1
        wanted = answer.views[0].number + 1
    if not shown:
        raise OperatorError("no row contains the text" if args.find else "the data has no row of this number")
    if not args.json:
        say("⟦ ⟧: trained; the rest is context")


def _print_view(view: RowView, last: int) -> None:
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    print_out(facts_line(view, last))
    print_out("\n".join(f"{line.margin} {line.text}" for line in row_lines(view, width - 3, marks=True)))
    print_out()


def _number(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 10**12:
        raise argparse.ArgumentTypeError(f"must be a whole number; got {text!r}; allowed: 1 to 10^12")
    return int(text)
