"""Rows without padding: the same loss and gradients as padded, whatever the model, and no row sees another."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytestmark = pytest.mark.torch

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LENGTHS = (9, 14, 5, 11)


def made(name: str, **more: Any) -> Any:
    """A small model of a family, with weights large enough that a leak between rows would show."""
    import transformers

    torch = pytest.importorskip("torch")
    torch.manual_seed(3)
    config = getattr(transformers, f"{name}Config")(**{**SMALL, "initializer_range": 0.2, **more})
    found = getattr(transformers, f"{name}ForCausalLM", None) or getattr(transformers, f"{name}LMHeadModel")
    return found(config).eval()


def examples(seed: int = 1) -> list[Any]:
    from engines.forward.label_loss import IGNORED
    from engines.training.loss import Example

    rng = random.Random(seed)
    found = []
    for length in LENGTHS:
        ids = [rng.randrange(3, 97) for _ in range(length)]
        found.append(Example(ids, [token if rng.random() < 0.6 else IGNORED for token in ids[:-1]] + ids[-1:]))
    return found


def gradients(model: Any) -> dict[str, Any]:
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def padded_loss(model: Any) -> Any:
    """The model's own loss of the padded batch, over its labels."""
    from engines.training.loss import pad_batch

    batch = pad_batch(examples())
    scored = int((batch.labels[:, 1:] != -100).sum())
    return model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        labels=batch.labels,
        num_items_in_batch=scored,
        use_cache=False,
    ).loss, scored


def unpadded_loss(model: Any, most_logits: int = 1 << 26) -> Any:
    """The engine's loss of the same rows, in the way that was found for the model."""
    from engines.forward.arrangement import arrange
    from engines.forward.label_loss import LabelLoss, rows_of
    from engines.forward.rows_attention import rows_in_sequence
    from engines.training.loss import one_sequence

    way = arrange(model, longest=max(LENGTHS))
    loss, batch = LabelLoss(model, most_logits), one_sequence(examples())
    if way.way == "row by row":
        return way, sum(loss.total(model, row) for row in rows_of(batch))
    with rows_in_sequence(batch["lengths"]):
        return way, loss.total(model, batch)


FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("one sequence", {}),
    "Qwen2": ("one sequence", {}),
    "Qwen3": ("one sequence", {"head_dim": 8}),
    "Granite": ("one sequence", {"logits_scaling": 8.0, "attention_multiplier": 0.3, "residual_multiplier": 0.5}),
    "Cohere": ("one sequence", {"logit_scale": 0.0625}),
    "Mistral": ("row by row", {"sliding_window": 6}),
    "Gemma2": ("row by row", {"head_dim": 8, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 8}),
    "GPT2": ("one sequence", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    "Doge": ("row by row", {"keep_window_size": 64}),  # a mask of its own, which depends on the content
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("most_logits", [1 << 26, 97 * 3], ids=["whole", "in-chunks"])
def test_loss_and_gradients_are_those_of_the_padded_batch(family: str, most_logits: int) -> None:
    import torch

    way, more = FAMILIES[family]
    model = made(family, **more)
    expected, scored = padded_loss(model)
    expected.backward()
    wanted = gradients(model)
    found, total = unpadded_loss(model, most_logits)
    (total / scored).backward()
    here = gradients(model)
    assert found.way == way, found.reason
    assert float(total.detach() / scored) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert here.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(here[name], gradient, rtol=1e-5, atol=1e-5 * float(gradient.abs().max())), name


def test_a_model_with_a_state_that_runs_through_the_sequence_computes_row_by_row() -> None:
    model = made("Mamba", state_size=4, expand=2, conv_kernel=3)
    way, total = unpadded_loss(model)
    assert way.way == "row by row"
    assert "row by row" not in way.words()
    from engines.forward.label_loss import rows_of
    from engines.training.loss import one_sequence

    alone = sum(model(**row, num_items_in_batch=1).loss for row in rows_of(one_sequence(examples())))
    assert float(total.detach()) == pytest.approx(float(alone.detach()), rel=1e-6)


def test_no_logit_of_a_row_moves_when_another_row_changes() -> None:
    import torch

    from engines.forward.arrangement import arrange
    from engines.forward.rows_attention import rows_in_sequence
    from engines.training.loss import Example, one_sequence

    model = made("Llama")
    assert arrange(model, longest=14).way == "one sequence"
    rows = examples()

    def logits(changed: int) -> list[Any]:
        others = [Example([*row.input_ids][::-1], row.labels) if at == changed else row for at, row in enumerate(rows)]
        batch = one_sequence(others)
        with torch.no_grad(), rows_in_sequence(batch["lengths"]):
            out = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits[0]
        return list(out.split(list(LENGTHS)))

    before = logits(-1)
    for changed in range(len(rows)):
        after = logits(changed)
        moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
        assert moved == [at == changed for at in range(len(rows))]


def test_outside_of_a_batch_of_rows_the_attention_is_the_models_own() -> None:
    """Padded evaluations and generated samples use the same model between two steps."""
    import torch

    from engines.forward.arrangement import arrange
    from engines.training.loss import pad_batch

    model, batch = made("Llama"), pad_batch(examples())
    given = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    with torch.no_grad():
        before = model(**given).logits
        text = model.generate(input_ids=batch.input_ids[:1], max_new_tokens=6, do_sample=False)
        arrange(model, longest=14)
        assert torch.equal(model(**given).logits, before)
        assert torch.equal(model.generate(input_ids=batch.input_ids[:1], max_new_tokens=6, do_sample=False), text)


def test_the_loss_of_an_evaluation_does_not_depend_on_the_arrangement() -> None:
    from engines.forward.arrangement import PADDED, Arrangement, arrange
    from engines.training.loss import answer_batches, token_weighted_loss

    class Row:
        def __init__(self, example: Any) -> None:
            self.ids, self.labels = example.input_ids, example.labels

    model = made("Qwen2")
    batches = answer_batches([Row(example) for example in examples()], 3, "test")
    ways = [PADDED, Arrangement("row by row"), arrange(model, longest=14)]
    losses = [token_weighted_loss(model, batches, arrangement=way) for way in ways]
    assert {tokens for _, tokens in losses} == {batches.scored_tokens}
    assert [loss for loss, _ in losses] == pytest.approx([losses[0][0]] * 3, rel=1e-6)


def test_a_head_that_does_more_than_a_projection_is_not_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """A family whose logits are scaled in a way that the engine does not know keeps its own forward pass."""
    import functools

    from engines.forward.label_loss import LabelLoss
    from engines.training.loss import one_sequence

    model = made("Llama")
    own = type(model).forward

    @functools.wraps(own)
    def halved(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = own(self, *args, **kwargs)
        out.logits = out.logits * 0.5
        return out

    monkeypatch.setattr(type(model), "forward", halved)
    one = one_sequence(examples()[:1])
    whole, chunked = (float(LabelLoss(model, most).total(model, one).detach()) for most in (1 << 26, 97))
    assert chunked == pytest.approx(whole, rel=1e-6)


def test_a_model_that_ignores_the_positions_of_its_logits_has_the_same_loss() -> None:
    """Unsloth's own forward takes `logits_to_keep` and, for positions, gives all logits."""
    from engines.forward.label_loss import LabelLoss
    from engines.training.loss import one_sequence

    model, one = made("Llama"), one_sequence(examples()[:1])
    expected = float(LabelLoss(model).total(model, one).detach())
    whole = model.forward

    def forward(*given: Any, logits_to_keep: Any = 0, **named: Any) -> Any:
        return whole(*given, **named)

    model.forward = forward
    assert float(LabelLoss(model).total(model, one).detach()) == pytest.approx(expected, rel=1e-6)
    assert float(LabelLoss(model).each(model, one).sum()) == pytest.approx(expected, rel=1e-6)


def test_a_models_own_attention_may_keep_rows_apart_by_their_positions() -> None:
    from engines.forward.arrangement import arrange

    model = made("Llama")
    assert arrange(model, longest=9, as_it_is=True).way == "one sequence"
    assert model.config._attn_implementation == "sdpa"
    whole = model.forward

    def forward(*given: Any, position_ids: Any = None, **named: Any) -> Any:
        return whole(*given, **named)

    model.forward = forward
    assert arrange(model, longest=9, as_it_is=True).way == "row by row"
