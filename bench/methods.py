"""`python -m bench.methods`: steps of the engine against loops written by hand, for each method, in interleaved rounds.

The loops have nothing that a training does not need: forward, backward, clip, step, schedule; rows without padding, and
logits where a label is. The engine's arms are whole stages: only their steps are timed, with data loading, guards,
measurements and events. CPU seconds decide, because a machine has other work; wall time stands beside them.
"""

from __future__ import annotations

import argparse
import importlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

LETTERS, ROWS, WARM_STEPS = 96, 24, 2
NETWORK: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
STAGE: dict[str, Any] = {
    "name": "tuned",
    "kind": "finetune",
    "model": "base",
    "data": "rows",
    "max_length": 512,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 4,
    "learning_rate": 1e-4,
    "weight_decay": 0.01,
    "bf16": False,
    "save_steps": 1_000_000,
}
LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16.0, "lora_dropout": 0.05}
METHODS: dict[str, dict[str, Any]] = {
    "full": {**STAGE, "output": "model"},
    "LoRA": {**STAGE, **LORA},
    "DoRA": {**STAGE, **LORA, "use_dora": True},
    "QLoRA": {**STAGE, **LORA, "load_in_4bit": True},
    "DPO": {**STAGE, **LORA, "lora_dropout": 0.0, "kind": "dpo"},
}
Mark = tuple[float, float]
"""Wall and CPU seconds of this process."""


