"""A source for a run screen without files: a test adds its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cockpit.replay.playback import Playback
from cockpit.runs.health import Clock, Health, health
from cockpit.runs.state import RunState
from engines.events.kinds import AnyEvent
from engines.words import RunStatus
from tests.tui.journals import T0

BATCH = 2000


class EventSource:
    """Events that a test adds. `clock` returns the current time; by default it is the newest event's time."""

    playback: Playback | None = None

    def __init__(
        self, events: Iterable[AnyEvent] = (), clock: Callable[[], float] | None = None, *, lost: bool = False
    ) -> None:
        self._state = RunState()
        self._waiting: list[AnyEvent] = list(events)
        self._clock = clock
        self._lost = lost

    def add(self, events: Iterable[AnyEvent]) -> None:
        """Add events for the next poll."""
        self._waiting.extend(events)

    @property
    def state(self) -> RunState:
        return self._state

    @property
    def run_state(self) -> RunStatus:
        return RunStatus.LOST if self._lost else self._state.state

    @property
    def health(self) -> Health:
        """The journals' machine is this one: its monotonic clock began at T0."""
        return health(self._state, self.run_state, Clock("b", self.now() - T0))

    @property
    def catching_up(self) -> bool:
        return bool(self._waiting)

    @property
    def reading(self) -> float | None:
        return None

    @property
    def live(self) -> bool:
        return not self._state.state.has_ended

    def poll(self) -> bool:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        return self._state.apply_all(batch) > 0

    def now(self) -> float:
        return self._clock() if self._clock else (self._state.last_event_t or 0.0)

    def close(self) -> None:
        return
