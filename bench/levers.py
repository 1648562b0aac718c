"""`python -m bench.levers`: what each lever of CPU fine-tuning gains, in real tokens per second; one interleaved run.

Seed 1's job, scaled down: LoRA of rank 8 on the attention projections, short conversations against a long `max_length`,
the loss on answers. Every arm computes the same rows with the same optimizer from the same weights. The arms of the
engine are whole Trainer steps with guards and events; the others are bare loops. Each has a process that starts as the
product starts it: an engine with an engine's environment, a bare loop with this one's. One computes at a time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cockpit.supervision.freed_memory import keep_few_kernels, keep_freed_memory

LENGTH, ROWS, BATCH = 2048, 8, 2
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 11}
VOCABULARY = 16_384
MODEL: dict[str, Any] = {**SHAPE, "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": VOCABULARY}
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
RATE = 1e-3
BASE = "FP32, padded to max_length"
BARE: dict[str, dict[str, Any]] = {
    BASE: {"narrow": False, "autocast": False, "padded_to": LENGTH},
    "BF16 autocast, padded to max_length": {"narrow": False, "autocast": True, "padded_to": LENGTH},
    "BF16 weights, padded to the longest of 2": {"narrow": True, "autocast": True, "padded_to": 0},
    "BF16 weights, bare loop row by row": {"narrow": True, "autocast": True, "padded_to": None},
}
ENGINES: dict[str, dict[str, Any]] = {
    "engine, defaults of before: FP32, padded to the longest of 2": {"padding_free": False, "bf16": False},
    "engine, FP32 without padding": {"bf16": False},
    "**engine, defaults**": {},
}
"""The arms by name: arguments of `_bare`, and fields of a stage."""


@dataclass
class Arm:
    """One way to train. `round` trains on a window of rows twice and returns wall and CPU seconds of the second time;
    the weights continue from round to round."""

    model: Any
    autocast: bool
    round: Callable[[list[Any]], tuple[float, float]]


class Process:
    """An arm in a process of its own, which waits between its rounds."""

    def __init__(self, name: str, threads: int) -> None:
        command = [sys.executable, "-m", "bench.levers", "--arm", name, "--threads", str(threads)]
        kept = keep_freed_memory(os.environ) | keep_few_kernels(os.environ) if name in ENGINES else {}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, **kept}
        )
        self.name = name
        self.wall_s: list[float] = []
        self.cpu_s: list[float] = []
        self.threads = int(self._answer()["threads"])

    def round(self) -> None:
        """Let it compute one round."""
        found = self._ask("round")
        self.wall_s.append(found["wall_s"])
        self.cpu_s.append(found["cpu_s"])

    def end(self) -> dict[str, float]:
        """The process's `loss` on held-out rows, number of `parameters`, and most memory, `rss_mib`; it ends."""
        found = self._ask("end")
        self._child.wait()
        return found

    def _ask(self, what: str) -> dict[str, float]:
        assert self._child.stdin is not None, "it is a pipe"
        self._child.stdin.write(what + "\n")
        self._child.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._child.stdout is not None, "it is a pipe"
        found: dict[str, float] = json.loads(self._child.stdout.readline())
        return found


def main() -> int:
    """Measure and print the table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.levers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=4, help="times that each arm trains on the window")
    parser.add_argument("--threads", type=int, default=0, help="0: the number that torch chooses")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        return _compute(options.arm, options.threads)
    return _measure([Process(name, options.threads) for name in (*BARE, *ENGINES)], options.rounds)


def _compute(name: str, threads: int) -> int:
    """Compute the rounds of one arm, at each line of standard input."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    answers, sys.stdout = sys.stdout, sys.stderr
    with tempfile.TemporaryDirectory() as folder:
        arm = _bare(**BARE[name]) if name in BARE else _engine(ENGINES[name], Path(folder))

        def answer(**values: float) -> None:
            answers.write(json.dumps(values) + "\n")
            answers.flush()

        answer(threads=torch.get_num_threads())
        for line in sys.stdin:
            if line.strip() == "end":
                break
            wall_s, cpu_s = arm.round(_rows(seed=0))
            answer(wall_s=wall_s, cpu_s=cpu_s)
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        parameters = sum(parameter.numel() for parameter in arm.model.parameters())
        answer(loss=_loss(arm, _rows(seed=99)), rss_mib=used, parameters=parameters)
    return 0


def _measure(arms: list[Process], rounds: int) -> int:
    import torch

    for number in range(rounds):
        for arm in arms:
            arm.round()
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
    tokens = sum(len(row.input_ids) for row in _rows(seed=0))
    fill = tokens / (ROWS * LENGTH)
    base = next(arm for arm in arms if arm.name == BASE)
    found = {arm.name: arm.end() for arm in arms}
    out = sys.stdout.write
    out(f"{found[BASE]['parameters'] / 1e6:.1f} M parameters, {fill:.0%} fill, windows of {ROWS} rows, {rounds} rounds")
    out(f" in turns, the second of two steps each, {base.threads} threads, torch {torch.__version__}\n\n")
    out("| arm | real tok/s | ratio, best | ratio, median | ratio, CPU | validation loss | most memory |\n")
    out("|---|---|---|---|---|---|---|\n")
    for arm in arms:
        wall, cpu = sorted(arm.wall_s), sorted(arm.cpu_s)
        base_wall, base_cpu = sorted(base.wall_s), sorted(base.cpu_s)
        middle = len(wall) // 2
        figures = (base_wall[0] / wall[0], base_wall[middle] / wall[middle], base_cpu[0] / cpu[0])
        shown = " | ".join(f"{figure:.2f}" for figure in figures)
        loss, memory = found[arm.name]["loss"], found[arm.name]["rss_mib"]
        out(f"| {arm.name} | {tokens / wall[0]:.0f} | {shown} | {loss:.4f} | {memory:.0f} MiB |\n")
    return 0


