"""The ladder of a stop: ask for a checkpoint, then TERM, then KILL. Pure: it is told the time and answers what is
due."""

from __future__ import annotations

from typing import Literal

from engines.control import Request
from engines.words import Verb

NOW_GRACE_S = 5.0
TERM_GRACE_S = 10.0
Rung = Literal["none", "term", "kill"]


class StopLadder:
    """Remembers the strongest stop that was asked for, and when.

    Args:
        grace_s: seconds an engine has for its last checkpoint.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._asked_s: float | None = None
        self._term_s: float | None = None
        self.asked: Request | None = None

    def notice(self, request: Request) -> None:
        """A request was seen; only stops matter, and a stop now outranks one after a checkpoint."""
        if request.verb.is_stop and (
            self.asked is None or (request.verb is Verb.STOP and self.asked.verb is not Verb.STOP)
        ):
            self.asked, self._asked_s = request, None

    def due(self, now_s: float) -> Rung:
        """What is due at a moment of the monotonic clock; the first call after a request starts its grace."""
        if self.asked is None:
            return "none"
        if self._asked_s is None:
            self._asked_s = now_s
        if self._term_s is None:
            if now_s - self._asked_s < (NOW_GRACE_S if self.asked.verb is Verb.STOP else self._grace_s):
                return "none"
            self._term_s = now_s
            return "term"
        return "kill" if now_s - self._term_s >= TERM_GRACE_S else "none"
