"""Synthetic journals with the events that engines, supervisors and samplers write."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from engines.events.attempts import AttemptEnded, AttemptStarted, Phase, Progress, ResumedFrom
from engines.events.event import Event
from engines.events.kinds import AnyEvent
from engines.events.machine import Device, MachineSampled
from engines.events.records import decode_record, encode_record
from engines.events.results import ArtifactCommitted, Evaluated
from engines.events.runs import ControlApplied, RunEnded, RunStarted, StageFailed, StageStarted, StageSucceeded
from engines.events.steps import CheckpointCommitted, GuardTripped, Step
from engines.events.writers import Warned, WriterOpened
from engines.words import EndReason, RunStatus, StartReason, WriterRole

T0 = 1_795_000_000.0
GIB = 1 << 30


@dataclass
class Journal:
    """Events in the order of writing; every `say` adds one record of one writer."""

    events: list[AnyEvent] = field(default_factory=list)
    t: float = T0
    _next: dict[str, int] = field(default_factory=dict)
    _lines: list[bytes] = field(default_factory=list)

    def say(self, writer: str, event: Event, after_s: float = 0.0) -> None:
        self.t = round(self.t + after_s, 6)  # as precise as the wire
        seq = self._next.get(writer, 0)
        self._next[writer] = seq + 1
        line = encode_record(_bare(event), writer=writer, seq=seq, t=self.t, m=self.t - T0)
        self.events.append(decode_record(line[:-1]))  # as a reader gets it
        self._lines.append(line)

    def open(self, writer: str, role: str, stage: str | None = None, attempt: int | None = None) -> None:
        self.say(
            writer,
            WriterOpened(
                role=WriterRole(role),
                host="spark-01",
                boot_id="b",
                pid=100 + len(self._next),
                start_time=1,
                stage=stage,
                attempt=attempt,
            ),
        )

    def write(self, run_root: Path) -> Path:
        """Make a run directory with this journal."""
        run_root.mkdir(parents=True, exist_ok=True)
        (run_root / "run.json").write_text(
            f'{{"format":1,"id":"{run_root.name}","recipe":"demo","parent":null,"version":"0"}}'
        )
        (run_root / "journal.jsonl").write_bytes(b"".join(self._lines))
        return run_root


def _bare(event: Event) -> Event:
    """The event as a writer makes it, with the defaults of the header fields."""
    fields = [name for name in event.__struct_fields__ if name not in {"v", "w", "seq", "t", "m"}]
    return type(event)(**{name: getattr(event, name) for name in fields})


def loss_at(step: int, total: int, noise: random.Random) -> float:
    return 0.4 + 2.6 * math.exp(-6 * step / total) + noise.gauss(0, 0.06) * (0.4 + math.exp(-4 * step / total))


def rate_at(step: int, total: int, peak: float = 2e-4) -> float:
    warm = max(1, total // 20)
    return (
        peak * step / warm
        if step < warm
        else peak * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))
    )


def machine(t: float, gpu: bool = True) -> MachineSampled:
    wave = 0.5 + 0.5 * math.sin(t / 40)
    device = Device(id=0, name="NVIDIA GB10", util_percent=94 + 4 * wave, memory_used_bytes=int((80 + 8 * wave) * GIB))
    device = msgspec.structs.replace(device, memory_total_bytes=128 * GIB, temperature_c=70.0, power_w=92.5)
    return MachineSampled(
        host="spark-01",
        cpu_percent=31.0 + 5 * wave,
        ram_total_bytes=119 * GIB,
        ram_available_bytes=int((65 - 8 * wave) * GIB),
        engine_rss_bytes=int((9 + wave) * GIB),
        unified=False,
        devices=[device] if gpu else [],
        stage="atlas",
    )


def training(
    journal: Journal,
    stage: str = "atlas",
    kind: str = "finetune",
    *,
    attempt: int = 1,
    first: int = 1,
    last: int = 412,
    total: int = 820,
    resumed: ResumedFrom | None = None,
    nan_at: int | None = None,
    gpu: bool = True,
    seed: int = 7,
) -> None:
    """One attempt's steps, with evaluations and checkpoints every 100 steps and machine samples every second."""
    noise = random.Random(seed + attempt)
    engine = f"e{attempt}.{stage}"
    journal.say("sup", StageStarted(stage=stage, kind=kind, attempt=attempt, steps=total))
    journal.open(engine, "engine", stage, attempt)
    journal.say(
        engine,
        AttemptStarted(stage=stage, kind=kind, attempt=attempt, resumed_from=resumed, total_steps=total, pid=200),
        0.5,
    )
    for phase in ("importing", "loading", "first step"):
        journal.say(engine, Phase(stage=stage, attempt=attempt, name=phase), 1.0)
    best = math.inf
    for step in range(first, last + 1):
        loss: float = math.nan if step == nan_at else loss_at(step, total, noise)
        journal.say(
            engine,
            Step(
                stage=stage,
                attempt=attempt,
                step=step,
                epoch=2 * step / total,
                loss=loss,
                learning_rate=rate_at(step, total),
                grad_norm=math.nan if step == nan_at else abs(1.1 + noise.gauss(0, 0.25)),
                tokens=step * 8192,
                loss_tokens=step * 4000,
                step_s=3.9 + noise.random() * 0.2,
                metrics={},
            ),
            4.0,
        )
        if step % 2 == 0:
            journal.say("samp", machine(journal.t, gpu))
        if step == nan_at:
            journal.say(
                engine,
                GuardTripped(stage=stage, attempt=attempt, guard="nonfinite", step=step, value=math.nan, limit=None),
            )
            journal.say(
                engine,
                AttemptEnded(
                    stage=stage, attempt=attempt, reason=EndReason.GUARD, detail="loss is not a number", step=step
                ),
            )
            return
        if step % 100 == 0:
            value = loss_at(step, total, random.Random(step))
            journal.say(
                engine,
                Evaluated(
                    stage=stage,
                    attempt=attempt,
                    step=step,
                    loss=value,
                    perplexity=math.exp(value),
                    tokens=20000,
                    protocol="token",
                ),
            )
            journal.say(
                engine,
                CheckpointCommitted(
                    stage=stage,
                    attempt=attempt,
                    step=step,
                    path=f"stages/{stage}/{attempt}/checkpoints/step-{step}",
                    sha256=f"{step:064x}",
                    healthy=True,
                    best=value < best,
                    bytes=312 << 20,
                    loss=value,
                ),
            )
            best = min(best, value)


