"""A run with a long curve, a gap, a spike and evaluations, made without a process."""

from __future__ import annotations

import math
from pathlib import Path

from engines.events.attempts import AttemptStarted, ResumedFrom
from engines.events.event import Event
from engines.events.records import encode_record
from engines.events.results import Evaluated
from engines.events.runs import RunEnded, RunStarted
from engines.events.steps import Step
from engines.events.writers import WriterOpened
from engines.run_dir.creation import create_run_dir
from engines.run_dir.paths import RunDir
from engines.words import RunStatus, StartReason, WriterRole

T0 = 1_795_000_000.0
SPIKE, NAN, ABSENT = 777, 300, 301


def step_event(attempt: int, step: int, loss: float | None, **metrics: float | None) -> Step:
    return Step(
        stage="base",
        attempt=attempt,
        step=step,
        epoch=step / 100,
        loss=loss,
        learning_rate=3e-4 * max(0.01, 1 - step / 3000),
        grad_norm=1 + 5 / step,
        tokens=step * 512,
        loss_tokens=step * 512,
        step_s=0.1,
        metrics=metrics,
    )


def curved_run(root: Path, steps: int = 2000, kind: str = "fake") -> RunDir:
    """One stage; its second attempt repeats the steps after 1000 of the first, which reached 1005."""
    run = create_run_dir(root, name="atlas", recipe="atlas", recipe_toml="", recipe_json={}, plan_json={}, version="0")
    first: list[Event] = [
        WriterOpened(role=WriterRole.ENGINE, host="vm", boot_id="x", pid=1, start_time=1, stage="base", attempt=1),
        AttemptStarted(stage="base", kind=kind, attempt=1, total_steps=steps),
    ]
    first += [step_event(1, step, 99.0 if step > 1000 else _loss(step), extra=float(step)) for step in range(1, 1006)]
    second: list[Event] = [
        WriterOpened(role=WriterRole.ENGINE, host="vm", boot_id="x", pid=2, start_time=1, stage="base", attempt=2),
        AttemptStarted(
            stage="base", kind=kind, attempt=2, resumed_from=ResumedFrom(attempt=1, step=1000, sha256="a" * 64)
        ),
    ]
    for step in range(1001, steps + 1):
        second.append(step_event(2, step, _loss(step), extra=float(step)))
        if step % 200 == 0:
            loss = 1.3 + 2 * math.exp(-step / 400)
            second.append(
                Evaluated(
                    stage="base",
                    attempt=2,
                    step=step,
                    loss=loss,
                    perplexity=math.exp(loss),
                    tokens=512,
                    protocol="fake",
                )
            )
    supervisor: list[Event] = [
        WriterOpened(role=WriterRole.SUPERVISOR, host="vm", boot_id="x", pid=1, start_time=1),
        RunStarted(run=run.id, recipe="atlas", reason=StartReason.LAUNCH, stages=["base"], kinds=[kind]),
        RunEnded(state=RunStatus.SUCCEEDED),
    ]
    with run.journal.open("ab") as journal:
        for writer, t0, events in (("s", T0, supervisor), ("e1", T0, first), ("e2", T0 + 5000, second)):
            for seq, event in enumerate(events):
                journal.write(encode_record(event, writer=writer, seq=seq, t=t0 + seq, m=seq))
    return run


def _loss(step: int) -> float | None:
    if step == NAN:
        return math.nan
    if step == ABSENT:
        return None
    return 50.0 if step == SPIKE else 1.2 + 2.6 * math.exp(-step / 400) + 0.05 * math.sin(step)
