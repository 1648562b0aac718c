"""The loss of the labels on a CPU is torch's own, bit for bit, and leaves the model's logits alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from engines.forward.label_loss import IGNORED, _nll

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("rows", "vocabulary"), [(1, 3), (37, 515), (130, 4099)])
def test_the_loss_and_its_gradient_have_the_bits_of_cross_entropy(
    dtype: torch.dtype, rows: int, vocabulary: int
) -> None:
    draw = torch.Generator().manual_seed(rows)
    logits = (torch.randn(1, rows, vocabulary, generator=draw) * 3).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=draw)
    targets[rows // 2 : rows // 2 + rows // 9] = IGNORED
    results = []
    for own in (True, False):
        given = logits.clone().requires_grad_()
        flat = given.flatten(0, -2)
        loss = (
            _nll(given, targets, 0.0, "sum")
            if own
            else cross_entropy(flat.float(), targets, ignore_index=IGNORED, reduction="sum")
        )
        (loss / 97).backward()
        assert given.grad is not None
        assert torch.equal(given.detach(), logits)
        results.append((loss.detach(), given.grad))
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))
