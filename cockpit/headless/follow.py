"""Following a run without a screen, until the run ends, the operator detaches, or the output's reader closes it.

A follower owns nothing of the run: when it ends, the run continues. If the supervisor dies, the follower adopts the
run by starting another supervisor.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Protocol

from cockpit.launching.adoption import FOLLOWER, Keeper
from cockpit.launching.requests import STOP_AFTER_CHECKPOINT, send_request
from cockpit.runs.reader import RunReader
from cockpit.runs.state import RunState
from cockpit.text.output import print_json_lines, print_out, say
from engines.journal import Record
from engines.run_dir.locks import lock_is_held
from engines.run_dir.paths import RunDir
from engines.words import ExitCode, Verb, exit_code_of

POLL_S = 0.25
QUESTION = f"""[d]etach: the run continues without this terminal
[s]top after checkpoint: {STOP_AFTER_CHECKPOINT}
any other key: keep following"""


class OutputClosedError(Exception):
    """The output has no reader any more: a pipe was closed, or a terminal was hung up."""


class Display(Protocol):
    """What a follower shows."""

    def begin(self, state: RunState) -> None:
        """Show where the run is, instead of the records so far; only for a follower that attaches late."""

    def show(self, records: list[Record], state: RunState) -> None:
        """Show new records; they are already applied to `state`."""

    def tick(self, state: RunState) -> None:
        """Redraw what depends on time; called a few times a second."""

    def close(self) -> None:
        """Restore the terminal."""


class Signals:
    """Counts of Ctrl-C and TERM, which the loop reads; no exception interrupts it."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.terminations = 0

    @contextmanager
    def caught(self, *, termination: bool) -> Iterator[Signals]:
        """Count the signals while the block runs."""
        before = {signal.SIGINT: signal.signal(signal.SIGINT, self._on_interrupt)}
        if termination:
            before[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_termination)
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_interrupt(self, _number: int, _frame: FrameType | None) -> None:
        self.interrupts += 1

    def _on_termination(self, _number: int, _frame: FrameType | None) -> None:
        self.terminations += 1


