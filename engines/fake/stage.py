"""The fake engine: a simulated training without a model, for demonstrations, tests and screenshots.

Its losses are a pure function of seed and step, so a resumed run shows the same numbers as an uninterrupted one. With
`COCKPIT_TEST_FAULTS` it supports the kill tests: `{"ack_file": PATH}` stores each acknowledged sequence number in a
memory-mapped file after `emit` returns, `{"ignore_stop": true}` makes it ignore requests and SIGTERM,
`{"orphan": true}` starts a child in a new session, `{"rank": n}` confines the faults of the recipe to one of several
processes. Those simulate the same numbers, and meet at the end of each step as a training's do.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

from engines.artifacts.checkpoints import draft_of, remove_checkpoint, scan_attempt, which_to_remove
from engines.artifacts.manifest import commit_folder, read_manifest, write_manifest
from engines.context import Artifact, GuardTrippedError, StageContext, StageResult, StopRequested
from engines.control import Request
from engines.data_wait import DataWait
from engines.events.results import Evaluated
from engines.events.steps import CheckpointCommitted, CheckpointRemoved, GuardTripped, Step, StepsPlanned
from engines.guards import check_step
from engines.run_dir.paths import RunDir, checkpoint_name
from engines.words import IGNORED, PHASE_PAUSED, PHASE_TRAINING, Verb
from recipes import quantities
from recipes.stages.fake import FakeStage
from recipes.stages.launch.fields import DDP

TOKENS_PER_STEP = 8192


def loss_at(seed: int, step: int) -> float:
    """The simulated loss of a step: a falling curve with noise, in nats per token."""
    noise = random.Random(f"{seed}:{step}").gauss(0, 0.05)  # noqa: S311 - noise, not a secret
    return 1.2 + 2.6 * math.exp(-step / 60) + noise


class _Acknowledged:
    """The last sequence number whose emit returned, in a file that survives kill -9."""

    def __init__(self, path: str | None) -> None:
        self._map: mmap.mmap | None = None
        if path:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(fd, 64)
            self._map = mmap.mmap(fd, 64)

    def store(self, writer: str, seq: int) -> None:
        if self._map is not None:
            self._map[:40] = struct.pack("<q32s", seq, writer.encode())


def run(ctx: StageContext[FakeStage]) -> StageResult:
    """Simulate a training."""
    return _FakeTraining(ctx).run()


def _continued_step(ctx: StageContext[FakeStage]) -> int:
    """The step of the checkpoint of another run that the stage continues; 0 for a training from its start."""
    given = ctx.inputs.get("start_from")
    if given is None or given.path is None:
        return 0
    step = read_manifest(given.path).get("step")
    return step if isinstance(step, int) else 0


class _FakeTraining:
    def __init__(self, ctx: StageContext[FakeStage]) -> None:
        self.ctx = ctx
        self.stage = ctx.stage
        self.first_step = (ctx.resume.step if ctx.resume else _continued_step(ctx)) + 1
        self.total_steps = int(ctx.stage.max_steps)
        self.learning_rate = ctx.stage.learning_rate * ctx.learning_rate_scale
        self.acknowledged = _Acknowledged(ctx.test_faults.get("ack_file"))
        self.best: float | None = None
        self.evaluated: tuple[int, float] | None = None
        self.healthy = True
        self.data_wait = DataWait(ctx.phase)
        self.last_saved = self.first_step - 1

    def run(self) -> StageResult:
        ctx = self.ctx
        if ctx.test_faults.get("ignore_stop"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if ctx.test_faults.get("orphan"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        ctx.phase("loading")
        if ctx.world.size > 1:
            ctx.world.connect()
            ctx.placed(DDP, ctx.world.gather_objects("cpu"))
        ctx.emit(StepsPlanned(stage=ctx.stage_name, attempt=ctx.attempt, total_steps=self.total_steps))
        loss = loss_at(self.stage.seed, self.first_step - 1)
        step = self.first_step - 1
        while step < self.total_steps:
            step += 1
            loss = self._step(step)
            if self.stage.eval_steps and step % self.stage.eval_steps == 0:
                self._evaluate(step)
            saved = step % self.stage.save_steps == 0 or step == self.total_steps
            if saved:
                self._save(step)
            self._handle_requests(step, saved=saved)
        (ctx.out / "fake.json").write_text(json.dumps({"loss": loss, "steps": self.total_steps}))
        artifacts = [Artifact(name=ctx.stage_name, kind="report", path="fake.json")]
        return StageResult(
            metrics={"loss": loss, "steps": self.total_steps, "tokens": step * TOKENS_PER_STEP}, artifacts=artifacts
        )

    def _step(self, step: int) -> float:
        ctx, began_s = self.ctx, time.monotonic()
        if self.stage.step_s:
            time.sleep(self.stage.step_s)
        faulty = ctx.attempt == 1 and ctx.test_faults.get("rank", ctx.world.rank) == ctx.world.rank
        wait_s = self.stage.wait_s if faulty and step == self.stage.wait_at_step else 0.0
        if wait_s:
            with self.data_wait:
                time.sleep(wait_s)
        while faulty and step == self.stage.hang_at_step:
            time.sleep(3600)
        if faulty and step == self.stage.fail_at_step:
            raise RuntimeError(f"simulated failure at step {step}")
        loss = math.nan if faulty and step == self.stage.nan_at_step else loss_at(self.stage.seed, step)
        losses = ctx.world.gather_objects(loss)
        loss = loss if len(losses) == 1 else math.fsum(losses) / len(losses)
        grad_norm = 0.4 + 2.0 * math.exp(-step / 40) + 0.1 * abs(loss_at(self.stage.seed + 1, step) - 1.2)
        share = step / max(1, self.total_steps)
        event = Step(
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            step=step,
            epoch=share,
            loss=loss,
            learning_rate=self.learning_rate * min(1.0, step / 10) * (0.1 + 0.45 * (1 + math.cos(math.pi * share))),
            grad_norm=grad_norm,
            tokens=step * TOKENS_PER_STEP,
            loss_tokens=step * TOKENS_PER_STEP,
            step_s=max(time.monotonic() - began_s, 1e-6),
            data_wait_s=wait_s,
        )
        self._emit(event)
        trip = check_step(loss, grad_norm, self.stage.guards.grad_norm)
        if trip is not None:
            self.healthy = False
            self._emit(
                GuardTripped(
                    stage=ctx.stage_name,
                    attempt=ctx.attempt,
                    guard=trip.guard,
                    step=step,
                    value=trip.value,
                    limit=trip.limit,
                )
            )
            guilty = [str(rank) for rank, one in enumerate(losses) if not math.isfinite(one)]
            of_one = f" of rank {', '.join(guilty)}" if len(losses) > 1 and guilty else ""
            raise GuardTrippedError(f"{trip.guard}{of_one} at step {step}")
        return loss

    def _emit(self, event: Step | GuardTripped | Evaluated | CheckpointCommitted | CheckpointRemoved) -> None:
        self.acknowledged.store(self.ctx.writer.writer, self.ctx.emit(event))

    def _evaluate(self, step: int) -> None:
        loss = loss_at(self.stage.seed, step) + 0.08
        self.evaluated = (step, loss)
        self._emit(
            Evaluated(
                stage=self.ctx.stage_name,
                attempt=self.ctx.attempt,
                step=step,
                loss=loss,
                perplexity=math.exp(loss),
                tokens=TOKENS_PER_STEP,
                protocol="fake",
            )
        )

    def _save(self, step: int) -> None:
        """Commit a checkpoint; on a full disk, only this checkpoint is lost. The first process does it."""
        self.last_saved = step
        if not self.ctx.world.is_first:
            return
        draft = draft_of(self.ctx.checkpoints / checkpoint_name(step))
        try:
            self._write_checkpoint(draft, step)
        except OSError as error:
            shutil.rmtree(draft, ignore_errors=True)
            self.ctx.warn(f"checkpoint at step {step} could not be written ({error}); training continues")
            return
        self._rotate()

    def _write_checkpoint(self, draft: Path, step: int) -> None:
        ctx = self.ctx
        measured = self.evaluated[1] if self.evaluated is not None and self.evaluated[0] == step else None
        best = measured is not None and (self.best is None or measured <= self.best)
        if best:
            self.best = measured
        draft.mkdir()
        content = random.Random(f"{self.stage.seed}:{step}")  # noqa: S311 - noise, not a secret
        (draft / "state.bin").write_bytes(content.randbytes(self.stage.checkpoint_bytes))
        sha256 = write_manifest(
            draft,
            run=ctx.run_id,
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            step=step,
            tokens=step * TOKENS_PER_STEP,
            healthy=self.healthy,
            best=best,
            metrics={} if measured is None else {"eval_loss": measured},
        )
        final = ctx.checkpoints / checkpoint_name(step)
        commit_folder(draft, final)
        self._emit(
            CheckpointCommitted(
                stage=ctx.stage_name,
                attempt=ctx.attempt,
                step=step,
                path=RunDir(ctx.run_root).relative(final),
                sha256=sha256,
                healthy=self.healthy,
                best=best,
                bytes=self.stage.checkpoint_bytes,
                loss=measured,
            )
        )

    def _rotate(self) -> None:
        complete, _ = scan_attempt(self.ctx.checkpoints)
        for old in which_to_remove(complete, self.stage.save_total_limit):
            remove_checkpoint(old)
            self._emit(
                CheckpointRemoved(
                    stage=self.ctx.stage_name,
                    attempt=self.ctx.attempt,
                    step=old.step,
                    path=RunDir(self.ctx.run_root).relative(Path(old.path)),
                    sha256=old.sha256,
                    healthy=old.healthy,
                    best=old.best,
                )
            )

    def _handle_requests(self, step: int, *, saved: bool) -> None:
        if self.ctx.test_faults.get("ignore_stop"):
            return
        for request in self.ctx.requests():
            if request.verb.is_stop:
                self._stop(request, step, saved=saved)
            elif request.verb is Verb.PAUSE:
                self.ctx.applied(request, "paused", step)
                self._pause(step)
            else:
                self.ctx.applied(request, self._answer(request, step, saved=saved), step)

    def _stop(self, request: Request, step: int, *, saved: bool) -> None:
        if request.verb is Verb.STOP:
            self.ctx.applied(request, "stopping now", step)
            raise StopRequested
        if not saved:
            self._save(step)
        self.ctx.applied(request, f"stopping after checkpoint step-{step}", step)
        raise StopRequested

    def _answer(self, request: Request, step: int, *, saved: bool) -> str:
        """Carry out the request and return its effect."""
        match request.verb:
            case Verb.CHECKPOINT:
                if not saved:
                    self._save(step)
                return f"checkpoint step-{step}"
            case Verb.EVALUATE:
                self._evaluate(step)
                return "evaluated"
            case Verb.LEARNING_RATE if request.value is not None:
                self.learning_rate = request.value
                return f"peak learning rate is now {quantities.exact(request.value)}"
            case Verb.MAX_STEPS if request.value is not None:
                self.total_steps = max(step, int(request.value))
                self.ctx.emit(
                    StepsPlanned(stage=self.ctx.stage_name, attempt=self.ctx.attempt, total_steps=self.total_steps)
                )
                return f"the stage ends at step {self.total_steps}"
            case Verb.CONTINUE:
                return f"{IGNORED}: not paused"
            case _:
                return f"{IGNORED}: a fake stage does not support {request.verb}"

    def _pause(self, step: int) -> None:
        self.ctx.phase(PHASE_PAUSED)
        while True:
            time.sleep(0.1)
            for request in self.ctx.requests():
                if request.verb is Verb.CONTINUE:
                    self.ctx.applied(request, "continued", step)
                    self.ctx.phase(PHASE_TRAINING)
                    return
                if request.verb.is_stop:
                    self._stop(request, step, saved=self.last_saved == step)
                saved = self.last_saved == step
                paused = request.verb is Verb.PAUSE
                effect = f"{IGNORED}: already paused" if paused else self._answer(request, step, saved=saved)
                self.ctx.applied(request, effect, step)
