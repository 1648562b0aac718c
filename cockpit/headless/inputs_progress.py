"""Progress on stderr while the inputs of a run are read and compared, before it is resumed."""

from __future__ import annotations

import time

from cockpit.headless.follow import Signals
from cockpit.text import formatting as fmt
from cockpit.text.output import say

FIRST_S = 1.0
EVERY_S = 5.0


class InputsProgress:
    """Says how much is read, if it takes more than a second; Ctrl-C or TERM ends the work, and nothing has started."""

    def __init__(self, signals: Signals) -> None:
        self._signals = signals
        self._due_s = time.monotonic() + FIRST_S

    def __call__(self, done: int, total: int) -> None:
        """Report bytes read and in total.

        Raises:
            KeyboardInterrupt: the operator interrupted the command.
        """
        if self._signals.interrupts or self._signals.terminations:
            raise KeyboardInterrupt
        if time.monotonic() >= self._due_s:
            self._due_s = time.monotonic() + EVERY_S
            say(f"comparing the inputs with their record: {fmt.size(done)} of {fmt.size(total)}")
