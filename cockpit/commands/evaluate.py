"""`cockpit evaluate`: ask a model the tasks of a test file, judge the answers, compare with a baseline.

A child process does the work. Answers are kept as they come: the same command continues after an interruption.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from cockpit.command_line.arguments import add_json, threads
from cockpit.command_line.parser import CommandParser
from cockpit.commands.child_job import follow_job
from cockpit.runs.find import find_run, runs_root
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from engines.judging.sets.general import GENERAL, general_set
from engines.words import ExitCode
from recipes import quantities
from recipes.problems import OperatorError, printable
from recipes.stages.kind import TRAIN

DEFAULT_LIMIT = 256
_TITLES = ("", "success", "95 % interval", "rows", "p50", "p95", "first token", "tokens", "ended")


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit evaluate`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a model or adapter folder, a GGUF file, RUN:STAGE, or the id of a model in the hub cache",
    )
    parser.add_argument(
        "--test-data",
        required=True,
        metavar="FILE",
        help="test rows with checks: JSON Lines or a list; or general, for the questions that Cockpit ships",
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="results to write; the answers are kept beside it"
    )
    parser.add_argument("--baseline", metavar="FILE", help="results of another model on the same rows, to compare with")
    parser.add_argument("--adapter", metavar="FILE", help="a GGUF adapter over a GGUF file")
    parser.add_argument(
        "--check",
        action="append",
        default=[],
        metavar="NAME",
        help="check of rows that name none, such as exact, normalized, contains, number, choice, json; repeatable",
    )
    parser.add_argument(
        "--judge", metavar="CMD", help="your program for the check command: JSON on stdin, status 0 passed, 1 failed"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=_count,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"most tokens of an answer (default: {DEFAULT_LIMIT})",
    )
    parser.add_argument(
        "--batch", type=_count, default=1, metavar="N", help="prompts a folder answers together (default: 1)"
    )
    parser.add_argument("--chat-template", metavar="FILE", help="a chat template (default: the model's own)")
    parser.add_argument("--plain", action="store_true", help="prompts are texts to continue, without a chat template")
    parser.add_argument("--threads", type=threads, metavar="N", help="CPU threads (default: all physical cores)")
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "every row was asked and judged, whatever the result",
        ExitCode.FAILED: "the model or a file failed; kept answers stay",
        ExitCode.MISTAKE: "wrong usage, or rows that cannot be used; nothing was asked",
    }
    parser.examples = (
        (
            "cockpit evaluate ./model --test-data gsm.jsonl --check number --output base.json",
            "Evaluate a model folder.",
        ),
        (
            "cockpit evaluate m-Q4_K_M.gguf --test-data gsm.jsonl --check number --baseline base.json --output q4.json",
            "Evaluate a GGUF file and compare it with those results.",
        ),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Evaluate; prints the metrics and the rows that changed."""
    output = Path(args.output).expanduser().absolute()
    if not output.parent.is_dir():
        raise OperatorError(f"--output — no folder {printable(str(output.parent), 400)}", "make it first")
    job = {
        "model": _model(args),
        "adapter": _file(args.adapter, "--adapter"),
        "tests": _tests(args.test_data),
        "output": str(output),
        "baseline": _file(args.baseline, "--baseline"),
        "checks": args.check,
        "command": _command(args.judge),
        "limit": args.max_new_tokens,
        "batch_size": args.batch,
        "threads": args.threads,
        "chat_template": _file(args.chat_template, "--chat-template"),
        "plain": args.plain,
    }
    live = sys.stderr.isatty() and not args.json
    needs = (*TRAIN, "xllamacpp") if str(job["model"]).endswith(".gguf") else TRAIN
    return follow_job("engines.evaluate.job", job, lambda line: _show(line, live=live, as_json=args.json), needs)


