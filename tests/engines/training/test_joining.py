"""Micro-batches with short rows share a pass: the same rows, losses and gradients in fewer passes."""

from __future__ import annotations

import importlib
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.events.steps import Step
from tests.engines.training.attempts import context, of_kind, run_stage
from tests.engines.training.tiny import FINETUNE, write_messages

pytestmark = pytest.mark.torch

ROWS = st.lists(st.integers(1, 9), min_size=1, max_size=3)


@given(batches=st.lists(ROWS, min_size=0, max_size=8), longest=st.integers(1, 40))
def test_joined_batches_have_the_same_rows_and_room_for_each(batches: list[list[int]], longest: int) -> None:
    from engines.forward.joining import has_rows, join
    from engines.training.loss import Example, one_sequence

    number = iter(range(10_000))

    def row(length: int) -> Example:
        ids = [next(number) for _ in range(length)]
        return Example(ids, ids)

    before = [one_sequence([row(length) for length in lengths]) for lengths in batches]
    after = join(before, longest)
    assert len(after) == len(before), "the Trainer counts micro-batches"
    full = [has_rows(batch) for batch in after]
    assert full == sorted(full), "those without rows come first"
    for name in ("input_ids", "labels", "position_ids"):
        assert _flat(after, name) == _flat(before, name)
    assert list(chain.from_iterable(batch["lengths"] for batch in after)) == list(chain.from_iterable(batches))
    for batch in after:
        assert sum(batch["lengths"]) == batch["input_ids"].shape[1]
    given_lengths = {tuple(lengths) for lengths in batches}
    assert all(sum(b["lengths"]) <= longest or tuple(b["lengths"]) in given_lengths for b in after)


def _flat(batches: list[dict[str, Any]], name: str) -> list[int]:
    return list(chain.from_iterable(batch[name][0].tolist() for batch in batches))


def test_a_stage_with_joined_micro_batches_has_the_same_losses_in_fewer_passes(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages = write_messages(tmp_path / "messages")
    turns = [{"role": "user", "content": "f?"}, {"role": "assistant", "content": "y" * 60}]
    with (messages / "train.jsonl").open("a") as file:
        file.write(json.dumps({"messages": turns, "group": "a.py", "question": "docstring"}) + "\n")
    rows: Any = importlib.import_module("engines.training.steps.rows")
    session: Any = importlib.import_module("engines.training.session")
    passes: list[tuple[int, ...]] = []
    inside = rows.rows_in_sequence

    def counted(lengths: tuple[int, ...]) -> Any:
        passes.append(tuple(lengths))
        return inside(lengths)

    monkeypatch.setattr(rows, "rows_in_sequence", counted)
    stage = {**FINETUNE, "lora_dropout": 0.0, "max_steps": 3, "max_length": 128, "per_device_train_batch_size": 1}
    stage |= {"gradient_accumulation_steps": 6}

    def steps(folder: str) -> list[Step]:
        ctx = context(tmp_path / folder, stage, {"model": model, "data": messages})
        run_stage(ctx)
        return of_kind(ctx, Step)

    joined, in_joined = steps("joined"), list(passes)
    passes.clear()
    monkeypatch.setattr(session.Session, "_joined_tokens", lambda _: None)
    alone = steps("alone")
    assert len(passes) == sum(map(len, in_joined)), "each row had a pass of its own"
    assert len(in_joined) < len(passes)
    assert max(map(sum, in_joined)) <= max(map(sum, passes)), "no pass is longer than that of the longest row"
    for one, other in zip(joined, alone, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-6)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=1e-5)
        assert (one.tokens, one.learning_rate) == (other.tokens, other.learning_rate)
