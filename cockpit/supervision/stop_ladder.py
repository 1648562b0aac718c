"""The escalation of a stop: request it, then send TERM, then KILL. Pure: the time is an argument."""

from __future__ import annotations

from typing import Literal

from engines.control import Request
from engines.words import Verb

NOW_GRACE_S = 5.0
TERM_GRACE_S = 10.0
STEPS_OF_GRACE, MOST_NOW_GRACE_S = 1.5, 600.0
"""An engine answers a stop between two steps: it has the time of one and a half of them, at most so many seconds."""
Rung = Literal["none", "term", "kill"]


class StopLadder:
    """Remembers the strongest stop that was requested, and when.

    Args:
        grace_s: seconds that an engine has for its last checkpoint.

    Attributes:
        requested: the strongest stop that was requested.
        sent: the strongest signal that was due, so that the end of the engine names its sender.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._requested_s: float | None = None
        self._term_s: float | None = None
        self.requested: Request | None = None
        self.sent: Rung = "none"

    def notice(self, request: Request) -> None:
        """Take a request; only stops count, and a stop now outranks a stop after a checkpoint."""
        if request.verb.is_stop and (
            self.requested is None or (request.verb is Verb.STOP and self.requested.verb is not Verb.STOP)
        ):
            self.requested, self._requested_s = request, None

    def grace_s(self, step_s: float | None) -> float:
        """Seconds between the strongest request and TERM, for an engine whose steps take `step_s`."""
        if self.requested is not None and self.requested.verb is Verb.STOP:
            return max(NOW_GRACE_S, min(STEPS_OF_GRACE * (step_s or 0.0), MOST_NOW_GRACE_S))
        return self._grace_s

    def due(self, now_s: float, step_s: float | None = None) -> Rung:
        """The action that is due at a monotonic time; the first call after a request starts its grace period.

        Args:
            now_s: monotonic seconds.
            step_s: the longest of the engine's newest steps; None where it has none.
        """
        if self.requested is None:
            return "none"
        if self._requested_s is None:
            self._requested_s = now_s
        if self._term_s is None:
            if now_s - self._requested_s < self.grace_s(step_s):
                return "none"
            self._term_s = now_s
            self.sent = "term"
            return "term"
        if now_s - self._term_s < TERM_GRACE_S:
            return "none"
        self.sent = "kill"
        return "kill"
