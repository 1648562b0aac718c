"""`cockpit ls`: list the runs, newest first."""

from __future__ import annotations

import argparse

from cockpit.command_line.arguments import add_json
from cockpit.command_line.parser import CommandParser
from cockpit.runs.find import runs_root
from cockpit.runs.summaries import RunSummary
from cockpit.runs.watch import RunWatch
from cockpit.text import formatting as fmt
from cockpit.text.output import print_json, print_out
from cockpit.text.safe_text import safe_text
from cockpit.text.text_table import text_table
from engines.emitter import wall_clock_s
from engines.words import ExitCode
from recipes.problems import OperatorError

READ_S = 0.15
"""Time for long journals that no index covers; the next list continues where this one stopped."""


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit ls`."""
    add_json(parser)
    parser.examples = (
        ("cockpit ls", "List the runs with their state, progress and last loss."),
        ("cockpit ls --runs-dir /data/runs --json", "List the runs of another folder as JSON."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """List them."""
    root = runs_root(args.runs_dir)
    watch = RunWatch(root)
    # A long journal that no index covers is a row that says so; a script gets everything.
    summaries = watch.poll() if args.json else watch.poll(budget_s=READ_S)
    if watch.trouble:
        raise OperatorError(watch.trouble, "choose another folder of runs: --runs-dir DIR")
    if args.json:
        print_json([summary.to_json() for summary in summaries])
    elif not summaries:
        print_out(f"no runs in {root} yet; start one: cockpit run demo")
    else:
        titles = ["run", "state", "stage", "done", "step", "loss", "time", "last progress", "health"]
        rows = [_row(summary) for summary in summaries]
        if any(summary.note for summary in summaries):
            titles.append("note")
            rows = [[*row, safe_text(summary.note, 80)] for row, summary in zip(rows, summaries, strict=True)]
        print_out("\n".join(text_table(titles, rows, right=(3, 4, 5, 6))))
    watch.keep_progress()
    return ExitCode.DONE


def _row(summary: RunSummary) -> list[str]:
    now = wall_clock_s()
    time_s = summary.took_s(now)
    return [
        safe_text(summary.id, 60),
        summary.state,
        safe_text(summary.stage or "", 40),
        "" if summary.progress is None else fmt.percent(summary.progress),
        _count(summary),
        "" if summary.loss is None else fmt.loss(summary.loss),
        "" if time_s is None else fmt.duration(time_s),
        _last_progress(summary, now),
        safe_text(summary.health_line, 200) if summary.state.is_live else _trouble(summary),
    ]


def _count(summary: RunSummary) -> str:
    """Steps of a training, or what another stage has done so far: answers, rows, tensors."""
    if summary.step is not None:
        return f"{summary.step}/{summary.total_steps}" if summary.total_steps else str(summary.step)
    if summary.done is None:
        return ""
    return fmt.of_unit(summary.done, summary.total, safe_text(summary.unit, 20))


def _trouble(summary: RunSummary) -> str:
    """Why nothing is known of a run."""
    if summary.reading is not None:
        return f"{fmt.percent(summary.reading)} of its journal was read; cockpit show reads all of it"
    return safe_text(summary.reason, 300) if summary.state == "unreadable" else ""


def _last_progress(summary: RunSummary, now: float) -> str:
    """How long ago the engine made progress; for a run that is not live, how long ago it wrote its last record."""
    if summary.state.is_live:
        return "" if summary.silence_s is None else fmt.ago(summary.silence_s)
    return "" if summary.last_event_t is None else fmt.ago(now - summary.last_event_t)
