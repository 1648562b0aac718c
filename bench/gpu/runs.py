"""Runs of the product, started as an operator would, and read from their journals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bench.gpu.place import GATE, REPO, RUNS, SLOW, WORK, environment, tail
from engines.run_dir.paths import RunDir

Events = list[dict[str, Any]]


def toml(name: str, stages: list[dict[str, Any]]) -> str:
    """A recipe; a stage's `retry` and `guards` are tables of their own."""

    def value(one: object) -> str:
        return str(one).lower() if isinstance(one, bool) else json.dumps(one)

    lines = ["schema = 1", f'name = "{name}"', "sample_interval_s = 0.5"]
    for stage in stages:
        plain = {key: one for key, one in stage.items() if not isinstance(one, dict)}
        lines += ["", "[[stage]]", *(f"{key} = {value(one)}" for key, one in plain.items())]
        for key, table in stage.items():
            if isinstance(table, dict):
                lines += [f"[stage.{key}]", *(f"{field} = {value(one)}" for field, one in table.items())]
    return "\n".join(lines) + "\n"


def cockpit(*arguments: str, log: Path, **changes: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "cockpit", *arguments, "--runs-dir", str(RUNS)]
    with log.open("ab") as sink:
        return subprocess.Popen(
            argv, cwd=REPO, env=environment(**changes), stdout=sink, stderr=sink, stdin=subprocess.DEVNULL
        )


def start(name: str, stages: list[dict[str, Any]], *more: str, **changes: str) -> subprocess.Popen[bytes]:
    """`cockpit run` of these stages."""
    for old in RUNS.glob(f"*-{name}"):  # of an earlier try on the same machine
        shutil.rmtree(old, ignore_errors=True)
    recipe = WORK / f"{name}.toml"
    recipe.write_text(toml(name, stages))
    return cockpit("run", str(recipe), "--name", name, "--quiet", *more, log=WORK / f"{name}.log", **changes)


def root_of(name: str) -> Path:
    found = sorted(RUNS.glob(f"*-{name}"))
    if not found:
        raise RuntimeError(f"no run {name}: " + tail(WORK / f"{name}.log"))
    return found[-1]


def journal(name: str) -> Events:
    """All records; a torn last line is left out."""
    found = []
    for line in RunDir(root_of(name)).journal.read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def journal_so_far(name: str) -> Events:
    try:
        return journal(name)
    except (RuntimeError, OSError):
        return []


def of_kind(events: Events, kind: str, stage: str | None = None) -> Events:
    return [one for one in events if one.get("k") == kind and (stage is None or one.get("stage") == stage)]


def losses(events: Events, stage: str) -> dict[int, float]:
    return {one["step"]: one["loss"] for one in of_kind(events, "step", stage)}


def norms(events: Events, stage: str) -> dict[int, float]:
    return {one["step"]: one["grad_norm"] for one in of_kind(events, "step", stage)}


def apart(one: dict[int, float], other: dict[int, float], upto: int = 1 << 40) -> dict[str, Any]:
    """How far two curves are apart."""
    both = sorted(step for step in one.keys() & other.keys() if step <= upto)
    gaps = [abs(one[step] - other[step]) for step in both]
    first = next((step for step in both if one[step] != other[step]), None)
    return {"steps": len(both), "largest": max(gaps, default=None), "first_different_step": first}


def wait_for_step(name: str, child: subprocess.Popen[bytes], stage: str, step: int, limit_s: float) -> Events:
    """The journal when the step is there, or the run has ended, or time is over."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        found = journal_so_far(name)
        if any(one["step"] >= step for one in of_kind(found, "step", stage)) or child.poll() is not None:
            return found
        time.sleep(0.05)
    return journal_so_far(name)


def end_engine(events: Events, stage: str) -> int | None:
    """SIGKILL to the newest engine of a stage of one of the trial's own runs; its process number."""
    for started in of_kind(events, "attempt_started", stage)[-1:]:
        return end(int(started["pid"]))
    return None


def end(pid: int) -> int | None:
    """SIGKILL to a process if its command line says that it is one of the trial's."""
    try:
        if pid > 1 and str(WORK) in Path(f"/proc/{pid}/cmdline").read_text(errors="replace"):
            os.kill(pid, signal.SIGKILL)
            return pid
    except OSError:
        pass
    return None


