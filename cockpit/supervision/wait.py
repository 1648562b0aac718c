"""The supervisor's wait for an engine's end; it serves the pipe, screens, sampler and stop requests meanwhile."""

from __future__ import annotations

import select
import signal
import time

from cockpit.supervision.engine_process import EngineProcess, exit_status, find_behind_launcher
from cockpit.supervision.engine_watch import EXIT_S, EngineWatch
from cockpit.supervision.process_tree import kill_tree, signal_process
from cockpit.supervision.relay import Relay
from cockpit.supervision.sampler_process import SamplerProcess
from cockpit.supervision.stop_ladder import NOW_GRACE_S, StopLadder
from engines import control
from engines.control import Request
from engines.emitter import EventWriter
from engines.events.runs import ControlApplied
from engines.events.writers import Warned
from engines.run_dir.paths import RunDir
from engines.words import Verb
from recipes import quantities
from recipes.stages.launch.fields import Launch

TICK_S = 0.25
LAUNCHER_LOOK_S = 1.0
"""Between two looks whether a launcher has started its engine; an image may have to be downloaded first."""
SETTLED_NS = 2_000_000_000


class Watch:
    """The supervisor's work while an engine runs."""

    def __init__(self, run: RunDir, writer: EventWriter, sampler: SamplerProcess, stop_grace_s: float) -> None:
        self.run = run
        self.writer = writer
        self.sampler = sampler
        self.relay = Relay(run.root, run.fifo)
        self.ladder = StopLadder(stop_grace_s)
        self._seen = control.numbers_taken(run.control)
        self._listed: tuple[int, ...] | None = None
        self._said: int | None = None
        self.misplaced = ""
        self._look_s = 0.0

    def until_end(self, engine: EngineProcess, asked: Launch | None = None) -> int | None:
        """Wait for the engine; returns its exit status, or None if it is not a child of this process.

        An engine whose processes do not share the training as `asked` is killed; `misplaced` says how.
        """
        self.misplaced, overstayed = "", False
        self.sampler.watch(engine.identity.pid, engine.stage)
        progress = EngineWatch(self.run, engine, self.writer, asked)
        while not self._ended(engine):
            readable, _, _ = select.select([engine.pidfd, *self.relay.readable], [], [], TICK_S)
            progress.hear(self.relay.pump())
            self._escalate(engine, progress.longest_step_s)
            self.sampler.check()
            self._look_behind_launcher(engine)
            progress.look(time.monotonic())
            if progress.misplaced and not self.misplaced:
                self.misplaced = progress.misplaced
                kill_tree(self.run.root, [engine.identity], term_grace_s=0.0, keep=engine.reaped)
            if progress.overstays(time.monotonic()) and not overstayed:
                overstayed = True
                self._end_what_stays(engine)
            if engine.pidfd in readable:
                break
            if readable:
                time.sleep(0.01)  # collect a burst: a wake-up for every line would cost more than the lines
        self.relay.pump()
        self.sampler.watch(None)
        return exit_status(engine)

    def _end_what_stays(self, engine: EngineProcess) -> None:
        """End an engine that has recorded its end and does not exit: a stopped torchrun, a thread of a library."""
        message = f"the engine has recorded its end, and its process has not exited in {quantities.duration(EXIT_S)}"
        self.writer.emit(
            Warned(stage=engine.stage, attempt=engine.attempt, message=f"{message}: killing its process tree")
        )
        kill_tree(self.run.root, [engine.identity], term_grace_s=0.0, keep=engine.reaped)

    def _look_behind_launcher(self, engine: EngineProcess) -> None:
        """Once a launcher has started the engine, watch and signal that one."""
        now_s = time.monotonic()
        if engine.behind is not None and now_s >= self._look_s:
            self._look_s = now_s + LAUNCHER_LOOK_S
            if find_behind_launcher(self.run, engine):
                self.sampler.watch(engine.identity.pid, engine.stage)

    def between_engines(self) -> None:
        """One turn of the work while no engine runs: screens, the sampler, and new requests."""
        select.select(self.relay.readable, [], [], TICK_S)
        self.relay.pump()
        self.sampler.check()
        self._notice_requests()

    def close(self) -> None:
        self.relay.close()

    def _ended(self, engine: EngineProcess) -> bool:
        return engine.child is None and not engine.identity.is_alive()

    def _escalate(self, engine: EngineProcess, step_s: float | None) -> None:
        self._notice_requests()
        self._say_the_wait(engine, step_s)
        rung = self.ladder.due(time.monotonic(), step_s)
        if rung == "term":
            self._record("the engine did not stop in time: sending TERM", engine)
            signal_process(engine.identity, signal.SIGTERM)
        elif rung == "kill":
            self._record("the engine did not end on TERM: killing its process tree", engine)
            # `until_end` collects the engine's exit status: if another call reaped the child, Popen would report 0.
            kill_tree(self.run.root, [engine.identity], term_grace_s=0.0, keep=engine.reaped)

    def _say_the_wait(self, engine: EngineProcess, step_s: float | None) -> None:
        """Say once how long a stop waits for an engine whose steps are long."""
        request = self.ladder.requested
        if request is None or request.verb is not Verb.STOP or self._said == request.number:
            return
        self._said = request.number
        grace_s = self.ladder.grace_s(step_s)
        if step_s is not None and grace_s > NOW_GRACE_S:
            took, wait = quantities.duration(step_s), quantities.duration(grace_s)
            self._record(
                f"a step has taken {took}: TERM follows if the engine has not stopped in {wait}",
                engine,
            )

    def _notice_requests(self) -> None:
        for request in self._new_requests():
            self._seen.add(request.number)
            self.ladder.notice(request)

    def _new_requests(self) -> list[Request]:
        """Requests that were not seen yet. Folders that did not change are not listed: they keep every request."""
        changed = control.stamp(self.run.control)
        if changed == self._listed:
            return []
        # A file system counts time in ticks: a folder that changed just now may change again within the same one.
        old = time.time_ns() - max(changed, default=0) > SETTLED_NS
        self._listed = changed if old else None
        return control.history(self.run.control, seen=self._seen)

    def _record(self, effect: str, engine: EngineProcess) -> None:
        verb = self.ladder.requested.verb if self.ladder.requested else Verb.STOP
        self.writer.emit(ControlApplied(request=verb, by="supervisor", effect=effect, stage=engine.stage))
