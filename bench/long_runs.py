"""Measures what a long run costs each of its readers: `python -m bench.long_runs [--big]`.

It writes journals of a small and of long live runs (steps, a machine sample per second, evaluations, checkpoints,
sample texts), then starts the real commands and screens, each in its own process. The table has their CPU time, memory
and bytes with the ratio to the small run. Each reader is measured without a side index ("first") and with one
("again"). A lock that this process holds makes the runs live.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.rows import child_cpu_s
from engines.events.attempts import AttemptStarted
from engines.events.event import Event
from engines.events.machine import MachineSampled
from engines.events.records import encode_record
from engines.events.results import Evaluated, SampledText
from engines.events.runs import RunStarted, StageStarted
from engines.events.steps import CheckpointCommitted, CheckpointRemoved, Step
from engines.events.writers import WriterOpened
from engines.identity import Identity
from engines.run_dir.creation import create_run_dir
from engines.run_dir.locks import Lock
from engines.run_dir.paths import RunDir
from engines.words import StartReason, WriterRole
from tests.tui.terminal import Terminal

SIZE = (160, 48)
STEPS_PER_S = 5
SIZES = {"small": (540, 4), "5,400": (5_400, 108), "54,000": (54_000, 800), "540,000": (540_000, 4_000)}
"""Steps and lifecycle facts of each run."""
BIG = {"1 GB": (2_700_000, 4_000)}
LIVE_S = 10.0
COCKPIT = [sys.executable, "-m", "cockpit"]


@dataclass
class _Writer:
    """One writer of a journal; all writers share one clock."""

    name: str
    role: WriterRole
    seq: int = 0
    own: Identity = field(default_factory=Identity.own)

    def open(self, t: float) -> bytes:
        stage: dict[str, Any] = {"stage": "base", "attempt": 1} if self.role == WriterRole.ENGINE else {}
        ids: dict[str, Any] = {"pid": self.own.pid, "start_time": self.own.start_time, "boot_id": self.own.boot_id}
        return self.line(WriterOpened(role=self.role, host="bench", **ids, **stage), t)

    def line(self, event: Event, t: float) -> bytes:
        line = encode_record(event, writer=self.name, seq=self.seq, t=t, m=t)
        self.seq += 1
        return line


def step(number: int) -> Step:
    """A step like an engine's, about 370 bytes on the wire."""
    noise = (number * 2654435761 % 1000) / 1e4
    return Step(
        stage="base",
        attempt=1,
        step=number,
        epoch=number / 1e5,
        loss=2.0 + 3.0 / (1 + number / 1000) + noise,
        learning_rate=3e-4 * (1 - number / 6e6),
        grad_norm=0.75 + noise,
        tokens=number * 8192,
        loss_tokens=number * 8192,
        step_s=0.2 + noise,
        data_wait_s=0.0001,
    )


def facts_at(run: RunDir, number: int) -> list[Event]:
    """The facts of one save and evaluation: a checkpoint, one that rotation removed, an evaluation, a text."""
    path = run.relative(run.checkpoint("base", 1, number))
    sha = f"{number:064x}"
    ids: dict[str, Any] = {"stage": "base", "attempt": 1, "step": number}
    return [
        CheckpointCommitted(**ids, path=path, sha256=sha, healthy=True, best=number % 3 == 0, bytes=1 << 20, loss=2.1),
        CheckpointRemoved(**ids, path=path, sha256=sha),
        Evaluated(**ids, loss=2.2, perplexity=9.0, tokens=40_000, protocol="validation"),
        SampledText(**ids, prompt="Once", text=" upon a time " * 8),
    ]


