"""Atomic checkpoints: draft folder, files, manifest, rename, then rotation.

This replaces Trainer's own save, which writes into the final folder, does not sync, and rotates by modification time.
The files keep Trainer's names, so that Trainer can load them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import Trainer

from engines.artifacts.checkpoints import (
    Checkpoint,
    clean_leftovers,
    current_best,
    draft_of,
    remove_checkpoint,
    scan,
    which_to_remove,
)
from engines.artifacts.custody import custody_of
from engines.artifacts.manifest import ManifestError, amend_manifest, commit_folder, read_manifest, write_manifest
from engines.commit import parents_of
from engines.context import StageContext
from engines.events import CheckpointCommitted, CheckpointRemoved
from engines.json_text import read_object
from engines.run_dir import RunDir, checkpoint_name, lock_is_held
from engines.training.devices import place
from engines.training.faults import Faults
from engines.training.precision import KERNELS, RECORD, as_record, kernels
from engines.training.progress import Counters
from recipes import quantities
from recipes.stages.kind import UNSLOTH
from recipes.stages.training import TrainingFields

VERSIONED = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "numpy", *UNSLOTH)
EVALUATION_DUE = "evaluation_due"
"""In a checkpoint's `position`: its step is evaluated after the checkpoint, and was not yet."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class CheckpointWriter:
    """Writes the checkpoints of one attempt and removes old ones of its lineage."""

    def __init__(
        self, ctx: StageContext[TrainingFields], faults: Faults, save_tokenizer: Callable[[Path], None]
    ) -> None:
        self._ctx = ctx
        self._run = RunDir(ctx.run_root)
        self._faults = faults
        self._save_tokenizer = save_tokenizer
        self._ancestors: list[tuple[int, int]] = _ancestors(ctx)
        self._custody = custody_of(parents_of(ctx), ctx.resume.path if ctx.resume is not None else None)
        self.last_step: int | None = None
        self._unevaluated: CheckpointCommitted | None = None
        self._clean()

    @property
    def lineage(self) -> list[tuple[int, int | None]]:
        """This attempt and those that it resumed from, newest first, each with its last step (None: no limit)."""
        return [(self._ctx.attempt, None), *self._ancestors]

    def commit(
        self,
        trainer: Trainer,
        counters: Counters,
        eval_loss: float | None,
        plan: Mapping[str, Any] | None = None,
        *,
        evaluation_follows: bool = False,
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
        """
        step = int(trainer.state.global_step)
        position = {"epoch": trainer.state.epoch, **(plan or {}), **counters.saved()}
        if self.last_step == step:
            return self._add_evaluation(eval_loss, position)
        if evaluation_follows:
            position[EVALUATION_DUE] = True
        final = self._ctx.checkpoints / checkpoint_name(step)
        draft = draft_of(final)
        try:
            draft.mkdir()  # not its parents: a run directory that was moved away must not be made again
            event = self._write(draft, final, trainer, counters, eval_loss, position)
        except (OSError, SafetensorError, RuntimeError) as error:
            shutil.rmtree(draft, ignore_errors=True)
            if not _is_disk_error(error):
                raise
            self._ctx.warn(
                f"checkpoint at step {step} could not be written ({error}); {_room_in(self._ctx.checkpoints)}; "
                "training continues and retries at the next save; older checkpoints are unchanged"
            )
            return False
        self.last_step = step
        self._unevaluated = event if evaluation_follows else None
        counters.all_finite = True
        self._ctx.emit(event)
        self._rotate()
        return True

    def _add_evaluation(self, eval_loss: float | None, position: dict[str, Any]) -> bool:
        """Complete the checkpoint that was committed before the evaluation of its step; True: there is a checkpoint."""
        event = self._unevaluated
        if event is None or eval_loss is None:
            return True
        self._unevaluated = None
        best = event.healthy and self._is_best(eval_loss, position.get("judged"))
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
            )
        )
        self._rotate()
        return True

    def _write(
        self,
        draft: Path,
        final: Path,
        trainer: Trainer,
        counters: Counters,
        eval_loss: float | None,
        position: dict[str, Any],
    ) -> CheckpointCommitted:
        ctx, step = self._ctx, int(trainer.state.global_step)
        write_training_state(draft, trainer)
        self._save_tokenizer(draft)
        healthy = counters.all_finite and not counters.suspect and all_finite(trainer.model, trainer.optimizer)
        best = healthy and self._is_best(eval_loss, position.get("judged"))
        self._faults.save(step)
        sha256 = write_manifest(
            draft,
            run=ctx.run_id,
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            step=step,
            tokens=counters.tokens,
            fingerprint=ctx.fingerprint,
            lineage=self._ancestors,
            custody=self._custody,
            first_start=ctx.first_start,
            world_size=int(trainer.args.world_size),
            threads=torch.get_num_threads(),
            optim=ctx.stage.optim,
            stage_kind=ctx.stage.kind,
            device=trainer.args.device.type,
            **place(),
            **{RECORD: as_record(trainer.model, bf16=bool(trainer.args.bf16)), KERNELS: kernels(ctx.stage)},
            versions=versions(),
            position=position,
            metrics={} if eval_loss is None else {"eval_loss": eval_loss},
            healthy=healthy,
            best=best,
        )
        size = sum(entry["bytes"] for entry in read_manifest(draft)["files"])
        commit_folder(draft, final)
        return CheckpointCommitted(
            stage=ctx.stage_name,
            attempt=ctx.attempt,
            step=step,
            path=self._run.relative(final),
            sha256=sha256,
            healthy=healthy,
            best=best,
            bytes=size,
            loss=eval_loss,
            rng_sha256=random_states_sha256(),
        )

    def best(self) -> Checkpoint | None:
        """The best healthy checkpoint of the lineage."""
        return current_best(
            checkpoint
            for checkpoint in self._lineage_checkpoints()
            if checkpoint.healthy and checkpoint.judged is not None
        )

    def _is_best(self, eval_loss: float | None, judged: Any) -> bool:
        metrics = {} if eval_loss is None else {"eval_loss": eval_loss}
        new = Checkpoint(0, 0, self._ctx.work, "", healthy=True, metrics=metrics, position={"judged": judged}).judged
        best = current_best(self._lineage_checkpoints())
        return new is not None and (best is None or best.judged is None or new <= best.judged)

    def _rotate(self) -> None:
        for old in which_to_remove(self._lineage_checkpoints(), self._ctx.stage.save_total_limit):
            remove_checkpoint(old)
            self._ctx.emit(
                CheckpointRemoved(
                    stage=self._ctx.stage_name,
                    attempt=old.attempt,
                    step=old.step,
                    path=self._run.relative(old.path),
                    sha256=old.sha256,
                    healthy=old.healthy,
                    best=old.best,
                )
            )

    def _lineage_checkpoints(self) -> list[Checkpoint]:
        """Complete checkpoints of the lineage. Later ones that a resume from an earlier step replaced are not in it."""
        last = dict(self.lineage)
        complete, _ = scan(self._run.stage_dir(self._ctx.stage_name))
        counted = [(checkpoint, last.get(checkpoint.attempt, -1)) for checkpoint in complete]
        return [checkpoint for checkpoint, limit in counted if limit is None or checkpoint.step <= limit]

    def _clean(self) -> None:
        """Delete the partial checkpoints that dead engines of this stage left."""
        stage = self._ctx.stage_name
        for attempt in self._run.attempts(stage):
            if attempt == self._ctx.attempt or not lock_is_held(self._run.engine_lock(stage, attempt)):
                clean_leftovers(self._run.checkpoints(stage, attempt))


def random_states_sha256() -> str:
    """The SHA-256 of the random states that decide what comes next: Python's, numpy's, torch's of the CPU and of each
    device. Equal for equal states, in any process."""
    digest = hashlib.sha256()
    digest.update(repr(random.getstate()).encode())
    digest.update(repr([np.asarray(part).tolist() for part in np.random.get_state()]).encode())
    states = [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
    for state in states:
        digest.update(state.numpy().tobytes())
    return digest.hexdigest()


def write_training_state(folder: Path, trainer: Trainer) -> None:
    """Write model or adapter, optimizer, scheduler, random states and Trainer's state, with Trainer's file names."""
    save_model(trainer.model, folder)
    trainer._save_optimizer_and_scheduler(str(folder))
    trainer._save_rng_state(str(folder))
    trainer.state.save_to_json(str(folder / "trainer_state.json"))


def save_model(model: Any, folder: Path) -> None:
    """Save a model as a Hugging Face folder, or a PEFT model's adapter as an adapter folder; always safetensors."""
    if hasattr(model, "peft_config"):
        model.save_pretrained(str(folder), save_embedding_layers=_is_resized(model))
        with suppress(FileNotFoundError):
            (folder / "README.md").unlink()  # an empty template for a model hub
    else:
        model.save_pretrained(str(folder))


def _is_resized(adapted: Any) -> bool:
    """Whether a PEFT model has another number of embedding rows than its base model's folder."""
    base = Path(next(iter(adapted.peft_config.values())).base_model_name_or_path or "")
    rows = adapted.get_input_embeddings().weight.shape[0]
    return (base / "config.json").is_file() and read_object(base / "config.json").get("vocab_size", rows) < rows


def all_finite(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Whether every trained weight and every floating tensor of the optimizer's state is finite."""
    state = (value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value))
    return _finite(parameter for parameter in model.parameters() if parameter.requires_grad) and _finite(state)


def damage(model: torch.nn.Module) -> str:
    """Words about the first weight that is not finite before any step, by its name in the model's file; empty if all
    are: no learning rate helps such a model."""
    for name, weight in model.named_parameters():
        if not _finite([weight]):
            plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
            return f"; the model from which it starts is damaged: {plain} is not finite"
    return ""


def _finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether tensors of any shape and type contain only finite values."""
    # A finite sum proves all parts finite in one pass without a mask; only a non-finite sum needs the slower check.
    for tensor in tensors:
        detached = tensor.detach()
        if not detached.is_floating_point() or bool(torch.isfinite(detached.sum(dtype=torch.float32))):
            continue
        if not bool(torch.isfinite(detached).all()):
            return False
    return True


def versions() -> dict[str, str]:
    """Versions of the packages that affect the arithmetic, and of the GPU's libraries where one is used."""
    found = {}
    for name in VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    if torch.cuda.is_available():
        found |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return found


def _ancestors(ctx: StageContext[TrainingFields]) -> list[tuple[int, int]]:
    if ctx.resume is None:
        return []
    older = read_manifest(ctx.resume.path).get("lineage") or []
    known = {ctx.resume.attempt, ctx.attempt}
    lineage = [(ctx.resume.attempt, ctx.resume.step)]
    for attempt, step in older:
        if attempt not in known:
            known.add(int(attempt))
            lineage.append((int(attempt), min(int(step), lineage[-1][1])))
    return lineage


def _room_in(folder: Path) -> str:
    """How much space a folder has, or that the run was moved while it runs."""
    try:
        return f"{quantities.size(shutil.disk_usage(folder).free)} are free"
    except FileNotFoundError:
        return "the run directory was moved or removed; move it back"


def _is_disk_error(error: Exception) -> bool:
    """Whether training can continue after a failed save. torch and safetensors report the system's error as text."""
    if isinstance(error, OSError | SafetensorError):
        return True
    if isinstance(error, torch.OutOfMemoryError):
        return False
    text = str(error).lower()
    signs = [os.strerror(code).lower() for code in _NO_SPACE] + ["unexpected pos", "pytorchstreamwriter failed"]
    return any(sign in text for sign in signs)