@dataclass
class Taken:
    """Wall and CPU seconds of each timed step of an arm, and its last loss."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    loss: float = 0.0

    def add(self, marks: list[Mark]) -> None:
        """Take the steps between marks, without the first ones."""
        for (wall, cpu), (wall_after, cpu_after) in list(pairwise(marks))[WARM_STEPS:]:
            self.wall_s.append(wall_after - wall)
            self.cpu_s.append(cpu_after - cpu)


def main() -> int:
    """Measure and print the table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    parser.add_argument("methods", nargs="*", default=list(METHODS), help=f"of {', '.join(METHODS)}; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help=f"of a round; the first {WARM_STEPS} are not timed")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        inputs = _inputs(Path(folder))
        _print_head(torch.__version__, options.rounds, options.steps)
        for name in options.methods:
            hand, engine = _measure(METHODS[name], inputs, Path(folder) / name, options.rounds, options.steps)
            _print_row(name, hand, engine)
    return 0


def _measure(
    stage: Mapping[str, Any], inputs: Mapping[str, Path], folder: Path, rounds: int, steps: int
) -> tuple[Taken, Taken]:
    hand, engine = Taken(), Taken()
    given = {**stage, "max_steps": steps}
    for number in range(rounds):
        arms: list[tuple[Taken, Callable[[], tuple[list[Mark], float]]]] = [
            (hand, partial(_by_hand, given, inputs)),
            (engine, partial(_by_engine, given, inputs, folder / str(number))),
        ]
        for taken, arm in arms if number % 2 else reversed(arms):
            marks, taken.loss = arm()
            taken.add(marks)
        sys.stderr.write(f"round {number + 1} of {rounds}\n")
    return hand, engine


def _print_head(version: str, rounds: int, steps: int) -> None:
    out = sys.stdout.write
    out(f"{NETWORK['num_hidden_layers']} layers of {NETWORK['hidden_size']}, float32, one thread, torch {version};")
    out(f" {rounds} interleaved rounds, {steps - WARM_STEPS} timed steps each\n\n")
    out("| method | loop: CPU ms | engine: CPU ms | speed, median CPU | speed, best CPU | speed, median wall |")
    out(" last losses |\n|---|---|---|---|---|---|---|\n")


def _print_row(name: str, hand: Taken, engine: Taken) -> None:
    cpu, own = sorted(hand.cpu_s), sorted(engine.cpu_s)
    wall, own_wall = sorted(hand.wall_s), sorted(engine.wall_s)
    middle = len(cpu) // 2
    speeds = (cpu[middle] / own[middle], cpu[0] / own[0], wall[middle] / own_wall[middle])
    sys.stdout.write(f"| {name} | {cpu[middle] * 1e3:.1f} | {own[middle] * 1e3:.1f} | ")
    sys.stdout.write(" | ".join(f"{speed:.3f}" for speed in speeds))
    sys.stdout.write(f" | {hand.loss:.6f}, {engine.loss:.6f} |\n")
    sys.stdout.flush()


def _inputs(folder: Path) -> dict[str, Path]:
    """A base model, rows, and pairs whose two answers have the same length, so that no arm pads."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from engines.artifacts.manifest import write_manifest
    from tests.engines.training.tiny import write_tokenizer

    torch.manual_seed(0)
    model, rows, pairs = folder / "model", folder / "rows", folder / "pairs"
    LlamaForCausalLM(LlamaConfig(**NETWORK, tie_word_embeddings=True)).save_pretrained(model)
    write_tokenizer(model)
    write_manifest(model, run="r", stage="base")
    draw = random.Random(1)
    texts = ["".join(draw.choice("abcdef ") for _ in range(LETTERS // 2)) for _ in range(3 * ROWS)]
    for place, row in ((rows, _row), (pairs, _pair)):
        place.mkdir()
        found = (row(*texts[at : at + 3]) for at in range(0, len(texts), 3))
        (place / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    return {"model": model, "rows": rows, "pairs": pairs}


def _row(asked: str, answer: str, _other: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def _pair(asked: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": asked, "chosen": chosen, "rejected": rejected}


def _now() -> Mark:
    return time.perf_counter(), time.process_time()


def _by_engine(stage: Mapping[str, Any], inputs: Mapping[str, Path], folder: Path) -> tuple[list[Mark], float]:
    """A whole stage."""
    from tests.stage_context import make_context

    kind = "preference" if stage["kind"] == "dpo" else "finetune"
    module: Any = importlib.import_module(f"engines.{kind}.stage")
    given = {"model": inputs["model"], "data": inputs["pairs" if kind == "preference" else "rows"]}
    context = make_context(folder, stage, inputs=given)
    marks: list[Mark] = []
    losses: list[float] = []

    class Timed(module.Session):
        def after_optimizer_step(self) -> None:
            losses.append(self._measured.loss)
            marks.append(_now())  # its events are of the next interval; the save after the last step is of none
            super().after_optimizer_step()

    own, module.Session = module.Session, Timed
    try:
        module.run(context)
    finally:
        module.Session = own
        context.writer.close()
    return marks, losses[-1]


def _by_hand(stage: Mapping[str, Any], inputs: Mapping[str, Path]) -> tuple[list[Mark], float]:
    """The same training with transformers, PEFT, bitsandbytes and torch alone."""
    import torch
    from transformers import get_cosine_schedule_with_warmup, set_seed

    from tests.engines.training.by_hand import SEED, adapter_over

    set_seed(SEED)
    model = _base(inputs["model"], quantized="load_in_4bit" in stage)
    adapts = "r" in stage
    model = adapter_over(model, stage) if adapts else model
    model.train()
    set_seed(SEED)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=stage["learning_rate"], weight_decay=stage["weight_decay"], fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, 0, stage["max_steps"])
    windows = _pair_windows(stage, inputs, model) if stage["kind"] == "dpo" else _row_windows(stage, inputs, model)
    marks = []
    total = 0.0
    for _, window in zip(range(stage["max_steps"]), windows, strict=False):
        total = 0.0
        for loss_of in window:
            loss = loss_of()
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        marks.append(_now())
    return marks, total


def _base(folder: Path, *, quantized: bool) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": torch.float32}
    more = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True, **four)} if quantized else {}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)


Losses = Iterator[list[Callable[[], Any]]]
"""Windows of micro-batches; each gives its share of the window's loss."""


def _row_windows(stage: Mapping[str, Any], inputs: Mapping[str, Path], model: Any) -> Losses:
    import torch
    from torch.nn.functional import cross_entropy

    from tests.engines.training.by_hand import Row, chatml_rows, windows

    rows = chatml_rows(inputs["model"], inputs["rows"])

    def loss_of(row: Row, count: int) -> Any:
        labels = torch.tensor(row.labels[1:])
        at = (labels != -100).nonzero()[:, 0]
        logits = model(input_ids=torch.tensor([row.ids]), use_cache=False, logits_to_keep=at).logits[0]
        return cross_entropy(logits, labels[at], reduction="sum") / count

    for window in windows(len(rows), 1, stage["gradient_accumulation_steps"]):
        count = sum(rows[number].scored for [number] in window)
        yield [partial(loss_of, rows[number], count) for [number] in window]


def _pair_windows(stage: Mapping[str, Any], inputs: Mapping[str, Path], model: Any) -> Losses:
    import torch
    from torch.nn.functional import logsigmoid
    from transformers import AutoTokenizer

    from tests.engines.preference.by_hand import _pair as ids_of_pair
    from tests.engines.training.by_hand import windows

    tokenizer = AutoTokenizer.from_pretrained(inputs["model"])
    lines = (inputs["pairs"] / "train.jsonl").read_text().splitlines()
    pairs = [ids_of_pair(tokenizer, json.loads(line)) for line in lines]

    def log_probabilities(prompt: list[int], both: Any, ids: Any) -> Any:
        at = torch.arange(len(prompt) - 1, len(prompt) + both.shape[1] - 1)
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=at).logits
        return logits.log_softmax(dim=-1).gather(2, both[..., None]).sum(dim=(1, 2))

    def loss_of(pair: Any, count: int) -> Any:
        prompt, *answers = pair
        both = torch.tensor(answers)
        ids = torch.cat([torch.tensor([prompt, prompt]), both], dim=1)
        with torch.no_grad(), model.disable_adapter():
            first = log_probabilities(prompt, both, ids)
        chosen, rejected = log_probabilities(prompt, both, ids) - first
        return -logsigmoid(0.1 * (chosen - rejected)) / count

    for window in windows(len(pairs), 1, stage["gradient_accumulation_steps"]):
        yield [partial(loss_of, pairs[number], len(window)) for [number] in window]


if __name__ == "__main__":
    sys.exit(main())