def _model(args: argparse.Namespace) -> str:
    """The path of a model, or the id of one in the hub cache."""
    path = Path(args.model).expanduser()
    if path.exists():
        return str(path.absolute())
    run_part, colon, stage = args.model.rpartition(":")
    if colon and run_part and "/" not in stage:
        out = find_run(runs_root(args.runs_dir), run_part).out(stage)
        if not out.is_dir():
            raise OperatorError(f"{printable(args.model)} has no finished output", f"see: cockpit show {run_part}")
        return str(out)
    if path.suffix == ".gguf" or args.model.startswith((".", "/", "~")):
        raise OperatorError(f"MODEL — no file or folder {printable(str(path), 400)}")
    return str(args.model)


def _file(given: str | None, option: str) -> str | None:
    if given is None:
        return None
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise OperatorError(f"{option} — no file {printable(str(path), 400)}")
    return str(path)


def _tests(given: str) -> str | None:
    """The test file; a file of the general set's name comes first."""
    if given == GENERAL and not Path(given).is_file():
        return str(general_set())
    return _file(given, "--test-data")


def _command(given: str | None) -> list[str]:
    try:
        return shlex.split(given or "")
    except ValueError as error:
        raise OperatorError(f"--judge — not a command: {error}; got {printable(given or '', 100)}") from error


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to 1000000; got {text!r}")
    return int(text)


def _show(line: dict[str, Any], *, live: bool, as_json: bool) -> None:
    match line:
        case {"error": error, "hint": hint}:
            say(f"cockpit: {safe_text(error, 8000)}" + (f"\n  {safe_text(hint, 400)}" if hint else ""), clear=live)
        case {"warning": text}:
            say(f"warning: {safe_text(text, 400)}", clear=live)
        case {"phase": phase} if not as_json:
            say(safe_text(phase, 200), end="" if live else "\n", clear=live)
        case {"progress": {"done": done, "total": total}} if live:
            say(f"{done} of {total} answers", end="", clear=True)
        case {"result": result}:
            say("", end="", clear=live)
            if as_json:
                print_json(result, flush=True)
            else:
                print_out("\n".join(_lines(result)), flush=True)


def _lines(result: dict[str, Any]) -> list[str]:
    metrics = result["metrics"]
    lines = text_table(_TITLES, [_row(result)], right=range(1, 9))
    unjudged = int(metrics["unjudged_rows"])
    if unjudged:
        lines += ["", f"{unjudged} rows have no verdict, because a check itself failed; they do not count as passed"]
    if result["comparison"] is not None:
        lines += ["", *_compared(result["comparison"])]
    for name, rows in result["shown"].items():
        if rows:
            lines += ["", f"{name}: {result['counts'][name]} rows"]
            lines += [f"  {safe_text(row['where'], 60)}  {safe_text(row['reason'], 160)}".rstrip() for row in rows]
    return lines


def _row(result: dict[str, Any]) -> list[str]:
    metrics = result["metrics"]
    times = [metrics.get(name) for name in ("latency_p50_s", "latency_p95_s", "first_token_p50_s")]
    return [
        safe_text(Path(result["model"]).name, 40),
        fmt.percent(metrics["success"], 1),
        f"{fmt.percent(metrics['success_low'], 1)} to {fmt.percent(metrics['success_high'], 1)}",
        fmt.whole(metrics["test_rows"]),
        *(fmt.duration(value) for value in times),
        fmt.rate(metrics.get("answer_tokens_per_second")),
        fmt.percent(metrics.get("ended"), 0),
    ]


def _compared(found: dict[str, Any]) -> list[str]:
    ends = f"{quantities.points(found['difference_low'])} to {quantities.points(found['difference_high'])}"
    lines = [
        f"baseline {fmt.percent(found['baseline_success'], 1)} on the same {found['rows']} rows: "
        f"{quantities.points(found['difference'])} points (95 %: {ends}), p = {fmt.number(found['p_value'], 2)}",
        f"won {len(found['won'])}, lost {len(found['lost'])}",
    ]
    apart = found["only_model"] + found["only_baseline"]
    if apart:
        lines.append(f"warning: {apart} rows are only in one of the two and are not compared")
    return lines
