"""The loss is one mean over scored tokens, independent of batches and padding."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest

from engines.labels.row import LabelCounts, LabelRules
from engines.labels.stage_rows import examples_of, protocol_of
from engines.labels.vocabulary import view_of
from tests.engines.labels.labelling import labelled, placed, scored_texts
from tests.engines.small_corpora import stdlib_text, tiny_model, tokenizer_of, tokens_of

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("made")
    text = stdlib_text(folder, "json", "email")
    tokenizer = tokenizer_of(text, folder / "tokenizer")
    return {
        "tokenizer": tokenizer,
        "tokens": tokens_of(text, tokenizer, folder / "tokens"),
        "model": tiny_model(tokenizer, folder / "model"),
    }


@pytest.fixture(scope="module")
def tokenizer(made: dict[str, Path]) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(made["tokenizer"])


@pytest.fixture(scope="module")
def model(made: dict[str, Path]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(made["model"])


def chat(*turns: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[at % 2], "content": content} for at, content in enumerate(turns)]


def batches_of(rows: Any, tokenizer: Any, max_length: int, batch_size: int, max_tokens: int | None = None) -> Any:
    from engines.training.loss import answer_batches

    rules, counts = LabelRules(max_length), LabelCounts()
    examples = list(examples_of(placed(rows), view_of(tokenizer), rules, counts, max_tokens=max_tokens))
    return answer_batches(examples, batch_size, protocol_of(rules), {"rows": len(examples)})


ROWS = [chat("What is `json`?" * (1 + at % 4), "A module. " * (1 + at % 7) + str(at)) for at in range(23)]


def loss_one_by_one(model: Any, batches: Any) -> tuple[float, int]:
    """The definition, in float64, without padding: one sequence at a time."""
    import torch

    total, tokens = 0.0, 0
    for batch in batches:
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            real = ids[mask.bool()][None]
            with torch.no_grad():
                log_p = torch.log_softmax(model(real).logits[0].double(), dim=-1)
            for position in range(1, real.shape[1]):
                if labels[position] != -100:
                    total -= float(log_p[position - 1, labels[position]])
                    tokens += 1
    return total / tokens, tokens


@pytest.mark.parametrize("batch_size", [1, 3, 23, 100])
def test_the_batch_size_does_not_change_the_loss_on_answers(model: Any, tokenizer: Any, batch_size: int) -> None:
    from engines.training.loss import token_weighted_loss

    expected, tokens = loss_one_by_one(model, batches_of(ROWS, tokenizer, 128, 1))
    batches = batches_of(ROWS, tokenizer, 128, batch_size)
    loss, counted = token_weighted_loss(model, batches)
    assert counted == tokens == batches.scored_tokens
    assert loss == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4, 50])
def test_the_batch_size_does_not_change_the_loss_on_windows(model: Any, made: dict[str, Path], batch_size: int) -> None:
    from engines.data.shards import TokenShard
    from engines.training.loss import token_weighted_loss, window_batches

    shard = TokenShard(made["tokens"], "test")
    expected, tokens = loss_one_by_one(model, window_batches(shard, 64, 1, max_tokens=1000))
    loss, counted = token_weighted_loss(model, window_batches(shard, 64, batch_size, max_tokens=1000))
    assert counted == tokens == 16 * 63
    assert loss == pytest.approx(expected, abs=1e-5)


def test_windows_cover_the_shard_once_and_score_all_but_their_first_tokens(made: dict[str, Path]) -> None:
    from engines.data.shards import TokenShard
    from engines.training.loss import window_batches

    shard = TokenShard(made["tokens"], "val")
    batches = window_batches(shard, 50, 7)
    seen: list[int] = []
    for batch in batches:
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            seen += ids[mask.bool()].tolist()
    windows = math.ceil(len(shard) / 50)
    assert seen == shard.tokens[: len(seen)].tolist()
    assert len(shard) - len(seen) in (0, 1)
    assert batches.scored_tokens == len(shard) - windows
    assert batches.protocol == "windows(max_length=50)"


def test_only_the_assistants_text_and_its_end_of_turn_are_scored(tokenizer: Any) -> None:
    turns = chat("Hi <b>", "Yes 😀\n", "Why?", "`Because`")
    row = labelled(turns, tokenizer)
    scored = [label for label in row.labels if label != -100]
    assert tokenizer.decode(scored) == "Yes 😀\n<|im_end|>`Because`<|im_end|>"
    assert [label for label, token in zip(row.labels, row.ids, strict=True) if label not in (-100, token)] == []
    assert tokenizer.decode(row.ids) == tokenizer.apply_chat_template(turns, tokenize=False)
    assert row.scored == len(scored)


def test_a_piece_never_joins_the_prompt_to_the_answer(tokenizer: Any) -> None:
    """`\\n` and `\\n\\n` are pieces: without a cut, an answer that begins with a newline would change the prompt."""
    turns = chat("Hi", "\n\nYes")
    whole = tokenizer.apply_chat_template(turns, return_dict=True)["input_ids"]
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    row = labelled(turns, tokenizer)
    assert whole[: len(prompt)] != prompt
    assert list(row.ids[: len(prompt)]) == prompt
    assert list(row.labels[: len(prompt)]) == [-100] * len(prompt)
    assert -100 not in row.labels[len(prompt) : -1]


def test_windows_are_taken_from_the_start_or_spread_over_the_whole_split(made: dict[str, Path]) -> None:
    from engines.data.shards import TokenShard
    from engines.training.loss import window_batches

    shard = TokenShard(made["tokens"], "test")
    windows = [batch.input_ids[0].tolist() for batch in window_batches(shard, 16, 1)]
    assert len(windows) > 40, "so many that few of them are a part"
    first = window_batches(shard, 16, 3, max_tokens=10 * 15)
    spread = window_batches(shard, 16, 3, max_tokens=10 * 15, spread=True)
    assert [row for batch in first for row in batch.input_ids.tolist()] == windows[:10]
    places = [windows.index(row) for batch in spread for row in batch.input_ids.tolist()]
    gaps = {after - before for before, after in itertools.pairwise(places)}
    assert len(places) == 10
    assert max(gaps) - min(gaps) <= 1, "equal distances"
    assert places[0] < len(windows) / 10
    assert places[-1] >= len(windows) * 9 / 10
    assert (first.protocol, spread.protocol) == (
        "windows(max_length=16)",
        "windows(max_length=16, spread over the split)",
    )
    whole = window_batches(shard, 16, 3, max_tokens=10**6, spread=True)
    assert whole.protocol == first.protocol
    assert whole.scored_tokens == window_batches(shard, 16, 3).scored_tokens == sum(len(one) - 1 for one in windows)


def test_html_that_spells_a_control_token_is_text(tokenizer: Any) -> None:
    """The vocabulary of a SentencePiece tokenizer has `<s>` among its pieces; a text never becomes it."""
    row = labelled(chat("what is </s>?", "<s>old price</s>"), tokenizer)
    assert "".join(scored_texts(row)) == "<s>old price</s><|im_end|>"
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(row.ids)


def test_max_tokens_takes_the_same_first_rows_whatever_the_batch_size(tokenizer: Any) -> None:
    one, many = (batches_of(ROWS, tokenizer, 128, size, max_tokens=60) for size in (1, 9))
    assert one.scored_tokens == many.scored_tokens >= 60
    assert one.counts["rows"] == many.counts["rows"] < len(ROWS)


def test_the_models_mode_is_restored_and_progress_is_reported(model: Any, tokenizer: Any) -> None:
    from engines.training.loss import token_weighted_loss

    reported: list[int] = []
    model.train()
    batches = batches_of(ROWS, tokenizer, 128, 8)
    _, tokens = token_weighted_loss(model, batches, reported.append)
    assert model.training
    assert reported == sorted(reported)
    assert reported[-1] == tokens
    loss, tokens = token_weighted_loss(model, [])
    assert math.isnan(loss)
    assert tokens == 0
    model.eval()


def test_a_mean_of_batch_means_would_be_another_number(model: Any, tokenizer: Any) -> None:
    from engines.training.loss import token_weighted_loss

    rows = [chat("Hi", "Yes"), chat("Hi", "def " * 40)]
    alone = [token_weighted_loss(model, batches_of([row], tokenizer, 256, 1)) for row in rows]
    loss, tokens = token_weighted_loss(model, batches_of(rows, tokenizer, 256, 1))
    assert loss == pytest.approx(sum(part * count for part, count in alone) / tokens, abs=1e-9)
    assert loss != pytest.approx((alone[0][0] + alone[1][0]) / 2, abs=1e-3)


def test_narrower_weights_have_a_protocol_of_their_own(model: Any, tokenizer: Any) -> None:
    """Validation during training has float32 weights: its loss is not compared with that of a bfloat16 folder."""
    import copy

    import torch

    from engines.evaluate.evaluate import score
    from engines.evaluate.model import LoadedModel

    batches = batches_of(ROWS[:2], tokenizer, 128, 2)
    wide, narrow = (
        score(LoadedModel(one, tokenizer, ()), batches) for one in (model, copy.deepcopy(model).to(torch.bfloat16))
    )
    assert wide.protocol == "answers(max_length=128, truncation=drop)"
    assert narrow.protocol == "answers(max_length=128, truncation=drop), bfloat16 weights"


def test_the_evaluate_stage_pads_nothing_and_has_the_loss_of_padded_rows(
    model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.evaluate import evaluate
    from engines.evaluate.model import LoadedModel
    from engines.training import loss as losses

    batches = batches_of(ROWS, tokenizer, 128, 4)
    padded, tokens = losses.token_weighted_loss(model, batches)
    made = list_of(batches)
    monkeypatch.setattr(losses, "pad_batch", lambda *_: pytest.fail("rows are padded for the model"))
    found = evaluate.score(LoadedModel(model, tokenizer, ()), made)
    assert found.tokens == tokens
    assert found.loss == pytest.approx(padded, rel=1e-6)


def list_of(batches: Any) -> Any:
    """The same batches, made before."""
    from dataclasses import replace

    made = list(batches)
    return replace(batches, walk=lambda: iter(made))
