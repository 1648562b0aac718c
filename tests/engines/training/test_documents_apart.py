"""document_masking: the documents of a window do not see each other, in training and in its evaluations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.events.attempts import Phase
from engines.events.results import Evaluated
from engines.events.steps import Step
from tests.engines.training.attempts import context, of_kind, resume_point, run_stage, trajectory
from tests.engines.training.tiny import PRETRAIN, SHAPE, write_tokens

pytestmark = pytest.mark.torch
STAGE: dict[str, Any] = {
    **PRETRAIN, "attention_dropout": 0.0, "max_steps": 4, "document_masking": True, "eval_steps": 4, "save_steps": 2,
    "peak_tflops": 0.1,
}  # fmt: skip
LENGTHS = (5, 1, 22, 16, 4, 3, 40, 9)
"""Of documents, again and again: some within a window of 16, some over several, one that ends with its window."""


def with_documents(folder: Path, count: int = 16 * 21 + 3) -> Path:
    """Tokens of several documents, each ended by token 2."""
    write_tokens(folder, {"train": count, "val": 100})
    described = json.loads((folder / "tokens.json").read_text())
    for split, entry in described["splits"].items():
        ends: list[int] = []
        while not ends or ends[-1] < entry["tokens"]:
            last = ends[-1] if ends else 0
            ends.append(min(last + LENGTHS[len(ends) % len(LENGTHS)], entry["tokens"]))
        np.array(ends, dtype="<u8").tofile(folder / f"{split}.idx")
        entry["documents"] = len(ends)
    (folder / "tokens.json").write_text(json.dumps(described))
    return folder


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_documents(tmp_path_factory.mktemp("documents"))


def pieces_by_hand(folder: Path, split: str, start: int, length: int) -> list[list[int]]:
    """The parts of documents between two positions, token by token."""
    ids, ends = np.fromfile(folder / f"{split}.bin", "<u2"), set(np.fromfile(folder / f"{split}.idx", "<u8").tolist())
    found: list[list[int]] = [[]]
    for at in range(start, min(start + length, len(ids))):
        if at in ends and found[-1]:
            found.append([])
        found[-1].append(int(ids[at]))
    return found


def test_losses_norms_and_rates_are_those_of_a_loop_by_hand_over_each_document_alone(
    documents: Path, tmp_path: Path
) -> None:
    import torch

    from tests.engines.training.from_scratch import assert_same_steps, new_model, steps

    ctx = context(tmp_path, STAGE, {"data": documents})
    assert run_stage(ctx) is not None
    more = {"max_position_embeddings": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    model = new_model("Llama", {**SHAPE, **more})
    expected = list(steps(model, 21, lambda number: pieces_by_hand(documents, "train", 16 * number, 16), STAGE))
    assert_same_steps(of_kind(ctx, Step), expected)
    [evaluated] = of_kind(ctx, Evaluated)
    total, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, 100, 16):
            for piece in pieces_by_hand(documents, "val", start, 16):
                logs = torch.log_softmax(model(input_ids=torch.tensor([piece])).logits[0].double(), dim=-1)
                total -= sum(float(logs[at, token]) for at, token in enumerate(piece[1:]))
                count += len(piece) - 1
    assert (evaluated.tokens, evaluated.protocol) == (count, "windows(max_length=16, documents apart)")
    assert evaluated.loss == pytest.approx(total / count, rel=1e-5)
    again = context(tmp_path, STAGE, {"data": documents}, attempt=2, resume=resume_point(ctx, 2))
    assert run_stage(again) is not None
    assert trajectory(again, 2) == trajectory(ctx, 1, after=2)


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_no_logit_of_a_document_moves_when_another_one_changes(model_type: str, documents: Path) -> None:
    import torch

    from engines.data.windows import DocumentWindows, collate_documents
    from engines.forward.arrangement import arrange
    from engines.forward.rows_attention import rows_in_sequence
    from engines.pretrain.model import build_model
    from recipes.stages.pretrain import PretrainStage

    stage = PretrainStage.model_validate({**STAGE, "model_type": model_type})
    model = build_model(stage, vocab_size=261, bos_id=1, eos_id=2).eval()
    assert arrange(model, longest=16).way == "one sequence"
    pieces = DocumentWindows(documents, "train", 16).pieces(2)
    assert [len(piece) for piece in pieces] == [12, 4]
    others = [(pieces[0] + 11) % 250, pieces[1]]
    logits = []
    for rows in (pieces, others):
        batch = collate_documents([rows])
        with torch.no_grad(), rows_in_sequence(batch["lengths"]):
            given = {name: batch[name] for name in ("input_ids", "position_ids")}
            logits.append(model(**given, use_cache=False).logits[0])
    assert not torch.equal(logits[0][:12], logits[1][:12])
    assert torch.equal(logits[0][12:], logits[1][12:])


def test_the_utilization_of_the_device_is_counted_by_a_named_convention_where_its_peak_is_known(
    documents: Path, tmp_path: Path
) -> None:
    stage = {**STAGE, "document_masking": False, "max_steps": 1, "eval_steps": None, "save_strategy": "no"}
    ctx = context(tmp_path / "known", stage, {"data": documents})
    result = run_stage(ctx)
    assert result is not None
    [step] = of_kind(ctx, Step)
    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 261 * 64
    operations = 6 * matrices + 12 * 2 * 64 * 16
    assert step.metrics["mfu"] == pytest.approx(operations * step.tokens / step.step_s / 0.1e12)
    assert result.metrics["mfu"] == pytest.approx(operations * (result.metrics["tokens_per_second"] or 0) / 0.1e12)
    assert any("mfu of 0.1 TFLOP/s by 6 N + 12 L H Q T" in phase.name for phase in of_kind(ctx, Phase))
    unknown = context(tmp_path / "unknown", {**stage, "peak_tflops": None}, {"data": documents})
    run_stage(unknown)
    assert "mfu" not in of_kind(unknown, Step)[0].metrics
    assert any("mfu not known without peak_tflops" in phase.name for phase in of_kind(unknown, Phase))