def write_journal(run: RunDir, steps: int, facts: int) -> _Writer:
    """Write a live run's journal; returns the engine's writer, which can continue it."""
    t = time.time() - steps / STEPS_PER_S
    supervisor, engine = _Writer("s1", WriterRole.SUPERVISOR), _Writer("e1", WriterRole.ENGINE)
    sampler = _Writer("m1", WriterRole.SAMPLER)
    between = max(1, steps * 3 // max(1, facts))
    started = RunStarted(run=run.id, recipe="bench", reason=StartReason.LAUNCH, stages=["base"], kinds=["fake"])
    with run.journal.open("wb") as journal:
        journal.write(supervisor.open(t) + supervisor.line(started, t))
        journal.write(supervisor.line(StageStarted(stage="base", kind="fake", steps=2 * steps), t))
        journal.write(engine.open(t) + sampler.open(t))
        journal.write(engine.line(AttemptStarted(stage="base", kind="fake", attempt=1, total_steps=2 * steps), t))
        for number in range(1, steps + 1):
            t += 1 / STEPS_PER_S
            journal.write(engine.line(step(number), t))
            if number % STEPS_PER_S == 0:
                journal.write(sampler.line(sample(number), t))
            if number % between == 0:
                for fact in facts_at(run, number):
                    journal.write(engine.line(fact, t))
    return engine


def sample(number: int) -> MachineSampled:
    """A machine's sample without a GPU."""
    return MachineSampled(
        host="bench",
        cpu_percent=50.0 + number % 40,
        ram_total_bytes=64 << 30,
        ram_available_bytes=(40 << 30) + number,
        engine_rss_bytes=(2 << 30) + number,
        unified=False,
        devices=[],
        stage="base",
    )


@dataclass(frozen=True)
class Bench:
    """One run, alone in its folder of runs, and the caches its readers use."""

    run: RunDir
    engine: _Writer
    cache: Path
    steps: int

    def command(self, *words: str) -> list[str]:
        return [*COCKPIT, *words, "--runs-dir", str(self.run.root.parent)]

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "XDG_CACHE_HOME": str(self.cache)}

    def forget(self) -> None:
        """Remove the side index."""
        for path in self.cache.rglob("*.index"):
            path.unlink()


def made(folder: Path, steps: int, facts: int) -> Bench:
    """A run with a journal of this size."""
    root, cache = folder / "runs", folder / "cache"
    root.mkdir(parents=True)
    cache.mkdir()
    run = create_run_dir(root, name="bench", recipe="bench", recipe_toml="", recipe_json={}, plan_json={}, version="0")
    return Bench(run, write_journal(run, steps, facts), cache, steps)


REQUEST = """
import sys, time
from pathlib import Path
from cockpit.launching.requests import send_request
from engines.run_dir.paths import RunDir
from engines.words import Verb
run = RunDir(Path(sys.argv[1]))
began = time.perf_counter()
reply = send_request(run, Verb.CHECKPOINT)
print(time.perf_counter() - began, reply.outcome.name)
"""
HOME = """
import sys, time, resource
from pathlib import Path
from cockpit.runs.watch import RunWatch
began = time.process_time()
watch = RunWatch(Path(sys.argv[1]))
watch.poll()
first = time.process_time() - began
began = time.process_time()
watch.poll()
print(first, time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
REPLAY = """
import sys, time
from pathlib import Path
import psutil
from cockpit.tui.screens.sources import replay_of
before = psutil.Process().memory_info().rss
began = time.process_time()
source = replay_of(Path(sys.argv[1]))
while source.reading is not None:
    source.poll()
