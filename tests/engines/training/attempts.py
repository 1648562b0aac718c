"""Run entire stages in this process and read their results."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from engines.artifacts.checkpoints import scan_attempt
from engines.artifacts.manifest import verify_manifest
from engines.context import GuardTrippedError, ResumePoint, StageResult, StopRequested
from engines.control import put_request
from engines.events.event import Event
from engines.events.steps import CheckpointCommitted, Step
from engines.run_dir.paths import RunDir
from engines.words import Verb
from tests.patience import PATIENCE_S
from tests.stage_context import TriedContext, make_context

E = TypeVar("E", bound=Event)


def context(tmp_path: Path, stage: Mapping[str, Any], inputs: Mapping[str, Path | str], **more: Any) -> TriedContext:
    """A context of a later attempt finds the folders of the earlier ones."""
    return make_context(tmp_path, stage, inputs=inputs, **more)


def run_stage(ctx: TriedContext) -> StageResult | None:
    """Run the stage's own function; None when it was stopped or a guard tripped."""
    import torch

    torch.set_num_threads(1)
    from engines.finetune.stage import run as finetune
    from engines.preference.stage import run as prefer
    from engines.pretrain.stage import run as pretrain

    kinds: dict[str, Callable[[Any], StageResult]] = {"pretrain": pretrain, "finetune": finetune, "dpo": prefer}
    with suppress(StopRequested, GuardTrippedError):
        return kinds[ctx.stage.kind](ctx)
    return None


def ask(ctx: TriedContext, verb: Verb, value: float | None = None, *, at_step: int = 1, text: str = "") -> None:
    """Put a request that is present at the boundary after a step; a request during data loading is answered there."""
    emit = ctx.emit
    asked: list[str] = []

    def emit_and_ask(event: Event) -> int:
        seq = emit(event)
        if isinstance(event, Step) and event.step == at_step and not asked:
            asked.append(put_request(RunDir(ctx.run_root).control, verb, value, text=text).verb)
        return seq

    ctx.emit = emit_and_ask  # type: ignore[method-assign]


def resume_point(ctx: TriedContext, step: int) -> ResumePoint:
    """The attempt's checkpoint of a step."""
    complete, refused = scan_attempt(ctx.checkpoints)
    assert refused == []
    found = next(checkpoint for checkpoint in complete if checkpoint.step == step)
    assert verify_manifest(found.path) == []
    return ResumePoint(found.attempt, found.step, found.path, found.sha256)


def of_kind(ctx: TriedContext, kind: type[E], attempt: int | None = None) -> list[E]:
    found = [event for event in ctx.events() if isinstance(event, kind)]
    return [event for event in found if attempt is None or getattr(event, "attempt", None) == attempt]


def trajectory(ctx: TriedContext, attempt: int, after: int = 0) -> list[tuple[Any, ...]]:
    """All values of a step except its times, floats as hex: equal means bit-identical."""
    return [
        (
            event.step,
            float(event.loss or 0).hex(),
            float(event.grad_norm or 0).hex(),
            float(event.learning_rate or 0).hex(),
            event.tokens,
            event.loss_tokens,
            event.epoch,
        )
        for event in of_kind(ctx, Step, attempt)
        if event.step > after
    ]


def committed_steps(ctx: TriedContext, attempt: int) -> list[int]:
    return [event.step for event in of_kind(ctx, CheckpointCommitted, attempt) if not event.evaluated]


class Held:
    """The write of one step's checkpoint, which does not end before a record is in the journal."""

    def __init__(
        self,
        ctx: TriedContext,
        monkeypatch: pytest.MonkeyPatch,
        step: int,
        until: Callable[[Event], bool],
        *,
        before: bool = False,
    ) -> None:
        """`before`: it waits before its first file, else after its last."""
        from engines.training import saving
        from engines.training.saves.parts import write_parts

        self.seen_at_end: list[int] = []
        known, emit = threading.Event(), ctx.emit

        def write(folder: Path, model: Any, parts: Any) -> None:
            if before and parts.state.global_step == step:
                assert known.wait(PATIENCE_S)
            write_parts(folder, model, parts)
            if parts.state.global_step == step:
                assert known.wait(PATIENCE_S)
                self.seen_at_end = [one.step for one in scan_attempt(ctx.checkpoints)[0]]

        def emit_and_release(event: Event) -> int:
            seq = emit(event)
            if until(event):
                known.set()
            return seq

        monkeypatch.setattr(saving, "write_parts", write)
        ctx.emit = emit_and_release  # type: ignore[method-assign]
