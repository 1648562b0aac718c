"""Atomic checkpoints: draft folder, files, manifest, rename, then rotation.

This replaces Trainer's own save, which writes into the final folder, does not sync, and rotates by modification time.
The files keep Trainer's names, so that Trainer can load them.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer

from engines.artifacts.checkpoints import (
    Checkpoint,
    draft_of,
)
from engines.artifacts.custody import custody_of
from engines.artifacts.manifest import ManifestError, amend_manifest, commit_folder, read_manifest, write_manifest
from engines.artifacts.sharded import SHARDS
from engines.commit import parents_of
from engines.context import StageContext
from engines.events.steps import CheckpointCommitted, CheckpointStaged
from engines.files import read_regular_bytes
from engines.guards import DAMAGED_START
from engines.ranks.placement import strategy_asked
from engines.run_dir.paths import RunDir, checkpoint_name
from engines.training.devices import place
from engines.training.faults import Faults
from engines.training.precision import KERNELS, RECORD, as_record, kernels
from engines.training.progress import Counters
from engines.training.saves.background import Background
from engines.training.saves.lineage import Lineage
from engines.training.saves.parts import Parts, finite, parts_of, random_states_sha256, write_parts
from engines.training.saves.room import is_disk_error, require_disk, room_in
from engines.training.saves.save import Save
from engines.training.saves.sharded_parts import ShardedParts
from engines.training.saves.staging import Staging, staged_bytes
from recipes.stages.kind import UNSLOTH
from recipes.stages.training import TrainingFields

VERSIONED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "numpy", *UNSLOTH)
STRATEGY = "strategy"
"""In the manifest: how the processes shared the model."""
EVALUATION_DUE = "evaluation_due"
"""In a checkpoint's `position`: its step is evaluated after the checkpoint, and was not yet."""