def _rows(seed: int) -> list[Any]:
    """Conversations of lognormal lengths that fill 32 % of `LENGTH` with seed 0; their second half is scored."""
    from engines.forward.label_loss import IGNORED
    from engines.training.loss import Example

    draw = random.Random(seed)
    rows = []
    for _ in range(ROWS):
        length = max(24, min(LENGTH, int(draw.lognormvariate(math.log(0.311 * LENGTH), 0.5))))
        start = draw.randrange(VOCABULARY)
        ids = [(start + 17 * at + draw.randrange(3)) % VOCABULARY for at in range(length)]
        rows.append(Example(ids, [IGNORED] * (length // 2) + ids[length // 2 :]))
    return rows


def _model(narrow: bool) -> Any:
    """The same weights each time: a base model with an adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**MODEL, tie_word_embeddings=True)
    model = LlamaForCausalLM(config)
    model = model.to(torch.bfloat16) if narrow else model
    torch.manual_seed(1)
    adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **LORA))
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted


def _bare(*, narrow: bool, autocast: bool, padded_to: int | None) -> Arm:
    """A hand-written loop. Padded to a length, to the longest of a batch (0), or row by row (None)."""
    import torch

    model = _model(narrow)

    def step(rows: list[Any], optimizer: Any) -> None:
        scored = sum(row.scored for row in rows)
        size = 1 if padded_to is None else BATCH
        for start in range(0, len(rows), size):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                given = _inputs(rows[start : start + size], padded_to)
                loss = model(**given, use_cache=False, num_items_in_batch=scored).loss
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def one_round(rows: list[Any]) -> tuple[float, float]:
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=0.0, fused=True)
        step(rows, optimizer)
        wall, cpu = time.perf_counter(), time.process_time()
        step(rows, optimizer)
        return time.perf_counter() - wall, time.process_time() - cpu

    return Arm(model, autocast, one_round)


def _inputs(rows: list[Any], padded_to: int | None) -> dict[str, Any]:
    import torch

    from engines.training.loss import Example, pad_batch

    if padded_to is None:
        return {"input_ids": torch.tensor([rows[0].input_ids]), "labels": torch.tensor([rows[0].labels])}
    longest = Example([0] * padded_to, [-100] * padded_to)
    batch = pad_batch([*rows, longest])
    kept = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "labels": batch.labels}
    return {name: tensor[: len(rows)] for name, tensor in kept.items()}


def _engine(fields: dict[str, Any], folder: Path) -> Arm:
    """Steps of the fine-tuning engine: its own precision, collator, Trainer, guards and events."""
    from engines.finetune.rows import collator
    from engines.forward.arrangement import PADDED, arrange
    from engines.forward.joining import most_tokens
    from engines.training.precision import precision_of_adapter
    from engines.training.session import Session
    from engines.training.task import Task
    from tests.stage_context import make_context

    batch = {"per_device_train_batch_size": BATCH, **fields}
    batch["gradient_accumulation_steps"] = ROWS // batch["per_device_train_batch_size"]
    stage = {"name": "tuned", "kind": "finetune", "model": "base", "data": "rows", "max_length": LENGTH, **batch}
    stage |= {"max_steps": 2, "learning_rate": RATE, "lr_scheduler_type": "constant", "save_steps": 1_000_000}
    precision = precision_of_adapter(make_context(folder / "first", stage), stored_narrow=False)
    model = _model(precision.narrow)
    rounds = iter(range(1_000_000))

    def one_round(rows: list[Any]) -> tuple[float, float]:
        context = make_context(folder / str(next(rounds)), stage)
        way = arrange(model, longest=LENGTH) if context.stage.padding_free else PADDED
        task = Task(
            model=model,
            dataset=rows,
            collate=collator(0, padded=way.way == "padded"),
            examples=len(rows),
            save_tokenizer=lambda _: None,
            bf16=precision.bf16,
            arrangement=way,
            most_tokens=most_tokens([len(row.input_ids) for row in rows], BATCH) if way.way == "one sequence" else None,
        )
        marks: list[tuple[float, float]] = []

        class Timed(Session):
            def after_optimizer_step(self) -> None:
                marks.append((time.perf_counter(), time.process_time()))
                if len(marks) == 1:
                    super().after_optimizer_step()

        session = Timed(context, task)
        session.run()
        context.writer.close()
        (wall, cpu), (wall_after, cpu_after) = marks
        return wall_after - wall, cpu_after - cpu

    return Arm(model, precision.bf16, one_round)


def _loss(arm: Arm, rows: list[Any]) -> float:
    """The adapter's loss on held-out rows, in the arm's own precision."""
    import torch

    from engines.training.loss import pad_batch, token_weighted_loss

    with torch.autocast("cpu", torch.bfloat16, enabled=arm.autocast):
        return token_weighted_loss(arm.model, [pad_batch(rows[at : at + 4]) for at in range(0, len(rows), 4)])[0]


if __name__ == "__main__":
    sys.exit(main())
