"""`cockpit blind A B`: votes between the answers of two models to the same prompts, without knowing which is which."""

from __future__ import annotations

import argparse
import secrets
import sys
from pathlib import Path
from typing import Any

import msgspec

from cockpit.command_line.arguments import add_json, threads
from cockpit.command_line.parser import CommandParser
from cockpit.commands.child_job import follow_job
from cockpit.commands.talk.template import add_template, template_of
from cockpit.runs.find import runs_root
from cockpit.talking.model_place import MODEL_HELP, model_place
from cockpit.talking.sampling_options import add_sampling, setting_option
from cockpit.talking.votes import Pairs, Votes, read_pairs
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import error_text, safe_text
from engines.chatting.lines import PairsJob, Side
from engines.files import file_sha256, write_text
from engines.words import ExitCode
from recipes.problems import OperatorError, printable
from recipes.stages.kind import TRAIN

ANSWERS = (".json", ".jsonl")


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit blind`."""
    for name, shown in (("first", "A"), ("second", "B")):
        parser.add_argument(name, metavar=shown, help=f"{MODEL_HELP}; or a file of results of cockpit evaluate")
    parser.add_argument("--prompts", required=True, metavar="FILE", help="rows with prompts, as of a test file")
    parser.add_argument("--output", metavar="FILE", help="the votes (default: the name of the prompts, .votes.jsonl)")
    parser.add_argument("--export", metavar="FILE", help="at the end, write the result: .json or .csv")
    add_sampling(parser, ("max_new_tokens",))
    parser.add_argument(
        "--seed", type=setting_option("seed"), metavar="N", help="decides sides and order (default: a random one)"
    )
    add_template(parser)
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: all physical cores)")
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "the votes were opened or their result was printed",
        ExitCode.FAILED: "a model or a file failed; kept answers and votes stay",
        ExitCode.MISTAKE: "wrong usage, or answers or votes of other prompts",
    }
    parser.examples = (
        ("cockpit blind ./base last:tuned --prompts test.jsonl", "Make both answers to each prompt, and vote."),
        (
            "cockpit blind base.json tuned.json --prompts test.jsonl --output votes.jsonl",
            "Vote on the answers of two evaluations.",
        ),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Make the answers that are missing, then open the screen or print the result."""
    prompts = Path(args.prompts).expanduser().absolute()
    if not prompts.is_file():
        raise OperatorError(f"--prompts — no file {printable(str(prompts), 400)}")
    output = Path(args.output or f"{prompts.stem}.votes.jsonl").expanduser().absolute()
    if not output.parent.is_dir():
        raise OperatorError(f"--output — no folder {printable(str(output.parent), 400)}", "make it first")
    export = None if args.export is None else _export(Path(args.export).expanduser().absolute())
    pairs_file = output.with_name(f"{output.name}.pairs.jsonl")
    pairs = _existing(pairs_file, prompts, (args.first, args.second))
    if pairs is None:
        code = _make(args, prompts, pairs_file)
        if code != ExitCode.DONE:
            return code
        pairs = read_pairs(pairs_file)
    votes = Votes(output, pairs, secrets.randbits(32) if args.seed is None else args.seed)
    if not votes.finished:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise OperatorError(
                f"{fmt.counted(len(votes.shown) - votes.done, 'pair')} without a vote, and a vote needs a terminal",
                "run the same command in a terminal; it continues",
            )
        args.open_screen(args.runs_dir, votes=votes)
    if not votes.finished:
        say(f"{votes.done} of {len(votes.shown)} votes are kept; the same command continues")
        return ExitCode.DONE
    _result(votes, args, export)
    return ExitCode.DONE


def _existing(file: Path, prompts: Path, titles: tuple[str, str]) -> Pairs | None:
    """Pairs that were made before, of the same prompts and models."""
    if not file.exists():
        return None
    pairs = read_pairs(file)
    if pairs.sides != titles or pairs.prompts_sha256 != file_sha256(prompts):
        raise OperatorError(
            f"{printable(str(file), 400)} has answers of other models or to other prompts", "give another --output"
        )
    return pairs


def _make(args: argparse.Namespace, prompts: Path, output: Path) -> ExitCode:
    root = runs_root(args.runs_dir)
    sides = tuple(_side(given, root) for given in (args.first, args.second))
    job = PairsJob(
        sides=(sides[0], sides[1]),
        prompts=str(prompts),
        output=str(output),
        limit=args.max_new_tokens,
        threads=args.threads,
        template=template_of(args),
        plain=args.plain,
    )
    needs = {*TRAIN} if any(side.model for side in sides) else set()
    if any(side.model.endswith(".gguf") for side in sides):
        needs.add("xllamacpp")
    live = sys.stderr.isatty() and not args.json
    return follow_job("engines.chatting.pairs", msgspec.to_builtins(job), lambda line: _show(line, live=live), needs)


def _side(given: str, root: Path) -> Side:
    path = Path(given).expanduser().absolute()
    if path.suffix in ANSWERS and path.is_file():
        return Side(title=given, answers=str(path))
    return Side(title=given, model=model_place(given, root))


def _show(line: dict[str, Any], *, live: bool) -> None:
    match line:
        case {"error": error, "hint": hint}:
            say(error_text(error, hint), clear=live)
        case {"warning": text}:
            say(f"warning: {safe_text(text, 400)}", clear=live)
        case {"phase": phase}:
            say(safe_text(phase, 200), end="" if live else "\n", clear=live)
        case {"progress": {"done": done, "total": total}} if live:
            say(f"{done} of {total} answers", end="", clear=True)
        case {"result": {"missing": missing}} if missing:
            say(f"warning: {missing} prompts lack an answer and are left out", clear=live)
        case {"result": _}:
            say("", end="", clear=live)


def _result(votes: Votes, args: argparse.Namespace, export: Path | None) -> None:
    if export is not None:
        try:
            write_text(export, votes.as_csv() if export.suffix == ".csv" else votes.as_json())
        except OSError as error:
            raise OperatorError(f"--export — {printable(str(export), 400)}: {error.strerror or error}") from error
        say(f"wrote {safe_text(export, 400)}")
    if args.json:
        print_json(votes.count().record(votes.pairs.sides))
    else:
        print_out("\n".join(votes.count().lines(votes.pairs.sides)))


def _export(file: Path) -> Path:
    if file.suffix not in {".json", ".csv"} or not file.parent.is_dir():
        raise OperatorError(
            f"--export — got {printable(str(file), 400)}; allowed .json or .csv in a folder that exists"
        )
    return file
