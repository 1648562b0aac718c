"""`cockpit ctl RUN REQUEST [VALUE]`: change a running training, and wait for the engine's answer."""

from __future__ import annotations

import argparse

from cockpit.command_line.arguments import add_json, add_run, seconds
from cockpit.command_line.parser import CommandParser
from cockpit.launching.adoption import reading_words
from cockpit.launching.answers import answer_words, not_taken_words, wait_for_answer, was_ignored
from cockpit.launching.requests import parsed, send_request
from cockpit.runs.find import find_run, runs_root
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import safe_text
from engines.events.runs import ControlApplied
from engines.words import ExitCode, Verb

VERBS = tuple(str(verb) for verb in Verb if not verb.is_stop)


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit ctl`."""
    add_run(parser)
    parser.add_argument("request", choices=VERBS, help="what the engine does at the next step")
    parser.add_argument(
        "value", nargs="?", metavar="VALUE", help="of learning-rate, max-steps; for sample, the prompt (optional)"
    )
    parser.add_argument(
        "--wait",
        type=seconds,
        metavar="SECONDS",
        help="time to wait for the engine's answer (default: 30, or 5 of its steps if they are slow)",
    )
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "the engine did it",
        ExitCode.FAILED: "the engine ignored it, or did not take it in time; it stays in effect",
        ExitCode.MISTAKE: "the run has ended, its stage does not support the request, or the value is wrong",
    }
    parser.examples = (
        ("cockpit ctl last learning-rate 1e-4", "Lower the peak of the schedule from the next step on."),
        ("cockpit ctl last pause", "Pause the newest run; its memory is kept."),
        ('cockpit ctl last sample "def main("', "Show what the model continues a prompt with."),
    )


def run(args: argparse.Namespace) -> ExitCode:
    """Send the request, wait for the answer, and print it."""
    verb = Verb(args.request)
    value, text = parsed(verb, args.value)
    found = find_run(runs_root(args.runs_dir), args.run)
    unread = reading_words(found)
    if unread:
        say(unread)
    reply = send_request(found, verb, value, text=text)
    reply.require_sent()
    if not args.json:
        say(reply.sentence)
    patience_s = reply.patience_s if args.wait is None else args.wait
    try:
        event = wait_for_answer(reply, patience_s=patience_s)
    except KeyboardInterrupt:
        say("interrupted; the request stays in effect")
        return ExitCode.INTERRUPTED
    words = answer_words(event) if event is not None else not_taken_words(found, reply, patience_s)
    if args.json:
        print_json(_json(found.id, verb, event, words), indent=None)
    else:
        print_out(safe_text(words, 1000))
    return ExitCode.FAILED if event is None or was_ignored(event) else ExitCode.DONE


def _json(run_id: str, verb: Verb, event: ControlApplied | None, words: str) -> dict[str, object]:
    return {
        "id": run_id,
        "request": event.request if event is not None else str(verb),
        "taken": event is not None,
        "ignored": event is not None and was_ignored(event),
        "effect": event.effect if event is not None else words,
        "step": event.step if event is not None else None,
        "by": event.by if event is not None else None,
    }
