"""Attention in blocks of bfloat16 products: as close to exact attention as torch's, and no row sees another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

pytestmark = pytest.mark.torch

torch = pytest.importorskip("torch")

from engines.forward import block_attention, rows_attention  # noqa: E402 - after torch is known to be there


def row(length: int, *, heads: int = 4, shared: int = 2, width: int = 16, seed: int = 0) -> list[Any]:
    """Query, key and value of a row as a layer makes them: bfloat16 [1, heads, length, width] over [1, length, …]."""
    torch.manual_seed(seed)
    each = [torch.randn(1, length, count, width).bfloat16().transpose(1, 2) for count in (heads, shared, shared)]
    return [one.requires_grad_() for one in each]


def torchs(query: Any, key: Any, value: Any) -> Any:
    found = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    return found.transpose(1, 2)


def blocks(query: Any, key: Any, value: Any, lengths: Sequence[int] = ()) -> Any:
    ends = torch.tensor([0, *(lengths or [query.shape[2]])]).cumsum(0).tolist()
    return block_attention.attention_within_rows(query, key, value, list(pairwise(ends)), None)


def results(attention: Any, given: list[Any], above: Any) -> list[Any]:
    result = attention(*given)
    return [result.detach(), *torch.autograd.grad(result, given, above.to(result.dtype))]


@pytest.mark.parametrize("shape", [{}, {"heads": 3, "shared": 3}, {"heads": 6, "shared": 1, "width": 24}], ids=str)
@pytest.mark.parametrize("length", [1, 2, 31, 192, 225, 450], ids=str)
def test_results_and_gradients_are_as_close_to_exact_ones_as_torchs(
    length: int, shape: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block_attention, "KEPT_TOKENS", 256)  # the longest row computes its probabilities again
    given = row(length, **shape)
    above = torch.randn(1, length, given[0].shape[1], given[0].shape[3])
    exact = results(torchs, [one.detach().double().requires_grad_() for one in given], above.bfloat16())
    limit = torch.finfo(torch.bfloat16).eps
    for found, own, wanted in zip(results(blocks, given, above), results(torchs, given, above), exact, strict=True):
        distance, theirs = ((one.double() - wanted).square().mean().sqrt() for one in (found, own))
        assert float(distance) <= 1.5 * float(theirs) + limit * float(wanted.square().mean().sqrt())


def test_probabilities_that_are_computed_again_are_those_that_were_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    given, above = row(230), torch.randn(1, 230, 4, 16)
    kept = results(blocks, given, above)
    monkeypatch.setattr(block_attention, "KEPT_TOKENS", 0)
    assert all(torch.equal(one, other) for one, other in zip(kept, results(blocks, given, above), strict=True))


def test_a_row_has_the_bits_that_it_has_alone_and_its_gradients_too() -> None:
    lengths = [5, 193, 40]
    rows = [row(length, seed=seed) for seed, length in enumerate(lengths)]
    above = torch.randn(1, sum(lengths), 4, 16)
    joined = [torch.cat([one[at] for one in rows], dim=2).detach().requires_grad_() for at in range(3)]
    together = results(partial(blocks, lengths=lengths), joined, above)
    start = 0
    for given, length in zip(rows, lengths, strict=True):
        alone = results(blocks, given, above[:, start : start + length])
        here = [together[0][:, start : start + length], *(one[:, :, start : start + length] for one in together[1:])]
        assert all(torch.equal(one, other) for one, other in zip(here, alone, strict=True))
        start += length


def test_no_token_sees_a_later_one() -> None:
    query, key, value = row(230)
    before = blocks(query, key, value)
    with torch.no_grad():
        key[:, :, 200:] += 3
        value[:, :, 200:] -= 2
    after = blocks(query, key, value)
    assert torch.equal(before[:, :200], after[:, :200])
    assert not torch.equal(before[:, 200:], after[:, 200:])


def test_a_number_that_is_not_finite_stays_visible_and_within_its_row() -> None:
    """A guard looks for it in the loss and in the norm."""
    query, key, value = row(64)
    with torch.no_grad():
        key[0, 0, 3] = float("nan")
    found = blocks(query, key, value, lengths=[32, 32])
    assert bool(found[:, 3:32, :2].isnan().all())
    assert bool(found[:, 32:].isfinite().all())


@pytest.mark.parametrize(
    "other",
    [{"dtype": torch.float32}, {"dropout": 0.1}, {"is_causal": False}, {"shared": 3}, {"instructions": "AMX"},
     {"instructions": ""}],
    ids=str,
)  # fmt: skip
def test_what_torch_computes_as_fast_or_only_torch_computes_is_left_to_it(
    other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def taken(
        dtype: Any = torch.bfloat16, shared: int = 2, instructions: str = "AVX-512 BF16", **settings: Any
    ) -> bool:
        monkeypatch.setattr(block_attention, "native_bfloat16", lambda: instructions)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
        query, key, _ = (one.to(dtype) for one in row(4, shared=shared))
        block_attention.is_faster.cache_clear()
        return block_attention.takes(query, key, **{"dropout": 0.0, "is_causal": True, **settings})

    try:
        assert taken()
        assert not taken(**other)
    finally:
        block_attention.is_faster.cache_clear()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_model_in_bfloat16_has_the_loss_and_gradients_of_torchs_attention(
    checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engines.forward.arrangement import arrange
    from engines.forward.label_loss import LabelLoss
    from engines.training.loss import one_sequence
    from tests.engines.forward.test_rows import LENGTHS, examples, gradients, made

    model = made("Llama").train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    assert arrange(model, longest=max(LENGTHS)).way == "one sequence"
    batch = one_sequence(examples())
    calls = []
    own = block_attention.attention_within_rows

    def trained(*, in_blocks: bool) -> tuple[float, dict[str, Any]]:
        monkeypatch.setattr(block_attention, "is_faster", lambda: in_blocks)
        monkeypatch.setattr(block_attention, "attention_within_rows", lambda *a: (calls.append(1), own(*a))[1])
        with rows_attention.rows_in_sequence(batch["lengths"]):
            with torch.autocast("cpu", torch.bfloat16):
                loss = LabelLoss(model).total(model, batch)
            loss.backward()
        return float(loss.detach()), gradients(model)

    loss, wanted = trained(in_blocks=False)
    assert not calls
    found, here = trained(in_blocks=True)
    assert len(calls) == (4 if checkpointing else 2)
    assert found == pytest.approx(loss, rel=2e-3)
    for name, gradient in wanted.items():
        assert float((here[name] - gradient).norm()) <= 0.05 * float(gradient.norm()), name
