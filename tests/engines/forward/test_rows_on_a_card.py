"""What a GPU showed: a kernel reads as far as the rows it is told of, and large cards compute larger chunks."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engines.forward import flash_rows
from engines.forward.arrangement import arrange
from engines.forward.label_loss import MOST_LOGITS, LabelLoss, most_of, most_on
from engines.forward.rows_attention import one_row, rows_in_sequence
from engines.training.loss import Example, one_sequence

pytestmark = pytest.mark.torch


def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=50, num_key_value_heads=1, **sizes))
    assert arrange(made, longest=9).way == "one sequence"
    return made


def test_a_sequence_that_is_not_the_rows_is_refused() -> None:
    made = model()
    with rows_in_sequence([4, 5]), pytest.raises(ValueError, match="6 tokens where the rows have 9"):
        made(input_ids=torch.arange(6)[None], use_cache=False)


def test_the_head_is_tried_with_a_sequence_of_its_own() -> None:
    made = model()
    loss = LabelLoss(made, most_logits=97)
    batch = one_sequence([Example(list(range(1, 6)), list(range(1, 6))), Example([7, 8, 9, 3], [7, 8, 9, 3])])
    with rows_in_sequence(batch["lengths"]):
        found = float(loss.total(made, batch).detach())
    assert loss.in_chunks
    with rows_in_sequence(batch["lengths"]):
        assert found == pytest.approx(float(LabelLoss(made).total(made, batch).detach()), rel=1e-6)


def test_one_row_within_rows_attends_to_all_of_it() -> None:
    made, ids = model().eval(), torch.arange(1, 8)[None]
    expected = made(input_ids=ids, use_cache=False).logits
    with rows_in_sequence([2, 2]), one_row():
        assert torch.equal(made(input_ids=ids, use_cache=False).logits, expected)


@pytest.mark.parametrize(("gib", "expected"), [(8, MOST_LOGITS), (24, MOST_LOGITS), (80, 167_772_160)])
def test_the_chunk_grows_with_the_memory_of_the_card(gib: int, expected: int) -> None:
    assert most_of(gib << 30) == expected
    assert most_on(torch.device("cpu")) == MOST_LOGITS


def test_flash_attention_is_for_gpus() -> None:
    """On the CPU the bits of earlier trainings stay as they are."""
    query = torch.zeros(1, 2, 5, 16, dtype=torch.bfloat16)
    assert not flash_rows.takes(query, query, dropout=0.0, is_causal=True)
