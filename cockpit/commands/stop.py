"""`cockpit stop RUN`: request a stop, and wait until the run ends."""

from __future__ import annotations

import argparse
import math
import time

from cockpit.command_line.arguments import add_json, add_run
from cockpit.command_line.parser import CommandParser
from cockpit.headless.follow import Following, Signals
from cockpit.headless.lines import Nothing
from cockpit.launching.adoption import reading_words
from cockpit.launching.answers import answers, not_taken_words
from cockpit.launching.requests import STOP_NOW, Reply, send_request
from cockpit.runs.find import find_run, runs_root
from cockpit.runs.state import RunState
from cockpit.text.output import print_json, print_out, say
from cockpit.text.safe_text import safe_text
from engines.run_dir.paths import RunDir
from engines.words import ExitCode, RunStatus, Verb


class _UntilTaken(Nothing):
    """Says once if the engine has not taken the request within the stated time, and why."""

    def __init__(self, run: RunDir, reply: Reply) -> None:
        self._run = run
        self._reply = reply
        self._due_s = time.monotonic() + reply.patience_s

    def tick(self, state: RunState) -> None:
        """Look for the answer."""
        if time.monotonic() < self._due_s:
            return
        self._due_s = math.inf
        if not any(answers(event, self._reply) for event in state.controls):
            say(safe_text(not_taken_words(self._run, self._reply, self._reply.patience_s), 1000))


def declare(parser: CommandParser) -> None:
    """The arguments of `cockpit stop`."""
    add_run(parser)
    parser.add_argument("--now", action="store_true", help=STOP_NOW)
    add_json(parser)
    parser.exit_codes = {
        ExitCode.DONE: "the run has ended",
        ExitCode.FAILED: "the run is lost: its processes died before they recorded an end",
        ExitCode.MISTAKE: "the run has already ended, is lost, or is read-only",
        ExitCode.INTERRUPTED: "interrupted; the run will still stop",
    }
    parser.examples = (("cockpit stop last", "Stop the newest run after its next checkpoint."),)


def run(args: argparse.Namespace) -> ExitCode:
    """Send the request, wait, and print how the run ended. After Ctrl-C the request stays in effect."""
    found = find_run(runs_root(args.runs_dir), args.run)
    unread = reading_words(found)
    if unread:
        say(unread)
    reply = send_request(found, Verb.STOP if args.now else Verb.STOP_AFTER_CHECKPOINT)
    reply.require_sent()
    if not args.json:
        say(reply.sentence)
        say("waiting for the run to stop (Ctrl-C: stop waiting; the request stays in effect)")
    signals = Signals()
    display = Nothing() if args.json else _UntilTaken(found, reply)
    following = Following(found, display, signals, ask=False, past=False)
    with signals.caught(termination=False):
        code = following.until_end()
    state = "stopping" if following.detached else RunStatus.LOST if following.lost else following.state.state
    if args.json:
        print_json({"id": found.id, "state": state}, indent=None)
    else:
        print_out(f"{found.id} {state}")
    return code if following.detached or following.lost else ExitCode.DONE
