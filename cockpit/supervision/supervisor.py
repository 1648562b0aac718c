"""`python -m cockpit.supervision.supervisor RUN_ROOT`: one small process per run that starts the stages in order and
reaps their engines.

Training does not depend on it: after a `kill -9` of the supervisor, the engine continues, and the next supervisor
adopts the run from the journal. `scheduling.next_action` decides what to do; this module does it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from cockpit.provenance.mark import launcher_of
from cockpit.runs.state import RunState
from cockpit.runs.summaries import exit_facts
from cockpit.schedule.checkpoint_choice import CheckpointChoice, choose_checkpoint
from cockpit.schedule.facts import RunFacts, add_facts
from cockpit.schedule.memory_plan import new_values
from cockpit.schedule.outputs import Outputs
from cockpit.schedule.recipe_changes import unjournaled, write_changes
from cockpit.schedule.recorded_inputs import expected_inputs
from cockpit.schedule.resolved_recipe import RunRecipe, require_outputs_of_runs
from cockpit.schedule.scheduling import EndRun, RunStage, next_action
from cockpit.supervision.end_command import EndCommand
from cockpit.supervision.engine_process import (
    EngineProcess,
    exit_reason,
    find_engine,
    recorded_kills,
    start_engine,
    what_it_shares,
    write_stage_json,
)
from cockpit.supervision.memory_kills import MemoryKills, memory_end
from cockpit.supervision.process_tree import become_subreaper, kill_tree, reap_children
from cockpit.supervision.rank_ends import RankCause, cause_of_ranks, end_elsewhere, forget_torchrun, show_console_of
from cockpit.supervision.run_result import run_result
from cockpit.supervision.sampler_process import SamplerProcess
from cockpit.supervision.wait import Watch
from engines import control
from engines.emitter import EventWriter, wall_clock_s
from engines.events.attempts import AttemptEnded
from engines.events.runs import (
    AcceptedInput,
    ControlApplied,
    RunEnded,
    RunStarted,
    StageFailed,
    StageSkipped,
    StageStarted,
)
from engines.events.writers import Warned
from engines.files import open_append, write_durably
from engines.identity import Identity
from engines.journal import JournalReader
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir, RunDirError
from engines.words import IGNORED, EndReason, ExitCode, MemoryEnd, RunStatus, StartReason, Verb, WriterRole
from recipes.problems import OperatorError
from recipes.stages.fields import StageFields
from recipes.stages.launch.fields import launch_of

READ_RECORDS = 500
"""Records that are decoded at once: a journal of any length costs this process the same memory."""


class Supervisor:
    """Drives one run to its end."""

    def __init__(self, run: RunDir, started: RunStarted) -> None:
        self.run = run
        self.plan = RunRecipe.read(run)
        self.facts = RunFacts()
        self.state = RunState(lean=True)
        self.reader = JournalReader(run.journal)
        self.read_facts()  # before the first record, which has the number of this supervisor
        self.launch = self.facts.next_launch
        self.started = msgspec.structs.replace(started, launch=self.launch, attempts=self._attempts_so_far(started))
        self.writer = EventWriter(run.journal, run.fifo, role=WriterRole.SUPERVISOR, launch=self.launch)
        self.facts.roles[self.writer.writer] = WriterRole.SUPERVISOR
        self.sampler = SamplerProcess(run, self.plan.recipe.sample_interval_s, self.writer)
        self.watch = Watch(run, self.writer, self.sampler, self.plan.recipe.stop_grace_s)
        self.outputs = Outputs(run, self.plan, self.facts, self._warn_of_output)
        self.skipped: set[str] = set()
        self.told_to_end = False
        """A signal asks this process to end: it does not wait for space on the disk any longer."""

    def drive(self) -> None:
        """Run stages until the run ends. An adopter that cannot write that it adopts the run does not adopt it."""
        self.record(self.started)
        if self.started.reason == StartReason.ADOPT and self.writer.behind:
            return
        self.run.exit_json.unlink(missing_ok=True)
        self._adopt_or_record_ends()
        self.sampler.start()
        while True:
            self._wait_for_space()
            self.read_facts()
            actions = next_action(self.plan, self.facts, self.outputs.is_done)
            self._note_skipped(actions.done)
            stop = self.watch.ladder.requested
            if isinstance(actions.action, EndRun):
                self._end(actions.action)
                return
            if stop is not None:
                self._answer_requests("the run stops between two stages")
                self._end(EndRun(RunStatus.STOPPED, f"stopped before {actions.action.stage}"))
                return
            if not self.run.run_json.exists():  # an attempt would make the folder again, under the old name
                self._end(EndRun(RunStatus.FAILED, f"{self.run.root} was moved or removed", actions.action.stage))
                return
            self._run_stage(actions.action)

    def _wait_for_space(self) -> None:
        """Wait until the journal has every record of this process: on a full disk no further attempt begins, because
        it would fail too, and a run that has ended is not left without its end. A deleted journal, or a signal to
        this process, ends the wait."""
        while not self.writer.retry_waiting() and self.run.journal.exists() and not self.told_to_end:
            self.watch.between_engines()

    def record(self, event: RunStarted | StageStarted | AttemptEnded) -> None:
        """Write an event to the journal and add it to the facts immediately: on a full disk it cannot be read back,
        and it must still count."""
        seq = self.writer.emit(event)
        add_facts(self.facts, [msgspec.structs.replace(event, w=self.writer.writer, seq=seq, t=wall_clock_s())])

    def read_facts(self) -> None:
        """Bring the facts up to the end of the journal."""
        records = self.reader.read(READ_RECORDS)
        while records or not self.reader.at_end:
            add_facts(self.facts, (record.event for record in records))
            self.state.apply_all(record.event for record in records)
            records = self.reader.read(READ_RECORDS)
        self.facts.note_folders(self.run, self.plan.order)

    def _attempts_so_far(self, started: RunStarted) -> dict[str, int]:
        """The highest attempt number of each stage, by the journal and by the folders; an adoption counts from the
        operator's start."""
        if not started.reason.is_from_operator:
            return {}
        return {name: max(found) for name in self.plan.order if (found := self.facts.stage(name).attempts)}

    def _warn_of_output(self, name: str, problems: list[str]) -> None:
        message = f"the output of {name} failed verification; rerunning the stage: {'; '.join(problems[:3])}"
        self.writer.emit(Warned(message=message, stage=name))

    def _note_skipped(self, done: list[str]) -> None:
        """Record once, after a resume, which stages were finished before."""
        for name in done:
            before = not self.facts.succeeded_since(self.started, name)
            if before and name not in self.skipped and self.started.reason == StartReason.RESUME:
                self.writer.emit(StageSkipped(stage=name, reason="already finished: fingerprint and manifest match"))
            self.skipped.add(name)

    def _adopt_or_record_ends(self) -> None:
        """Find what a dead supervisor left: wait for an engine that is running, record the end of one that died, and
        end what such an engine had started."""
        self.read_facts()
        operator = self.facts.operator
        before = operator.attempts if operator is not None else {}
        unreaped = ""
        for name in self.plan.order:
            for attempt in self.facts.stage(name).attempts.values():
                if attempt.reason or (not attempt.announced and attempt.number <= before.get(name, 0)):
                    continue
                engine = find_engine(self.run, name, attempt.number)
                if engine is not None:
                    self.sampler.start()
                    self._supervise(engine)
                elif attempt.never_began and attempt.opened is None:
                    detail = "the supervisor died before it started the engine"
                    self.record(
                        AttemptEnded(stage=name, attempt=attempt.number, reason=EndReason.NOT_STARTED, detail=detail)
                    )
                else:
                    kills = recorded_kills(self.run, name, attempt.number)
                    self._record_end(name, attempt.number, None, kills=kills)
                    unreaped = name
        if unreaped:  # only now: an engine of a later attempt may have been alive above
            self._kill_rest(unreaped)

    def _run_stage(self, action: RunStage) -> None:
        name = action.stage
        choice = CheckpointChoice(None, [])
        if action.resume:
            choice = choose_checkpoint(
                self.run, name, self.facts.stage(name), at_step=action.at_step, healthy_only=action.healthy_only
            )
        for reason in choice.refused:
            self.writer.emit(Warned(message=reason, stage=name))
        if action.note:
            self.writer.emit(Warned(message=action.note, stage=name))
        saved_step = self.facts.stage(name).saved_step
        if action.resume and choice.chosen is None and saved_step is not None:
            message = f"restarting {name} from step 0: no usable checkpoint up to step {saved_step}"
            self.writer.emit(Warned(message=message, stage=name))
        attempt = max([0, *self.run.attempts(name), *self.facts.stage(name).attempts]) + 1
        stage = self.plan.stage(name)
        expected = expected_inputs(self.run, self.facts, name)
        steps = getattr(stage, "max_steps", None)
        self.record(
            StageStarted(
                stage=name,
                kind=stage.kind,
                attempt=attempt,
                steps=steps,
                launch=self.launch,
                adjusted=list(action.adjusted),
            )
        )
        try:
            require_outputs_of_runs(self.plan, self.run, name)
            path = write_stage_json(
                self.run,
                self.plan,
                name,
                attempt,
                resume=choice.as_resume(),
                learning_rate_scale=action.learning_rate_scale,
                guard_trips=action.guard_trips,
                launch=self.launch,
                expected=expected,
                adjusted=new_values(action.adjusted),
            )
            self._warn_of_sharing(stage)
            engine = start_engine(self.run, stage, attempt, path)
        except OSError as error:
            self.record(
                AttemptEnded(
                    stage=name, attempt=attempt, reason=EndReason.ERROR, detail=f"could not start the engine: {error}"
                )
            )
            return
        self._supervise(engine)

    def _warn_of_sharing(self, stage: StageFields) -> None:
        for words in what_it_shares(self.run, stage):
            self.writer.emit(Warned(message=words, stage=stage.name))

    def _supervise(self, engine: EngineProcess) -> None:
        """Wait for an engine's end; serve screens and requests meanwhile."""
        before_s = _children_cpu_s()
        launch = launch_of(self.plan.stage(engine.stage))
        status = self.watch.until_end(engine, launch)
        killed = (status or 0) < 0
        # What starts others waits for them: when it is killed, the kernel adds their time to no one's.
        known = engine.child is not None and not (killed and (engine.launcher or launch.world_size > 1))
        used_s = round(_children_cpu_s() - before_s, 3) if known else None
        # An engine whose launcher was killed has no time to record that it was asked to stop: that is not why it ends.
        self._kill_rest(engine.stage, term_grace_s=0.0 if engine.launcher and killed else 1.0)
        self._record_end(engine.stage, engine.attempt, status, used_s, engine.kills)
        engine.close()

    def _kill_rest(self, stage: str, term_grace_s: float = 1.0) -> None:
        """End the processes that an ended engine had started: they would hold memory and the attempt's lock."""
        left = kill_tree(self.run.root, [], term_grace_s=term_grace_s)
        if left:
            self.writer.emit(Warned(message=f"could not kill processes of {stage}: {left}", stage=stage))

    def _record_end(
        self,
        stage: str,
        attempt: int,
        status: int | None,
        cpu_s: float | None = None,
        kills: MemoryKills | None = None,
    ) -> None:
        self.read_facts()
        known = self.facts.stage(stage).attempt(attempt).engine_reason
        cause, launcher = self._cause_of_ranks(stage, attempt), launcher_of(self.run.engine_json(stage, attempt))
        if cause is not None:
            known, status = EndReason.NOT_GIVEN, cause.exit
        reason, detail = (known, "") if known else exit_reason(status, self.watch.ladder.sent, launcher)
        if cause is not None:
            reason, detail = cause.reason, cause.detail
        elif not known and (elsewhere := end_elsewhere(self.run, stage, attempt)) is not None:
            reason, detail = elsewhere
            status = None if reason == EndReason.STOPPED else status
        elif not known and (world_size := launch_of(self.plan.stage(stage)).world_size) > 1:
            detail = f"torchrun, with {world_size} processes: {detail}"
        memory = MemoryEnd.UNKNOWN
        if not known and kills is not None:
            ours = self.watch.ladder.sent == "kill"
            memory, evidence = memory_end(kills, status, self.run.console_log(stage, attempt), killed_by_us=ours)
            detail = f"{detail.partition(', sender unknown')[0]}; {evidence}" if evidence else detail
            reason = EndReason.OUT_OF_MEMORY if memory == MemoryEnd.PROVEN else reason
        if self.watch.misplaced and not known:
            reason, detail = EndReason.ERROR, self.watch.misplaced
        elif not known and self.watch.ladder.requested is not None:
            reason, detail = EndReason.STOPPED, f"did not stop on request: {detail}"
        self.record(
            AttemptEnded(
                stage=stage, attempt=attempt, reason=reason, exit=status, detail=detail, cpu_s=cpu_s, memory=memory
            )
        )
        forget_torchrun(self.run, stage, attempt)
        self._answer_requests("no engine was running")

    def _cause_of_ranks(self, stage: str, attempt: int) -> RankCause | None:
        """The process whose failure ended an attempt of several, unless rank 0 recorded a reason of its own."""
        world_size = launch_of(self.plan.stage(stage)).world_size
        facts = self.facts.stage(stage).attempt(attempt)
        if world_size == 1 or not facts.engine_reason.is_unspecific:
            return None
        cause = cause_of_ranks(self.run, stage, attempt, world_size, (facts.engine_reason, facts.engine_detail))
        if cause is not None:
            show_console_of(self.run, stage, attempt, cause.rank)
        return cause

    def _answer_requests(self, effect: str) -> None:
        for request in control.pending(self.run.control):
            self.watch.ladder.notice(request)
            if control.take(self.run.control, request):
                told = effect if request.verb.is_stop else f"{IGNORED}: {effect}"
                self.writer.emit(
                    ControlApplied(request=request.words, by=request.by, effect=told, number=request.number)
                )

    def _end(self, end: EndRun) -> None:
        if end.failed_stage is not None:
            self.writer.emit(
                StageFailed(stage=end.failed_stage, reason=end.reason, refused=end.state == RunStatus.REFUSED)
            )
        self._answer_requests("the run has ended")
        self.sampler.stop()
        self._carry_out_command(end)
        self.writer.emit(RunEnded(state=end.state, reason=end.reason, launch=self.launch))
        self._wait_for_space()
        self.writer.sync()
        self.read_facts()
        if self.state.state.has_ended:  # else the end waits for space on the disk, or the run was moved
            with suppress(OSError, RunDirError):
                write_durably(self.run.exit_json, json.dumps(exit_facts(self.run, self.state)).encode())

    def _carry_out_command(self, end: EndRun) -> None:
        """Start the recipe's command for this end, unless one was recorded for it before."""
        self.read_facts()
        number = self.facts.operator.launch if self.facts.operator is not None else 0
        command = EndCommand.of(self.run, self.plan.recipe, end.state, number)
        if command is None or number in self.facts.commands:
            return
        asked = self.watch.ladder.requested
        result = run_result(self.run, self.state, end.state, end.reason, end.failed_stage)
        self.writer.emit(
            command.carry_out(
                result,
                self.watch.between_engines,
                lambda: self.told_to_end or self.watch.ladder.requested is not asked,
            )
        )

    def close(self) -> None:
        self.sampler.stop()
        self.watch.close()
        self.writer.close()
        reap_children()


