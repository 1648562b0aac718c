"""`cockpit ship`: one verdict on one GGUF file, bound to its SHA-256, with a report."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.commands.child_job import follow_job
from cockpit.runs.find import runs_root
from cockpit.shipping.check import Result
from cockpit.shipping.judge import Judged, judge_file
from cockpit.shipping.limits_file import read_limits
from cockpit.shipping.report import Written, write_report
from cockpit.shipping.verdict import read_key
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from engines.words import ExitCode
from recipes.problems import OperatorError, printable

_MARKS = {
    Result.PASS: "✓", Result.FAIL: "✗", Result.NOT_MEASURED: "?", Result.NOT_ENOUGH: "?", Result.NOT_APPLICABLE: "·"
}  # fmt: skip
_TITLES = ("", "check", "measured", "allowed")
_SHOWN = 44


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit ship`."""
    parser.add_argument("target", metavar="RUN|RUN:STAGE|FILE", help="a run with an export, or a GGUF file of one")
    parser.add_argument("--file", metavar="TYPE", help="type or name of the file, where a run has several")
    parser.add_argument(
        "--limits", metavar="FILE", help="TOML with a table [ship] (default: the one of the run's recipe)"
    )
    parser.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="FILE",
        help="results of cockpit evaluate with this file, besides those of the run (repeatable)",
    )
    parser.add_argument(
        "--out", metavar="DIR", help="folder of ship.json, MODEL_CARD.md and the curves (default: in the run)"
    )
    parser.add_argument("--key", metavar="FILE", help="a secret that signs the verdict (HMAC-SHA256)")
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "the file may ship",
        ExitCode.FAILED: "the evidence could not be collected",
        ExitCode.MISTAKE: "wrong usage, wrong limits, or no such file; nothing was judged",
        ExitCode.REFUSED: "a check failed, was not measured, or has not enough evidence",
    }
    parser.examples = (
        ("cockpit ship last --file Q4_K_M", "Judge a file of the newest run by the limits of its recipe."),
        ("cockpit ship model-Q4_K_M.gguf --limits limits.toml", "Judge a file by limits of your own."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Judge the file and write the report; exit code 3 if it must not ship."""
    key = read_key(args.key)
    limits = read_limits(Path(args.limits).expanduser()) if args.limits is not None else None
    judged = judge_file(
        runs_root(args.runs_dir),
        args.target,
        collect,
        limits=limits,
        file_type=args.file,
        results=[_results(name) for name in args.results],
    )
    written = write_report(judged, Path(args.out).expanduser().absolute() if args.out else None, key)
    for note in written.notes:
        say(f"warning: {safe_text(note, 400)}")
    if args.json:
        print_json(written.verdict)
    else:
        print_out("\n".join(_lines(judged, written)))
    return ExitCode.DONE if judged.passed else ExitCode.REFUSED


def collect(given: Mapping[str, Any]) -> dict[str, Any]:
    """The evidence, from a child process: it needs the statistics' libraries.

    Raises:
        OperatorError: the child process failed.
    """
    found: list[dict[str, Any]] = []
    errors: list[str] = []

    def take(line: dict[str, Any]) -> None:
        if "result" in line:
            found.append(line["result"])
        elif "error" in line:
            errors.append(str(line["error"]))

    follow_job("engines.shipping.job", given, take, ("numpy",))
    if not found:
        text = printable("; ".join(errors) or "the child process ended without a result", 600)
        raise OperatorError(f"the evidence could not be collected: {text}")
    return found[0]


def _results(given: str) -> Path:
    path = Path(given).expanduser().absolute()
    if not path.is_file():
        raise OperatorError(f"--results — no file {printable(str(path), 400)}")
    return path


def _lines(judged: Judged, written: Written) -> list[str]:
    rows = [
        (_MARKS[check.result], check.name, safe_text(_short(check.measured), 60), safe_text(_short(check.limit), 60))
        for check in judged.checks
    ]
    lines = text_table(_TITLES, rows)
    refused = [check for check in judged.checks if not check.passed]
    if refused:
        lines += ["", f"refused: {safe_text(judged.subject.name, 120)}"]
        lines += [f"  {check.name}: {safe_text(check.reason, 600)}" for check in refused]
    else:
        lines += ["", f"passed: {safe_text(judged.subject.name, 120)}"]
    return [*lines, f"report: {safe_text(written.folder, 400)}"]


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