def end_leftovers() -> None:
    """Engines that outlived their job would hold the card's memory."""
    for root in RUNS.iterdir():
        file = RunDir(root).journal
        for line in file.read_text(errors="replace").splitlines() if file.is_file() else []:
            if '"attempt_started"' in line:
                try:
                    end(int(json.loads(line)["pid"]))
                except (ValueError, KeyError):
                    continue


def let_through(name: str) -> None:
    (GATE / f"{name}.go").touch()


def finish(child: subprocess.Popen[bytes], limit_s: float) -> int | None:
    """The exit status; None after the limit, and then the supervisor has been asked to end."""
    try:
        return child.wait(limit_s * SLOW)
    except subprocess.TimeoutExpired:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
        return None


def consoles(name: str) -> list[Path]:
    """What the engines of a run printed, oldest first."""
    run = RunDir(root_of(name))
    started = of_kind(journal_so_far(name), "attempt_started")
    files = dict.fromkeys(run.console_log(one["stage"], one["attempt"]) for one in started)
    return [one for one in files if one.is_file()]


def why_failed(name: str) -> str:
    """The run's last words, and those of the engine that failed."""
    parts = [tail(WORK / f"{name}.log", 1500)]
    parts += [
        f"{ended.get('stage')}: {ended.get('reason')} {ended.get('detail', '')}"[:1500]
        for ended in of_kind(journal_so_far(name), "attempt_ended")
        if ended.get("reason") != "succeeded"
    ]
    try:
        found = consoles(name)
    except RuntimeError:
        found = []
    parts += [tail(one, 3000) for one in found[-1:]]
    return "\n".join(part for part in parts if part.strip())


def rate(events: Events, stage: str, warm: int, counted: int) -> dict[str, Any]:
    """Real tokens per second of the counted steps: by their own durations, and by the clock from event to event."""
    steps = {one["step"]: one for one in of_kind(events, "step", stage)}
    kept = [steps[step] for step in sorted(steps) if warm < step <= counted]
    if not kept or warm not in steps:
        return {"error": f"steps up to {max(steps, default=0)} only"}
    before = steps[warm]
    tokens = kept[-1]["tokens"] - before["tokens"]
    own_s = sum(one["step_s"] for one in kept)
    metrics = kept[-1].get("metrics", {})
    found: dict[str, Any] = {
        "tokens": tokens,
        "seconds": own_s,
        "tokens_per_second": tokens / own_s,
        "step_s": [round(one["step_s"], 4) for one in kept],
        "step_s_median": statistics.median(one["step_s"] for one in kept),
        "first_step_s": steps[min(steps)]["step_s"],
        "data_wait_share": sum(one.get("data_wait_s") or 0 for one in kept) / own_s,
        "loss": [steps[min(steps)]["loss"], kept[-1]["loss"]],
        "grad_norm": [steps[min(steps)]["grad_norm"], kept[-1]["grad_norm"]],
        "loss_token_share": (kept[-1]["loss_tokens"] - before["loss_tokens"]) / max(1, tokens),
        "wall_seconds": kept[-1]["m"] - before["m"],
    }
    for name, short in (("allocated", "peak_allocated_gib"), ("reserved", "peak_reserved_gib")):
        value = metrics.get(f"cuda/peak_{name}_bytes")
        if value:
            found[short] = round(value / 2**30, 2)
    return found


def moments(events: Events, stage: str | None = None) -> list[str]:
    """What happened when, in seconds of the journal."""
    shown = {
        "attempt_started",
        "phase",
        "step",
        "evaluated",
        "checkpoint_committed",
        "attempt_ended",
        "stage_succeeded",
    }
    kept = [one for one in events if one.get("k") in shown and (stage is None or one.get("stage") == stage)]
    lines, seen = [], 0
    for one in kept:
        seen += one["k"] == "step"
        if one["k"] != "step" or seen in (1, 2):
            label = one.get("name") or one.get("reason") or one.get("step") or ""
            lines.append(f"{one['t'] - kept[0]['t']:.2f} {one['k']} {label}")
    return lines


def card_samples(events: Events) -> dict[str, Any]:
    """What the telemetry says of the card: its memory as a whole, and its load."""
    samples = [one for event in of_kind(events, "machine_sampled") for one in event.get("devices", [])]
    used = [one["memory_used_bytes"] for one in samples if one.get("memory_used_bytes")]
    load = [one["util_percent"] for one in samples if one.get("util_percent") is not None]
    peak = round(max(used) / 2**30, 2) if used else None
    return {"samples": len(samples), "nvml_peak_gib": peak, "load_max": max(load, default=None)}
