"""The supervisor's watch over an engine's progress: it journals a stall with the engine's stacks, and its end.

It judges with the function that screens use (`cockpit.runs.health`), and reads only the end of the journal.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median

from cockpit.runs.health import BUSY_CORES, USUAL_STEPS, Pace, step_pace
from cockpit.runs.writer_facts import Work
from cockpit.supervision.engine_process import EngineProcess
from cockpit.supervision.machine import CORES, EngineUse
from cockpit.supervision.newest import MOST_BYTES, NewestRecords
from cockpit.supervision.process_tree import carries_mark, signal_process
from cockpit.supervision.rank_processes import rank_processes
from engines.emitter import EventWriter
from engines.events.attempts import AttemptEnded, EngineRecovered, EngineStalled, Phase, Progress, RanksPlaced
from engines.events.kinds import AnyEvent
from engines.events.records import UnreadableRecordError, decode_record
from engines.events.runs import StageSucceeded
from engines.events.steps import Step
from engines.events.writers import Warned
from engines.files import open_append
from engines.identity import Identity
from engines.run_dir.paths import RunDir
from recipes import quantities
from recipes.stages.launch.fields import Launch

EVERY_S = 1.0
STACKS_SIGNAL = signal.SIGUSR1
"""The signal at which an engine writes the stacks of its threads to stderr (engines/host.py registers it)."""
HEARD_BYTES = 1 << 14
HEARD_AFTER_S = 5.0
EXIT_S = 60.0
"""How long an engine may take to exit after it has recorded its end."""
KEPT_STEPS = 8 * USUAL_STEPS


class EngineWatch:
    """Watches one engine.

    Args:
        run: the run.
        engine: the engine's process.
        writer: the supervisor's writer.
        asked: the launch of the stage; by default, one process.
    """

    def __init__(self, run: RunDir, engine: EngineProcess, writer: EventWriter, asked: Launch | None = None) -> None:
        self._asked = asked or Launch()
        self.misplaced = ""
        """what is wrong with how the engine's processes share the training; empty while nothing is"""
        self._run = run
        self._engine = engine
        self._of = engine.stage, engine.attempt
        self._writer = writer
        self._records = NewestRecords(run.journal, MOST_BYTES)
        self._step_s: deque[float] = deque(maxlen=KEPT_STEPS)
        self._reports: deque[float] = deque(maxlen=USUAL_STEPS)
        self._work: Work | None = None
        self._phase = ""
        self._cpu_s: float | None = None
        self._stalled: Work | None = None
        self._due_s = 0.0
        self._heard = b""
        self._use = EngineUse()
        self._slow = False
        self._over_m: float | None = None

    def overstays(self, now_s: float) -> bool:
        """Whether the engine has recorded its end, and its process is still there much later."""
        return self._over_m is not None and now_s - self._over_m > EXIT_S

    @property
    def longest_step_s(self) -> float | None:
        """The longest of the newest steps, in seconds; None before the first."""
        return max(self._step_s, default=None)

    def hear(self, lines: bytes) -> None:
        """Take lines of the live stream: on a full disk, they are the only sign of progress."""
        if lines:
            self._heard = (self._heard + lines)[-HEARD_BYTES:]

    def look(self, now_s: float) -> None:
        """Read the engine's newest records and judge its progress, at most once a second.

        Args:
            now_s: monotonic seconds.
        """
        if now_s < self._due_s:
            return
        self._due_s = now_s + EVERY_S
        before = self._work
        for event in self._records.read():
            self._take(event)
        if self._work is None or now_s - self._work.m > HEARD_AFTER_S:
            self._take_heard()
        if self._work is None:
            return
        if self._work is not before:
            self._cpu_s = self._used_s()
            self._note_recovery()
        silence_s, pace = now_s - self._work.m, self._pace()
        self._say_that_it_is_slow(pace)
        if pace is None or silence_s <= pace.patience_s:
            self._use = EngineUse()
        elif self._stalled is None and not (self._may_take_long(pace) and self._is_busy(now_s)):
            self._stalled = self._work
            self._report(pace, silence_s)

    def _say_that_it_is_slow(self, pace: Pace | None) -> None:
        """Journal once in an attempt that steps take much longer than they did, with what may be the reason."""
        if self._slow or pace is None or pace.recent_s is None or pace.usual_s is None:
            return
        self._slow = True
        now, before = quantities.duration(pace.recent_s), quantities.duration(pace.usual_s)
        message = (
            f"a step takes {now}, and took {before} before: another program uses the processor or the GPU, memory is"
            " swapped, or the machine is hot; cockpit show has its load. Steps stay exact, and the run takes longer"
        )
        self._writer.emit(Warned(stage=self._engine.stage, attempt=self._engine.attempt, message=message))

    @staticmethod
    def _may_take_long(pace: Pace) -> bool:
        """Whether it is in work that reports no steps, so that it is at work while it uses CPU."""
        return bool(pace.phase) or not pace.steps

    def _is_busy(self, now_s: float) -> bool:
        """Whether the engine's processes have used CPU since the last look; true at the first look."""
        percent = self._use.read(self._engine.identity.pid, now_s)[1]
        return percent is None or percent / 100 * CORES >= BUSY_CORES

    def _take_heard(self) -> None:
        lines, self._heard = self._heard.split(b"\n"), b""
        for line in lines:
            with suppress(UnreadableRecordError):
                event = decode_record(line)
                if self._work is None or event.m > self._work.m:
                    self._take(event)

    def _compare(self, event: RanksPlaced) -> None:
        """Compare how the processes share the training with the recipe."""
        asked = self._asked
        if (event.world_size, event.strategy) != (asked.world_size, asked.strategy):
            found = f"the engine computes with {event.strategy} in {event.world_size} processes"
            self.misplaced = f"the recipe asks for {asked.words or 'one process'}, and {found}"

    def _take(self, event: AnyEvent) -> None:
        if isinstance(event, RanksPlaced) and (event.stage, event.attempt) == self._of:
            self._compare(event)
        if isinstance(event, StageSucceeded | AttemptEnded) and (event.stage, event.attempt) == self._of:
            self._over_m = event.m
        if not isinstance(event, Work) or event.stage != self._engine.stage:
            return
        if getattr(event, "attempt", self._engine.attempt) != self._engine.attempt:
            return
        self._work = event
        match event:
            case Step():
                self._step_s.append(event.step_s)
            case Progress():
                self._reports.append(event.m)
            case Phase():
                self._phase = event.name
                self._reports.clear()

    def _pace(self) -> Pace | None:
        if self._work is None:
            return None
        if self._step_s:
            return step_pace(self._work, list(self._step_s))
        gaps = [b - a for a, b in pairwise(self._reports) if b > a]
        inside = isinstance(self._work, Phase | Progress)
        usual_s = median(gaps) if gaps and isinstance(self._work, Progress) else None
        return Pace(self._work, self._phase if inside else "", steps=False, usual_s=usual_s)

    def _note_recovery(self) -> None:
        if self._stalled is not None and self._work is not None:
            silence_s = max(0.0, self._work.m - self._stalled.m)
            self._stalled = None
            self._writer.emit(
                EngineRecovered(stage=self._engine.stage, attempt=self._engine.attempt, silence_s=silence_s)
            )

    def _report(self, pace: Pace, silence_s: float) -> None:
        ranks = self._ranks()
        states = {rank: identity.state() for rank, identity in ranks.items()}
        stopped = [rank for rank, found in states.items() if found == "T"]
        state = "T" if stopped else self._engine.identity.state()
        now_cpu_s = self._used_s()
        used_s = None if now_cpu_s is None or self._cpu_s is None else max(0.0, now_cpu_s - self._cpu_s)
        words = f"no progress for {quantities.duration(silence_s)} after {pace.last or 'its start'}"
        asked = [
            self._request_stacks(identity, words, rank)
            for rank, identity in (ranks or {0: self._engine.identity}).items()
            if states.get(rank, state) not in {"", "T"}
        ]
        self._writer.emit(
            EngineStalled(
                stage=self._engine.stage,
                attempt=self._engine.attempt,
                silence_s=silence_s,
                usual_step_s=pace.usual_s,
                last_progress=pace.last,
                process_state=state,
                cpu_s=used_s,
                stacks=any(asked),
                stopped_ranks=stopped,
            )
        )

    def _ranks(self) -> dict[int, Identity]:
        return rank_processes(self._engine.identity, self._run.root)

    def _used_s(self) -> float | None:
        """CPU seconds of the engine, or of all its processes."""
        found = [cpu_s(one.pid) for one in self._ranks().values()] or [cpu_s(self._engine.identity.pid)]
        return None if None in found else sum(used for used in found if used is not None)

    def _request_stacks(self, identity: Identity, words: str, rank: int) -> bool:
        """Let a process write its stacks into its console.log; False if it is not this run's, or would die of it."""
        if not carries_mark(identity.pid, self._run.root) or not catches(identity.pid, STACKS_SIGNAL):
            return False
        with suppress(OSError):
            of = self._engine.stage, self._engine.attempt
            fd = open_append(self._run.rank_console(*of, rank) if rank else self._run.console_log(*of))
            try:
                os.write(fd, f"\ncockpit: {words}; the stacks of all threads:\n".encode())
            finally:
                os.close(fd)
        return signal_process(identity, STACKS_SIGNAL)


def cpu_s(pid: int) -> float | None:
    """CPU seconds that a process has used; None without the process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal, so that the signal does not end it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
        caught = next(line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:"))
        return bool(int(caught, 16) >> (number - 1) & 1)
    except (OSError, ValueError, IndexError, StopIteration):
        return False