class CheckpointWriter:
    """Writes the checkpoints of one attempt and removes old ones of its lineage.

    A checkpoint that the training need not wait for is copied into host memory and written by a thread, one at a time.
    A call of `commit`, `best` or `finish` waits for that thread first, so nothing here is used by two at once.
    """

    def __init__(
        self, ctx: StageContext[TrainingFields], faults: Faults, save_tokenizer: Callable[[Path], None]
    ) -> None:
        self._ctx = ctx
        self._run = RunDir(ctx.run_root)
        self._faults = faults
        self._save_tokenizer = save_tokenizer
        self._tokenizer: dict[str, bytes] | None = None
        self._lineage = Lineage(ctx)
        self._custody = custody_of(parents_of(ctx), ctx.resume.path if ctx.resume is not None else None)
        self._staging = Staging()
        self._in_background = self.is_asynchronous = bool(ctx.stage.async_save)
        self._background = Background()
        self._bytes = 0
        self.last_step: int | None = None
        self._unevaluated: CheckpointCommitted | None = None
        if ctx.world.is_first:
            self._lineage.clean()

    def commit(
        self,
        trainer: Trainer,
        counters: Counters,
        eval_loss: float | None,
        plan: Mapping[str, Any] | None = None,
        *,
        evaluation_follows: bool = False,
        wait: bool = True,
        others: Sequence[Mapping[str, Any]] = (),
    ) -> bool:
        """Write a checkpoint of the present step; False, after a warning, when the write failed.

        A checkpoint before an evaluation says so: a resume evaluates first. The call after the evaluation adds the loss
        to its manifest.

        Args:
            trainer: the Trainer, right after an optimizer step.
            counters: the progress so far.
            eval_loss: loss on the val split at this step; None when it was not measured.
            plan: `planned_steps` by the recipe, `requested_steps`: the last step that a request set, or None; and the
                state of the guards.
            evaluation_follows: this step is evaluated next.
            wait: return when the checkpoint is committed. Else return when its copy is made, if it is made: a write
                that fails later warns then, and `finish` says so.
            others: the random states of the other processes, by rank from 1.

        Raises:
            Exception: a bug in a save, also in the one before.
        """
        began_s = time.monotonic()
        self.finish()
        waited_s = time.monotonic() - began_s
        if self.last_step == int(trainer.state.global_step):
            return self._add_evaluation(eval_loss, _position(trainer, counters, plan))
        save = self.prepare(
            trainer,
            counters,
            partial(parts_of, trainer, others),
            eval_loss,
            plan,
            evaluation_follows=evaluation_follows,
            began_s=began_s,
        )
        if save is None:
            return False
        try:
            staged = None if wait else self._staged(save)
        except (OSError, SafetensorError, RuntimeError) as error:
            self._refused(save.step, save.draft, error)
            return False
        if staged is None:
            saved = self._complete(save)
            counters.all_finite = counters.all_finite or saved
            return saved
        self.complete_later(staged, counters, self._staging, self._staging.kept_bytes, waited_s)
        return True

    def prepare(
        self,
        trainer: Trainer,
        counters: Counters,
        take: Callable[[], Parts | ShardedParts],
        eval_loss: float | None,
        plan: Mapping[str, Any] | None,
        *,
        evaluation_follows: bool,
        began_s: float,
    ) -> Save | None:
        """What to write of the present step, with a folder for it; None, after a warning, if there is no room.

        Args:
            trainer: the Trainer, right after an optimizer step.
            counters: the progress so far.
            take: gives the parts, whole or this process's.
            eval_loss: as `commit` has it.
            plan: likewise.
            evaluation_follows: likewise.
            began_s: when the training began to wait.
        """
        step = int(trainer.state.global_step)
        draft = draft_of(self._ctx.checkpoints / checkpoint_name(step))
        position = _position(trainer, counters, plan) | ({EVALUATION_DUE: True} if evaluation_follows else {})
        try:
            parts = take()
            shares = self._ctx.world.size if isinstance(parts, ShardedParts) else 1
            require_disk(self._ctx.checkpoints, self._bytes or shares * staged_bytes(parts))
            draft.mkdir()  # not its parents: a run directory that was moved away must not be made again
            if isinstance(parts, ShardedParts):
                (draft / SHARDS).mkdir()
            return self._save(trainer, counters, parts, draft, began_s, eval_loss, position, evaluation_follows)
        except (OSError, SafetensorError, RuntimeError) as error:
            self._refused(step, draft, error)
            return None

    def finish(self) -> None:
        """Wait for the checkpoint that is being written; `last_step` says whether it is committed.

        Raises:
            Exception: a bug in that save.
        """
        self._background.finish()

    def before_update(self) -> None:
        """Wait until what the optimizer is going to change is copied."""
        self._staging.wait()

    def check(self) -> None:
        """Raise the bug that has ended a save since the last call, if there is one; waits for nothing."""
        self._background.check()

    def _save(
        self,
        trainer: Trainer,
        counters: Counters,
        parts: Parts | ShardedParts,
        draft: Path,
        began_s: float,
        eval_loss: float | None,
        position: dict[str, Any],
        evaluation_follows: bool,
    ) -> Save:
        """What to write, with everything that the training changes taken from it now, but for the tensors."""
        ctx, step = self._ctx, int(trainer.state.global_step)
        if self._tokenizer is None:
            self._tokenizer = self._files_of_tokenizer()
        return Save(
            step=step,
            draft=draft,
            final=ctx.checkpoints / checkpoint_name(step),
            parts=parts,
            model=trainer.model,
            finite=counters.all_finite and not counters.suspect,
            eval_loss=eval_loss,
            position=position,
            fields={
                "tokens": counters.tokens,
                "world_size": ctx.world.size,
                STRATEGY: strategy_asked(ctx.stage, ctx.world),
                "threads": torch.get_num_threads(),
                "device": trainer.args.device.type,
                **place(),
                RECORD: as_record(trainer.model, bf16=bool(trainer.args.bf16), fp16=bool(trainer.args.fp16)),
                KERNELS: kernels(ctx.stage, bf16=bool(trainer.args.bf16)),
            },
            evaluation_follows=evaluation_follows,
            rng_sha256=random_states_sha256(),
            began_s=began_s,
        )

    def _staged(self, save: Save) -> Save | None:
        """The save with copies of its parts; None, once with a warning, where the training has to wait for it."""
        if not self._in_background:
            return None
        parts, reason = self._staging.tried(save.parts)
        if parts is not None:
            return dataclasses.replace(save, parts=parts, stall_s=time.monotonic() - save.began_s)
        self._in_background = False
        self.warn_of_waiting(save.step, reason)
        return None

    def probe(self) -> Path | None:
        """A new empty folder beside the checkpoints, for the others to look for; None if none can be made."""
        folder = draft_of(self._ctx.checkpoints / "probe")
        try:
            folder.mkdir()
        except OSError:
            return None
        return folder

    def warn_of_gathering(self, reason: str) -> None:
        """Say why the first process writes the whole model."""
        self._ctx.warn(f"each checkpoint is brought together and written by the first process: {reason}")

    def warn_of_waiting(self, step: int, reason: str) -> None:
        """Say why the training waits for its checkpoints from now on."""
        self._ctx.warn(f"the training waits for each checkpoint from step {step} on, as without async_save: {reason}")

    def complete_later(
        self, save: Save, counters: Counters, staging: Staging, copied_bytes: int, waited_s: float
    ) -> None:
        """Copy and write a checkpoint beside the training, whose next steps count for the next checkpoint.

        Args:
            save: what to write.
            counters: the progress so far.
            staging: has its copies, unless `stall_s` is None.
            copied_bytes: host memory that the copies take in all processes.
            waited_s: seconds for which the training waited for the checkpoint before.
        """
        all_finite, counters.all_finite = counters.all_finite, True

        def job() -> None:
            saved = False
            try:
                with torch.no_grad():
                    saved = self._complete(self._filled(save, staging, copied_bytes, waited_s))
            finally:
                if not saved and not all_finite:
                    counters.all_finite = False  # no checkpoint has recorded the step that was not finite

        self._background.start(job)

    def _filled(self, save: Save, staging: Staging, copied_bytes: int, waited_s: float) -> Save:
        """Make the copies of a save and report them; the training may wait for that before its next update."""
        if save.stall_s is None:
            return save
        stall_s = save.stall_s + staging.fill()
        self._ctx.emit(
            CheckpointStaged(
                stage=self._ctx.stage_name,
                attempt=self._ctx.attempt,
                step=save.step,
                bytes=copied_bytes,
                stall_s=stall_s,
                waited_s=waited_s,
            )
        )
        return dataclasses.replace(save, stall_s=stall_s)

    def _complete(self, save: Save) -> bool:
        """Write, commit and report a checkpoint, and remove old ones; False, after a warning, when the write failed."""
        try:
            event = self._write(save)
        except (OSError, SafetensorError, RuntimeError) as error:
            self._refused(save.step, save.draft, error)
            return False
        self.last_step, self._bytes = save.step, event.bytes
        self._unevaluated = event if save.evaluation_follows else None
        self._ctx.emit(event)
        self._lineage.rotate()
        return True

    def _refused(self, step: int, draft: Path, error: Exception) -> None:
        """Remove what a failed save has written, and warn.

        Raises:
            Exception: it is a bug, and not the disk's.
        """
        shutil.rmtree(draft, ignore_errors=True)
        if not is_disk_error(error) and self._ctx.checkpoints.is_dir():  # torch has its own words for a moved run
            raise error
        self._ctx.warn(
            f"checkpoint at step {step} could not be written ({error}); {room_in(self._ctx.checkpoints)}; "
            "training continues and retries at the next save; older checkpoints are unchanged"
        )

    def _files_of_tokenizer(self) -> dict[str, bytes]:
        """The tokenizer's files, which no step changes: its own save may not run beside a step that uses it."""
        with TemporaryDirectory(dir=self._ctx.work, prefix="tokenizer-") as name:
            self._save_tokenizer(Path(name))
            found = sorted(path for path in Path(name).rglob("*") if path.is_file())
            return {path.relative_to(name).as_posix(): read_regular_bytes(path, path.lstat().st_size) for path in found}

    def _add_evaluation(self, eval_loss: float | None, position: dict[str, Any]) -> bool:
        """Complete the checkpoint that was committed before the evaluation of its step; True: there is a checkpoint."""
        event = self._unevaluated
        if event is None or eval_loss is None:
            return True
        self._unevaluated = None
        best = event.healthy and self._lineage.is_best(eval_loss, position.get("judged"))
        folder = self._ctx.checkpoints / checkpoint_name(event.step)
        try:
            sha256 = amend_manifest(folder, position=position, metrics={"eval_loss": eval_loss}, best=best)
        except (OSError, ManifestError) as error:
            self._ctx.warn(f"the evaluation of step {event.step} could not be added to its checkpoint ({error})")
            return True
        self._ctx.emit(
            CheckpointCommitted(
                stage=event.stage,
                attempt=event.attempt,
                step=event.step,
                path=event.path,
                sha256=sha256,
                healthy=event.healthy,
                best=best,
                bytes=event.bytes,
                loss=eval_loss,
                evaluated=True,
                rng_sha256=event.rng_sha256,
                stall_s=event.stall_s,
                write_s=event.write_s,
            )
        )
        self._lineage.rotate()
        return True

    def _write(self, save: Save) -> CheckpointCommitted:
        ctx, began_s = self._ctx, time.monotonic()
        known: Mapping[str, str] = {}
        if isinstance(save.parts, ShardedParts):
            known = save.parts.write(save.draft, save.model)
        else:
            write_parts(save.draft, save.model, save.parts)
        for name, data in (self._tokenizer or {}).items():
            path = save.draft / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        healthy = save.finite and save.parts.all_finite()
        best = healthy and self._lineage.is_best(save.eval_loss, save.position.get("judged"))
        self._faults.save(save.step)
        sha256 = write_manifest(
            save.draft,
            known,
            run=ctx.run_id,
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            step=save.step,
            fingerprint=ctx.fingerprint,
            lineage=self._lineage.ancestors,
            custody=self._custody,
            first_start=ctx.first_start,
            optim=ctx.stage.optim,
            stage_kind=ctx.stage.kind,
            versions=versions(),
            **save.fields,
            position=save.position,
            metrics={} if save.eval_loss is None else {"eval_loss": save.eval_loss},
            healthy=healthy,
            best=best,
        )
        size = sum(entry["bytes"] for entry in read_manifest(save.draft)["files"])
        commit_folder(save.draft, save.final)
        now_s = time.monotonic()
        return CheckpointCommitted(
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            step=save.step,
            path=self._run.relative(save.final),
            sha256=sha256,
            healthy=healthy,
            best=best,
            bytes=size,
            loss=save.eval_loss,
            rng_sha256=save.rng_sha256,
            stall_s=now_s - save.began_s if save.stall_s is None else save.stall_s,
            write_s=now_s - began_s,
        )

    def best(self) -> Checkpoint | None:
        """The best healthy checkpoint of the lineage."""
        self.finish()
        return self._lineage.best()


def _position(trainer: Trainer, counters: Counters, plan: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where the training is, for the manifest."""
    return {"epoch": trainer.state.epoch, **(plan or {}), **counters.saved()}


def damage(model: torch.nn.Module) -> str:
    """Words about the first weight that is not finite before any step, by its name in the model's file; empty if all
    are: no learning rate helps such a model."""
    for name, weight in model.named_parameters():
        if not finite(iter([weight])):
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            return f"; {DAMAGED_START}: {plain} is not finite"
    return ""


def versions() -> dict[str, str]:
    """Versions of the packages that affect the arithmetic, and of the GPU's libraries where one is used."""
    found = {}
    for name in VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found