STAGES = ["questions", "base-merged", "atlas", "gguf"]
KINDS = ["prepare", "merge", "finetune", "export"]


def begun() -> Journal:
    journal = Journal()
    journal.open("sup", "supervisor")
    journal.say(
        "sup",
        RunStarted(
            run="20261120-2130-atlas", recipe="csdl-atlas", reason=StartReason.LAUNCH, stages=STAGES, kinds=KINDS
        ),
    )
    journal.open("samp", "sampler")
    return journal


def engine_of(stage: str) -> str:
    """The writer of a stage's first attempt."""
    return "e1." + "".join(c for c in stage if c.isascii() and (c.isalnum() or c == "-"))


def short_stage(journal: Journal, stage: str, kind: str, unit: str, total: float, upto: float | None = None) -> None:
    """A stage without steps: progress, and an artifact when it reaches its end."""
    engine = engine_of(stage)
    journal.say("sup", StageStarted(stage=stage, kind=kind, attempt=1))
    journal.open(engine, "engine", stage, 1)
    journal.say(engine, AttemptStarted(stage=stage, kind=kind, attempt=1), 0.2)
    journal.say(engine, Phase(stage=stage, attempt=1, name="loading"), 0.5)
    journal.say(engine, Phase(stage=stage, attempt=1, name="writing tensors"), 0.5)
    end = total if upto is None else upto
    for part in range(1, 11):
        journal.say(engine, Progress(stage=stage, attempt=1, done=end * part / 10, total=total, unit=unit), 2.0)
        journal.say("samp", machine(journal.t))
    if upto is None:
        journal.say(
            engine,
            ArtifactCommitted(
                stage=stage,
                attempt=1,
                name=stage,
                kind="model",
                path=f"stages/{stage}/out",
                bytes=2 * GIB,
                sha256="0" * 64,
            ),
        )
        journal.say(
            engine,
            StageSucceeded(
                stage=stage, attempt=1, fingerprint="f", manifest_sha256="0" * 64, metrics={"documents": 1200}
            ),
        )
        journal.say(engine, AttemptEnded(stage=stage, attempt=1, reason=EndReason.SUCCEEDED))
        journal.say("sup", AttemptEnded(stage=stage, attempt=1, reason=EndReason.SUCCEEDED, exit=0))


