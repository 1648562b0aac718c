"""Compares a pretraining's step with a bare hand-written loop: same model, batches and optimizer, interleaved.

Three trainings: usual windows, ternary layers, and windows whose documents are apart."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bench.rows import Row

STEPS = 30
WARM_STEPS = 5
ROUNDS = 5
LENGTH, BATCH, VOCAB = 128, 4, 1024
STAGE = {
    "name": "base",
    "kind": "pretrain",
    "data": "tokens",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_length": LENGTH,
    "per_device_train_batch_size": BATCH,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "save_steps": 1_000_000,
}


Way = str
WAYS: tuple[Way, ...] = ("windows", "ternary", "documents")
DOCUMENT = 48
"""Tokens of a document; windows of 128 have parts of three or four."""


def measure() -> list[Row]:
    """CPU seconds of a step in the engine (events, guards, control, checkpoints off) and in a bare loop."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    import torch

    torch.set_num_threads(1)
    batches = torch.randint(5, VOCAB, (STEPS * BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    ours: dict[Way, list[float]] = {way: [] for way in WAYS}
    bare: dict[Way, list[float]] = {way: [] for way in WAYS}
    for number in range(ROUNDS):
        for way in WAYS:
            bare[way].append(_bare_step_s(batches, way))
            ours[way].append(_engine_step_s(batches, way))
        sys.stderr.write(f"  round {number + 1} of {ROUNDS}\n")
    how = f"{BATCH} x {LENGTH} tokens, 2 layers of 256, one thread, AdamW, median CPU step of {STEPS - WARM_STEPS}"
    rows = []
    for way in WAYS:
        ratio = min(ours[way]) / min(bare[way])
        rows += [
            Row(f"{way}: engine step", min(ours[way]) * 1e3, "ms CPU", how),
            Row(f"{way}: bare loop's step", min(bare[way]) * 1e3, "ms CPU", "only forward, backward, clip, step"),
            Row(f"{way}: engine step, ratio", ratio, "x", "engine / bare, rounds interleaved"),
        ]
    return rows


def model_of(way: Way, fields: Mapping[str, int] = MappingProxyType({})) -> Any:
    """The model of a way, with the same new weights each time; `fields` differ from the stage's."""
    import torch

    from engines.pretrain.model import build_model
    from engines.pretrain.ternary import make_ternary
    from recipes.stages.pretrain import PretrainStage

    torch.manual_seed(0)
    model = build_model(PretrainStage.model_validate({**STAGE, **fields}), vocab_size=VOCAB, bos_id=1, eos_id=2)
    if way == "ternary":
        make_ternary(model)
    return model


def _bare_step_s(batches: Any, way: Way) -> float:
    import torch
    from torch.nn.functional import cross_entropy

    model = model_of(way)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / STEPS)
    taken = []
    for step in range(STEPS):
        began = time.process_time()
        rows = batches[step * BATCH : (step + 1) * BATCH]
        if way == "documents":
            parts = [part[None] for row in rows for part in row.split(DOCUMENT)]
            labels = sum(part.shape[1] - 1 for part in parts)
            for part in parts:
                logits = model(input_ids=part, use_cache=False).logits[0, :-1]
                (cross_entropy(logits, part[0, 1:], reduction="sum") / labels).backward()
        else:
            model(input_ids=rows, labels=rows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        taken.append(time.process_time() - began)
    return sorted(taken[WARM_STEPS:])[(STEPS - WARM_STEPS) // 2]


def _engine_step_s(batches: Any, way: Way) -> float:
    from engines.data.windows import collate_documents, collate_windows
    from engines.forward.arrangement import PADDED, arrange
    from engines.training.session import Session
    from engines.training.task import Task
    from tests.stage_context import make_context

    marks: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        context = make_context(Path(folder), STAGE)
        model, apart = model_of(way), way == "documents"
        session = Session(
            context,
            Task(
                model=model,
                dataset=Rows(batches, lambda: marks.append(time.process_time()), apart=apart),
                collate=collate_documents if apart else collate_windows,
                examples=len(batches),
                save_tokenizer=lambda _: None,
                arrangement=arrange(model, longest=LENGTH) if apart else PADDED,
            ),
        )
        session.run()
        context.writer.close()
    steps = [b - a for a, b in pairwise(marks)]
    return sorted(steps[WARM_STEPS:])[len(steps[WARM_STEPS:]) // 2]


class Rows:
    """The batches' rows in order; calls `mark` when each step's first row is fetched."""

    def __init__(self, rows: Any, mark: Callable[[], None], *, apart: bool) -> None:
        self._rows = rows
        self._apart = apart
        self._mark = mark
        self._fetched = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        if self._fetched % BATCH == 0:
            self._mark()
        self._fetched += 1
        return self._rows[index].split(DOCUMENT) if self._apart else self._rows[index]
