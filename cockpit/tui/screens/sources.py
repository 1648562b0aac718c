"""The sources of a run screen: a run directory, or a recorded run with a playhead."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from cockpit.replay.playback import Playback
from cockpit.replay.recorded import RecordedEvents
from cockpit.runs.health import Clock, Health, health
from cockpit.runs.reader import RunReader
from cockpit.runs.state import RunState
from engines.emitter import wall_clock_s
from engines.run_dir.paths import RunDir
from engines.words import RunStatus

LOOK_EVERY_POLLS = 10
"""Polls between two checks whether the run's processes are alive."""


class Source(Protocol):
    """What a run screen reads."""

    @property
    def playback(self) -> Playback | None:
        """The playhead of a replay; None for a live run."""
        ...

    @property
    def state(self) -> RunState: ...

    @property
    def run_state(self) -> RunStatus:
        """The run's state; `lost` when its journal says running and none of its processes is alive."""
        ...

    @property
    def health(self) -> Health:
        """How the run is doing, by its engine's own progress."""
        ...

    @property
    def reading(self) -> float | None:
        """The share of the journal that was read while its end was not reached yet; None: nothing is unread."""
        ...

    @property
    def live(self) -> bool:
        """Whether the state may change without a key press."""
        ...

    @property
    def catching_up(self) -> bool:
        """Whether there are events that have not been read yet."""
        ...

    def poll(self) -> bool:
        """Read a bounded number of new events; returns whether anything changed."""
        ...

    def now(self) -> float:
        """The current time of this source, Unix seconds."""
        ...

    def close(self) -> None: ...


class LiveSource:
    """A run directory: its journal and live stream."""

    playback: Playback | None = None

    def __init__(self, run_dir: Path) -> None:
        self._reader = RunReader(RunDir(run_dir), live=True, indexed=True)
        self._polls = 0
        self._seen: RunStatus | None = None
        self._reached_end = False

    @property
    def state(self) -> RunState:
        return self._reader.state

    @property
    def run_state(self) -> RunStatus:
        if self.reading is None and (self._seen is None or self.state.state.has_ended):
            self._seen = self._reader.look()
        return RunStatus.LOST if self._seen == RunStatus.LOST else self.state.state

    @property
    def health(self) -> Health:
        return self._reader.health(self.run_state, look=False)

    @property
    def reading(self) -> float | None:
        return None if self._reached_end else self._reader.share_read

    @property
    def live(self) -> bool:
        return not self.state.state.has_ended

    @property
    def catching_up(self) -> bool:
        return self._reader.behind

    def poll(self) -> bool:
        state, before = self.state, self._stamp()
        self._reader.poll()
        if self.state is not state:  # the journal was replaced
            self._reached_end = False
        self._reached_end = self._reached_end or not self._reader.behind
        if self._polls % LOOK_EVERY_POLLS == 0 and not self._reader.behind:
            self._seen = self._reader.look()
            self._reader.health(self._seen)
        self._reader.forget_pages()  # what the last picture used of a long run's index
        self._polls += 1
        return self.state is not state or self._stamp() != before

    def now(self) -> float:
        return wall_clock_s()

    def close(self) -> None:
        self._reader.close()

    def _stamp(self) -> tuple[object, ...]:
        """The values that a poll can change."""
        state = self.state
        return state.version, state.unreadable, state.unknown, self._seen, self._reached_end


class ReplaySource:
    """A recorded run with a playhead, which the screen moves.

    Args:
        playback: what is played.
        recorded: the records to play once `poll` has read them; until then `playback` is played, which has none.
    """

    def __init__(self, playback: Playback, recorded: RecordedEvents | None = None) -> None:
        self._recorded = recorded
        self._played = playback

    @property
    def playback(self) -> Playback | None:
        return self._played

    @property
    def state(self) -> RunState:
        state = self._played.state
        if self._recorded is not None:
            state.unreadable, state.unknown = self._recorded.unreadable, self._recorded.unknown
        return state

    @property
    def run_state(self) -> RunStatus:
        return self._played.state.state

    @property
    def health(self) -> Health:
        return health(self.state, self.run_state, Clock())

    @property
    def reading(self) -> float | None:
        return None if self._recorded is None or self._recorded.is_read else self._recorded.share_read

    @property
    def live(self) -> bool:
        return self._played.playing

    @property
    def catching_up(self) -> bool:
        return self._recorded is not None and not self._recorded.is_read

    def poll(self) -> bool:
        recorded = self._recorded
        if recorded is None or recorded.is_read:
            return False
        if recorded.read_part():
            speed, self._played = self._played.speed, Playback(recorded, recorded.timeline)
            self._played.set_speed(speed)
            self._played.playing = True
        return True

    def now(self) -> float:
        return self._played.t

    def close(self) -> None:
        if self._recorded is not None:
            self._recorded.close()


def replay_of(path: Path, speed: float | None = None) -> ReplaySource:
    """A replay of a run directory or a journal file, of which nothing is read yet."""
    empty = Playback([])
    if speed is not None:
        empty.set_speed(speed)
    return ReplaySource(empty, RecordedEvents(path, whole=False))
