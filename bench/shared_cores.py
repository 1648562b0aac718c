"""Trainings that share cores: steps per second of one alone and of five at once, by the wait policy of their threads.

Each training is a process with a tiny model and the environment that the supervisor gives an engine, changed in one
thing. Policies are measured in turn, so that other load on the machine hits all of them; the table has the medians and
the lowest and highest ratio of a pair.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

import psutil

from bench.rows import Row
from cockpit.supervision.shared_cores import BRIEF_SPINS

SECONDS = 5.0
TRAININGS = 5
ROUNDS = 3
POLICIES: dict[str, dict[str, str | None]] = {
    "libgomp's default": {"OMP_WAIT_POLICY": None},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": None},
    "passive after brief spins": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": BRIEF_SPINS},
    "one thread": {"OMP_WAIT_POLICY": None, "OMP_NUM_THREADS": "1"},
}


def measure() -> list[Row]:
    """One row per policy and number of trainings, and the ratio that matters: five together against one alone."""
    alone: dict[str, list[float]] = {name: [] for name in POLICIES}
    together: dict[str, list[float]] = {name: [] for name in POLICIES}
    for _ in range(ROUNDS):
        for name, changes in POLICIES.items():
            alone[name].append(sum(_train(1, changes)))
        for name, changes in POLICIES.items():
            together[name].append(sum(_train(TRAININGS, changes)))
    rows = []
    for name in POLICIES:
        pairs = [b / a for a, b in zip(alone[name], together[name], strict=True)]
        spread = f"{min(pairs):.2f} to {max(pairs):.2f} over {ROUNDS} rounds"
        rows += [
            Row(f"{name}: one training", statistics.median(alone[name]), "steps/s", "alone"),
            Row(f"{name}: five trainings", statistics.median(together[name]), "steps/s", "all five together"),
            Row(f"{name}: five against one", statistics.median(pairs), "", spread),
        ]
    return rows


def _train(count: int, changes: dict[str, str | None]) -> list[float]:
    """Steps per second of trainings that run at the same time."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(psutil.cpu_count(logical=False) or os.cpu_count() or 1)}
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "bench.shared_cores", str(SECONDS)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    for child in children:  # each says that its imports are done
        assert child.stdout is not None
        child.stdout.readline()
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    rates = [float(child.communicate()[0]) for child in children]
    sys.stderr.write(f"  {count} at once, {changes}: {sum(rates):.1f} steps/s\n")
    return rates


def _train_here(seconds: float) -> float:
    """Steps per second of a tiny model in this process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(0, 512, (4, 128))

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    print("ready", flush=True)
    sys.stdin.readline()
    began, steps = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        step()
        steps += 1
    return steps / (time.monotonic() - began)


if __name__ == "__main__":
    print(_train_here(float(sys.argv[1])))