def live(step: int = 412, gpu: bool = True) -> Journal:
    """A run in the middle of its third stage."""
    journal = begun()
    short_stage(journal, "questions", "prepare", "files", 1200)
    short_stage(journal, "base-merged", "merge", "tensors", 291)
    training(journal, last=step, gpu=gpu)
    journal.say("e1.atlas", Warned(message="12 examples were cut to max_length", stage="atlas", attempt=1))
    return journal


def merging() -> Journal:
    """A run in the middle of a stage that has no steps."""
    journal = begun()
    short_stage(journal, "questions", "prepare", "files", 1200)
    short_stage(journal, "base-merged", "merge", "tensors", 291, upto=120)
    return journal


def failed() -> Journal:
    """A run whose loss became NaN, was retried from a checkpoint, and failed again."""
    journal = begun()
    short_stage(journal, "questions", "prepare", "files", 1200)
    short_stage(journal, "base-merged", "merge", "tensors", 291)
    training(journal, last=700, nan_at=641)
    journal.say("sup", AttemptEnded(stage="atlas", attempt=1, reason=EndReason.UNKNOWN, exit=1), 1.0)
    training(
        journal,
        attempt=2,
        first=501,
        last=700,
        resumed=ResumedFrom(attempt=1, step=500, sha256=f"{500:064x}"),
        nan_at=655,
    )
    journal.say("sup", AttemptEnded(stage="atlas", attempt=2, reason=EndReason.UNKNOWN, exit=1), 1.0)
    journal.say("sup", StageFailed(stage="atlas", reason="guard nonfinite tripped twice"))
    journal.say("sup", RunEnded(state=RunStatus.FAILED, reason="stage atlas failed"))
    return journal


def finished() -> Journal:
    """A run that succeeded, with an operator's request during training."""
    journal = begun()
    short_stage(journal, "questions", "prepare", "files", 1200)
    short_stage(journal, "base-merged", "merge", "tensors", 291)
    training(journal, last=820)
    journal.say(
        "e1.atlas",
        ControlApplied(request="checkpoint", by="operator", effect="checkpoint 820", step=820, stage="atlas"),
    )
    metrics: dict[str, float | None] = {"loss": 0.41, "perplexity": 1.507, "steps": 820}
    journal.say(
        "e1.atlas", StageSucceeded(stage="atlas", attempt=1, fingerprint="f", manifest_sha256="1" * 64, metrics=metrics)
    )
    journal.say("e1.atlas", AttemptEnded(stage="atlas", attempt=1, reason=EndReason.SUCCEEDED))
    short_stage(journal, "gguf", "export", "tensors", 291)
    journal.say("sup", RunEnded(state=RunStatus.SUCCEEDED))
    return journal


def preferring(last: int = 120) -> Journal:
    """A live training on preferences: its steps and evaluations have the rewards that its method measures."""
    journal = Journal()
    for event in live(last).events:
        more = {"metrics": rewards_at(event.step or 0)} if isinstance(event, Step | Evaluated) else {}
        less = {"perplexity": None} if isinstance(event, Evaluated) else {}
        journal.say(event.w, msgspec.structs.replace(event, **more, **less), max(0.0, event.t - journal.t))
    return journal


def rewards_at(step: int) -> dict[str, float | None]:
    """What a training on preferences measures at a step: the margin rises by 1/100 in each."""
    chosen, rejected = step / 250, -step * 3 / 500
    noise = random.Random(step)
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": min(1.0, 0.5 + step / 300 + noise.random() / 8),
        "logps/chosen": -80.0 + chosen,
        "logps/rejected": -90.0 + rejected,
    }