def main(argv: list[str] | None = None) -> ExitCode:
    """Take the run's lock, detach from the caller, and drive the run."""
    parser = argparse.ArgumentParser(prog="python -m cockpit.supervision.supervisor")
    parser.add_argument("run_root", type=Path)
    parser.add_argument("--reason", type=StartReason, choices=list(StartReason), default=StartReason.ADOPT)
    parser.add_argument("--redo", default="")
    parser.add_argument("--only", default="")
    parser.add_argument("--checkpoint", type=int)
    parser.add_argument("--checkpoint-stage")
    parser.add_argument("--set", action="append", default=[], dest="sets")
    parser.add_argument("--accepted-inputs", type=_accepted, default=[], help="a JSON list of `AcceptedInput`")
    parser.add_argument("--foreground", action="store_true")
    args = parser.parse_args(argv)
    os.umask(0o077)
    run = RunDir(args.run_root.absolute())
    lock = Lock(run.supervisor_lock)
    if not lock.acquire({"pid": os.getpid(), "reason": args.reason}):
        return ExitCode.MISTAKE
    if not _change_recipe(run, args.sets):
        return ExitCode.FAILED
    if args.reason == StartReason.ADOPT and not run.has_room():
        sys.stderr.write(f"{run.root} has no space for a record\n")
        return ExitCode.FAILED
    if not args.foreground:
        _detach(run)
    plan = RunRecipe.read(run)
    own = Identity.own()
    with suppress(OSError):
        run.supervisor_lock.write_text(json.dumps({**vars(own), "reason": args.reason}))
    started = RunStarted(
        run=run.id,
        recipe=plan.recipe.name,
        reason=args.reason,
        stages=plan.order,
        kinds=[plan.stage(name).kind for name in plan.order],
        redo=[name for name in args.redo.split(",") if name],
        only=[name for name in args.only.split(",") if name] or plan.only,
        checkpoint=args.checkpoint,
        checkpoint_stage=args.checkpoint_stage,
        parent=run.read_run_json().get("parent"),
        changes=unjournaled(run, plan),
        accepted_inputs=args.accepted_inputs,
    )
    become_subreaper()
    supervisor = Supervisor(run, started)
    signal.signal(signal.SIGTERM, lambda *_: _request_stop(run, supervisor))
    signal.signal(signal.SIGINT, lambda *_: _request_stop(run, supervisor))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        supervisor.drive()
    except Exception:  # noqa: BLE001 - the process's boundary: the log has the traceback, and the run can be adopted or resumed
        traceback.print_exc()
        supervisor.writer.emit(Warned(message="the supervisor failed; see supervisor.log, then resume the run"))
        return ExitCode.FAILED
    finally:
        supervisor.close()
        lock.release()
    return ExitCode.DONE


def _change_recipe(run: RunDir, sets: Sequence[str]) -> bool:
    """Apply the overrides of a resume; the process has not yet detached, so its caller sees an error on stderr."""
    try:
        if sets:
            write_changes(run, sets)
    except (OSError, OperatorError, RunDirError) as error:
        sys.stderr.write(f"the changed recipe could not be written: {error}\n")
        return False
    return True


def _children_cpu_s() -> float:
    """CPU seconds of the processes that this one has waited for; those of a killed engine are known only here."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _accepted(text: str) -> list[AcceptedInput]:
    return msgspec.json.decode(text, type=list[AcceptedInput])


def _request_stop(run: RunDir, supervisor: Supervisor) -> None:
    supervisor.told_to_end = True
    with suppress(OSError):
        control.put_request(run.control, Verb.STOP_AFTER_CHECKPOINT, by="signal to the supervisor")


def _detach(run: RunDir) -> None:
    """Double fork: the caller sees its child exit immediately, and the supervisor continues in a new session."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    log = open_append(run.supervisor_log)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    for fd in (null, log):
        if fd > 2:
            os.close(fd)
    os.chdir(run.root)


if __name__ == "__main__":
    sys.exit(main())
