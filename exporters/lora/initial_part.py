"""The part that PiSSA and OLoRA take out of a weight before training, computed again from the base model.

PiSSA (arXiv 2404.02948) starts from the largest singular values, OLoRA (arXiv 2406.01775) from the first columns of the
QR decomposition. Training continues over what is left of the weight, so the trained weight is W - scale * B0 A0 +
scale * B A. The operations and their order are PEFT's.
"""

from __future__ import annotations

import torch

from exporters.lora.settings import Initial


def initial_matrices(
    weight: torch.Tensor, rank: int, scale: float, initial: Initial
) -> tuple[torch.Tensor, torch.Tensor]:
    """A0, float32 [rank, in], and scale * B0, float32 [out, rank].

    Args:
        weight: the base model's whole weight, float32 [out, in].
        rank: of the adapter's matrices.
        scale: alpha / r, or alpha / sqrt(r).
        initial: the initialization.
    """
    if initial == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank].contiguous(), scale * q[:, :rank].contiguous()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    roots = torch.diag(torch.sqrt(values[:rank] / scale))
    return roots @ right[:rank], scale * (left[:, :rank] @ roots)
