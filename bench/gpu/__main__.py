"""`python -m bench.gpu --out DIR --minutes 6`: a visit to a machine with a GPU, job by job; see bench/gpu.md.

Each job is a process of its own with a limit, so a hang or an exhausted card costs one job. After each, DIR has what is
known: gpu.json, gpu.md, journals, consoles and profiles.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.gpu import loops, material, probing, product, report, runs, small
from bench.gpu.place import GATE, RAW, REPO, RESULTS, RUNS, SLOW, WORK, environment, result_of, say, tail

COMPILED: dict[str, Any] = {"torch_compile": True}


@dataclass(frozen=True)
class Job:
    """`gate`: the name under which it waits for its turn; None for one that need not wait."""

    work: Callable[[], dict[str, Any]]
    limit_s: float
    gate: str | None = None


def _product(name: str, work: Callable[[], dict[str, Any]], stage: str) -> dict[str, Any]:
    try:
        return {**work(), **product.told(name, stage)}
    finally:
        runs.end_engine(runs.journal_so_far(name), stage)


def _tuned(name: str, shape: str = "7b", **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: _product(name, partial(product.tune, name, shape, **more), "tuned")


def _from_scratch(name: str, shape: str, **more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: _product(name, partial(product.pretrain, name, shape, **more), "base")


JOBS = {
    "probe": Job(lambda: probing.probe(WORK), 60),
    "prepare": Job(lambda: material.prepare(WORK), 110),
    "material-7b": Job(lambda: material.material("7b"), 100),
    "material-14b": Job(lambda: material.material("14b"), 150),
    "whole": Job(small.whole_way, 110),
    "oncpu": Job(small.on_cpu, 110),
    "floatkilled": Job(
        lambda: small.killed(
            "floatkilled", [small.base_stage(**small.EXACT), small.tuned_stage(**small.EXACT, lora_dropout=0.0)]
        ),
        110,
    ),
    "narrow": Job(lambda: small.done("narrow", small.narrow()), 110),
    "narrowagain": Job(lambda: small.done("narrowagain", small.narrow()), 110),
    "narrowkilled": Job(lambda: small.killed("narrowkilled", small.narrow()), 110),
    "fixed": Job(lambda: small.done("fixed", small.narrow(deterministic=True)), 110),
    "fixedagain": Job(lambda: small.done("fixedagain", small.narrow(deterministic=True)), 110),
    "fixedkilled": Job(lambda: small.killed("fixedkilled", small.narrow(deterministic=True)), 110),
    "alone": Job(lambda: small.tuned_alone("alone"), 80),
    "aloneagain": Job(lambda: small.tuned_alone("aloneagain"), 80),
    "alonekilled": Job(lambda: small.tuned_alone("alonekilled", kill=True), 100),
    "aloneexact": Job(lambda: small.tuned_alone("aloneexact", **small.EXACT, lora_dropout=0.0), 80),
    "alonecpu": Job(
        lambda: small.done(
            "alonecpu",
            [
                small.tuned_stage(
                    model=str(material.output_of("base", "whole")), **small.EXACT, lora_dropout=0.0, threads=4
                )
            ],
            **small.ON_CPU,
        ),
        80,
    ),
    "toolarge": Job(small.too_large, 110),
    "fourbits": Job(small.four_bits, 90),
    "preferences": Job(small.preferences, 90),
    "comparison": Job(small.comparison, 20),
    "lora": Job(_tuned("lora"), 120, "lora"),
    "lora-loops": Job(lambda: loops.tune("7b"), 120, "tune-loops-7b"),
    "lora-packed": Job(_tuned("lorapacked", packing=True), 120, "lorapacked"),
    "qlora": Job(_tuned("qlora", load_in_4bit=True), 120, "qlora"),
    "lora-14b": Job(_tuned("lora14b", "14b"), 120, "lora14b"),
    "lora-14b-loops": Job(lambda: loops.tune("14b"), 120, "tune-loops-14b"),
    "lora-liger": Job(_tuned("loraliger", use_liger_kernel=True), 120, "loraliger"),
    "lora-compiled": Job(_tuned("loracompiled", **COMPILED), 170, "loracompiled"),
    "pre150": Job(_from_scratch("pre150", "150m"), 90, "pre150"),
    "pre150-compiled": Job(_from_scratch("pre150compiled", "150m", **COMPILED), 140, "pre150compiled"),
    "pre150-liger": Job(_from_scratch("pre150liger", "150m", use_liger_kernel=True), 90, "pre150liger"),
    "pre150-loops": Job(lambda: loops.pretrain("150m"), 140, "pretrain-loops-150m"),
    "pre1500": Job(_from_scratch("pre1500", "1500m"), 110, "pre1500"),
    "pre1500-compiled": Job(_from_scratch("pre1500compiled", "1500m", **COMPILED), 150, "pre1500compiled"),
    "pre1500-loops": Job(lambda: loops.pretrain("1500m"), 150, "pretrain-loops-1500m"),
}
GROUPS = {
    "machine": ["probe", "prepare"],
    "small": [
        "whole",
        "oncpu",
        "floatkilled",
        "narrow",
        "narrowagain",
        "narrowkilled",
        "fixed",
        "fixedagain",
        "fixedkilled",
        "toolarge",
        "material-7b",
        "fourbits",
        "preferences",
    ],
    "after": ["comparison"],
    "alone": ["alone", "aloneagain", "alonekilled", "aloneexact", "alonecpu", "material-7b"],
    "lora": ["lora", "lora-loops", "pre150", "pre150-compiled", "pre150-loops"],
    "large": ["pre1500", "qlora", "pre1500-compiled", "pre1500-loops", "lora-packed"],
}
READY_S = 75.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--groups", default=",".join(GROUPS), help="with commas; jobs of one group joined with +")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    options = parser.parse_args()
    out = options.out.resolve()
    for folder in (WORK, RESULTS, GATE, RUNS, RAW, out):
        folder.mkdir(parents=True, exist_ok=True)
    if options.job:
        return _work(options.job)
    deadline = time.monotonic() + options.minutes * 60
    for group in options.groups.split(","):
        names = GROUPS.get(group, group.split("+"))
        _group(names, deadline, out)
        report.write(out, [name for name in JOBS if result_of(name)])
        with tarfile.open(out / "raw.tar.gz.new", "w:gz") as archive:
            archive.add(RAW, "raw")
        (out / "raw.tar.gz.new").rename(out / "raw.tar.gz")  # what is there if the visit is cut off is whole
    say((out / "gpu.md").read_text())
    return 0


def _work(name: str) -> int:
    try:
        found, code = JOBS[name].work(), 0
    except Exception as error:  # noqa: BLE001 - it is reported, and the next job goes on
        traceback.print_exc()
        found, code = {"error": f"{type(error).__name__}: {error}\n{traceback.format_exc()[-2000:]}"}, 1
    (RESULTS / f"{name}.json").write_text(json.dumps(found, default=str))
    return code


class _Running:
    """A job's process."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.job = name, JOBS[name]
        self.began = time.monotonic()
        for file in (RESULTS / f"{name}.json", *(GATE / f"{self.job.gate}.{end}" for end in ("ready", "go"))):
            file.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "bench.gpu", "--out", str(out), "--job", name]
        self.log = RAW / f"job-{name}.log"
        with self.log.open("wb") as sink:
            self.child = subprocess.Popen(
                argv, cwd=REPO, env=environment(), stdout=sink, stderr=sink, start_new_session=True
            )

    @property
    def ended(self) -> bool:
        return self.child.poll() is not None

    @property
    def waits(self) -> bool:
        return self.job.gate is not None and (GATE / f"{self.job.gate}.ready").exists()

    def end(self, deadline: float) -> None:
        """Wait, and end it at its limit."""
        limit = min(deadline, time.monotonic() + self.job.limit_s * SLOW)
        try:
            self.child.wait(max(0.1, limit - time.monotonic()))
            state = ""
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)  # the session that this visit made
            self.child.wait()
            state = "timed out"
        found = result_of(self.name) or {"error": "it left no result: " + tail(self.log)}
        found["wall_s"] = round(time.monotonic() - self.began, 1)
        found["state"] = state or ("failed" if found.get("error") else "done")
        (RESULTS / f"{self.name}.json").write_text(json.dumps(found, default=str))
        say(f"{self.name}: {found['state']} after {found['wall_s']} s")


def _group(names: list[str], deadline: float, out: Path) -> None:
    """Start all jobs; let those with a gate through one after the other."""
    left = deadline - time.monotonic()
    if left < (2 if names == ["comparison"] else 15 * SLOW):
        say(f"left out, {left:.0f} s are left: {' '.join(names)}")
        return
    running = [_Running(name, out) for name in names]
    gated = [one for one in running if one.job.gate]
    until = min(deadline, time.monotonic() + READY_S * SLOW)
    while gated and time.monotonic() < until and not all(one.waits or one.ended for one in gated):
        time.sleep(0.05)
    for one in gated:
        until = min(deadline, time.monotonic() + 20 * SLOW)
        while not (one.waits or one.ended) and time.monotonic() < until:
            time.sleep(0.05)
        runs.let_through(str(one.job.gate))
        say(f"{time.monotonic() - one.began:.0f} s after its start: {one.name}'s turn")
        one.end(deadline)
        runs.end_leftovers() if all(other.ended for other in running) else None
    for one in running:
        if one not in gated:
            one.end(deadline)
    runs.end_leftovers()


if __name__ == "__main__":
    sys.exit(main())