source.playback.seek(len(source.playback))
source.playback.seek(len(source.playback) // 2)
print(time.process_time() - began, psutil.Process().memory_info().rss / 2**20)
"""


def printed(code: str, bench: Bench, argument: Path) -> list[str]:
    """What a piece of Python prints, in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", code, str(argument)], env=bench.environment, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


Figures = dict[str, float]


def measure(bench: Bench) -> Figures:
    """All figures of one run, in the order of the table."""
    out: Figures = {}
    for name, words in {"ls": ("ls",), "show": ("show", "last")}.items():
        bench.forget()
        for time_of in ("first", "again"):
            out[f"{name}, {time_of} [s CPU]"] = child_cpu_s(bench.command(*words), bench.environment)
    bench.forget()
    for time_of in ("first", "again"):
        out[f"request (k, stop), {time_of} [s]"] = float(printed(REQUEST, bench, bench.run.root)[0])
    bench.forget()
    for time_of in ("first", "again"):
        cpu_s, poll_s, mib = map(float, printed(HOME, bench, bench.run.root.parent))
        out[f"Home's list, {time_of} [s CPU]"] = cpu_s
        out[f"Home's list, next poll, {time_of} [s CPU]"] = poll_s
        out[f"Home's list, {time_of} [MiB]"] = mib
    bench.forget()
    for time_of in ("first", "again"):
        out |= {f"attach, {name}, {time_of} {unit}": value for (name, unit), value in attach(bench).items()}
    out |= live(bench)
    cpu_s, mib = map(float, printed(REPLAY, bench, bench.run.root))
    out["replay, open and seek [s CPU]"], out["replay [MiB]"] = cpu_s, mib
    out["replay --plain [s CPU]"] = child_cpu_s(
        bench.command("replay", str(bench.run.root), "--plain"), bench.environment
    )
    return out


def attach(bench: Bench) -> dict[tuple[str, str], float]:
    """A screen that opens on the run: its first paint, and the CPU time until the picture is whole."""
    with Terminal(bench.command("attach", str(bench.run.root)), SIZE, XDG_CACHE_HOME=str(bench.cache)) as terminal:
        first_s = terminal.seconds_until(b"bench")
        terminal.read_until(b"grad_norm")
        terminal.read_until_quiet(0.7)
        return {("first paint", "[s]"): first_s, ("whole picture", "[s CPU]"): terminal.cpu_s()}


def live(bench: Bench) -> Figures:
    """The Run screen while the run continues with five steps a second."""
    with Terminal(bench.command("attach", str(bench.run.root)), SIZE, XDG_CACHE_HOME=str(bench.cache)) as terminal:
        terminal.read_until(b"grad_norm")
        terminal.read_until_quiet(0.7)
        with bench.run.journal.open("ab", buffering=0) as journal:
            number, sent = bench.steps, 0
            began_s, before_s = time.monotonic(), terminal.cpu_s()
            while time.monotonic() - began_s < LIVE_S:
                number += 1
                journal.write(bench.engine.line(step(number), time.time()))
                sent += terminal.drain(1 / STEPS_PER_S)
            wall_s = time.monotonic() - began_s
            return {
                "Run screen, live [% of a core]": 100 * (terminal.cpu_s() - before_s) / wall_s,
                "Run screen, live [bytes/s]": sent / wall_s,
                "Run screen [MiB]": terminal.resident_bytes() / 2**20,
            }


def main() -> int:
    """Write the runs, measure them, print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--big", action="store_true", help="also a journal of 1 GB")
    parser.add_argument("--only", help="names of the runs to measure beside the small one, separated by semicolons")
    parser.add_argument("--folder", type=Path, default=None, help="where the journals are written")
    args = parser.parse_args()
    sizes = SIZES | (BIG if args.big else {})
    if args.only:
        sizes = {name: size for name, size in (SIZES | BIG).items() if name in {"small", *args.only.split(";")}}
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        for name, (steps, facts) in sizes.items():
            bench = made(Path(folder) / name.replace(" ", "-"), steps, facts)
            lock = Lock(bench.run.supervisor_lock)
            lock.acquire({"pid": os.getpid()})
            sys.stderr.write(f"measuring {name}: {bench.run.journal.stat().st_size / 1e6:,.0f} MB …\n")
            found[name] = measure(bench)
            lock.release()
    sys.stdout.write(table(found))
    return 0


def table(found: dict[str, Figures]) -> str:
    """One line a figure, one column a run, each with its ratio to the small run."""
    names = list(found["small"])
    width = max(map(len, names))
    lines = [f"{'':<{width}}  " + "  ".join(f"{name:>18}" for name in found)]
    for name in names:
        small = found["small"][name]
        cells = [
            f"{run[name]:>9.3g} {'x' + format(run[name] / small, '.3g') if small else '':>8}" for run in found.values()
        ]
        lines.append(f"{name:<{width}}  " + "  ".join(cells))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