class Following:
    """One follower of one run.

    Args:
        run: the run; its supervisor counts as alive while the supervisor's lock is held.
        display: shows the records.
        signals: counts of Ctrl-C and TERM.
        raw: read only the journal file, in its order, for `--json`.
        ask: Ctrl-C asks whether to detach or to stop; if False, Ctrl-C detaches.
        past: show every record since the launch; if False, the display summarizes those that exist already.
    """

    def __init__(
        self,
        run: RunDir,
        display: Display,
        signals: Signals,
        *,
        raw: bool = False,
        ask: bool = True,
        past: bool = True,
    ) -> None:
        self.run = run
        self.display = display
        self.signals = signals
        self.detached = False
        self._may_ask = ask
        self._past_shown = past or raw
        self._reader = RunReader(run, live=not raw, lines=raw, indexed=not self._past_shown)
        self._stop_sent = False
        self._terminations_seen = 0
        self._asked_at = 0
        self._keeper = Keeper(run, FOLLOWER)
        self._refusal_said = False

    @property
    def state(self) -> RunState:
        """The fold of the records read so far."""
        return self._reader.state

    @property
    def lost(self) -> bool:
        """Whether following ended because no process of the run is alive."""
        return self._keeper.lost

    def until_end(self) -> ExitCode:
        """Follow; returns the exit code, which is `FAILED` for a run that is lost: only a resume continues it.

        Raises:
            OperatorError: the run's supervisor died, and no other supervisor could be started.
        """
        try:
            while not self._ended():
                self._take(POLL_S)
                if not self._reader.behind:  # a state that is still catching up says nothing about the present
                    self._keeper.look(ended=self.state.state.has_ended)
                self._say_refusal()
                if self.lost:
                    break
                self._answer_signals()
                if self.detached:
                    return ExitCode.INTERRUPTED
            while self._take(0.0) or self._reader.behind:  # records that were written between the last read and the end
                pass
        except OutputClosedError:
            return ExitCode.INTERRUPTED
        finally:
            with suppress(OutputClosedError):
                self.display.close()
            self._reader.close()
        if self.lost:
            say(f"{self.run.id} is lost: none of its processes is alive; resume it: cockpit resume {self.run.id}")
            return ExitCode.FAILED
        return exit_code_of(self.state.state)

    def _take(self, timeout_s: float) -> int:
        records = self._reader.poll(timeout_s)
        if not self._past_shown:
            if self._reader.behind:
                return len(records)
            self._past_shown = True
            self.display.begin(self.state)
            return len(records)
        if any(getattr(record.event, "attempt", None) for record in records):
            self._keeper.note_work()
        if records:
            self.display.show(records, self.state)
        self.display.tick(self.state)
        return len(records)

    def _ended(self) -> bool:
        # The lock is checked first: a state that was read before the lock could still show the run's previous end.
        supervised = lock_is_held(self.run.supervisor_lock)
        if supervised or self._reader.behind:
            return False
        while self._take(0.0) or self._reader.behind:
            pass
        return self.state.state.has_ended

    def _say_refusal(self) -> None:
        """Say once why the run gets no supervisor."""
        if self._keeper.refused and not self._refusal_said:
            self._refusal_said = True
            say(f"{self._keeper.refused}; see what it would start: cockpit trust {self.run.root}")

    def _answer_signals(self) -> None:
        if self.signals.terminations > self._terminations_seen:
            self._terminations_seen = self.signals.terminations
            if not self._stop_sent:
                self._request_stop("received TERM; waiting for the run to stop")
        if self.signals.interrupts > self._asked_at:
            self._asked_at = self.signals.interrupts
            self.display.close()
            answer = self._ask() if self._may_ask and not self._stop_sent else "d"
            if answer == "s":
                self._request_stop("waiting for the run to stop (Ctrl-C: detach; the request stays in effect)")
            elif answer == "d":
                say(f"detached; the run continues: cockpit attach {self.run.id}")
                self.detached = True

    def _request_stop(self, waiting: str) -> None:
        """Request a stop after a checkpoint and print the reply; a request that failed can be repeated."""
        reply = send_request(self.run, Verb.STOP_AFTER_CHECKPOINT, by="cockpit run")
        self._stop_sent = reply.sent
        say(reply.sentence)
        say(waiting if reply.sent else reply.hint)

    def _ask(self) -> str:
        """The key that the operator presses; `d` without asking if there is no terminal, and after a second Ctrl-C."""
        if not sys.stdin.isatty():
            return "d"
        say(QUESTION)
        with _single_keys():
            while self.signals.interrupts == self._asked_at:
                if select.select([sys.stdin], [], [], POLL_S)[0]:
                    key = os.read(sys.stdin.fileno(), 1).decode("ascii", "replace").lower()
                    return "d" if key in {"", "\x03", "\x04"} else key
        return "d"


def write_out(text: str, *, clear: bool = False) -> None:
    """Write to stdout immediately; with `clear`, the terminal's present line is cleared first.

    Raises:
        OutputClosedError: stdout has no reader any more.
    """
    _written(lambda: print_out(text, end="", clear=clear, flush=True))


def write_json_lines(text: str) -> None:
    """Write lines of JSON to stdout immediately; errors as from `write_out`."""
    _written(lambda: print_json_lines(text, flush=True))


def _written(write: Callable[[], None]) -> None:
    try:
        write()
    except (OSError, ValueError) as error:
        silence_stdout()
        raise OutputClosedError from error


def silence_stdout() -> None:
    """Redirect stdout to the null device, so that Python's flush at exit reports no error."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _single_keys() -> Iterator[None]:
    """Read single keys, without Enter, while the block runs; then restore the terminal."""
    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
