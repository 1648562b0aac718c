"""Proves a merge: its tensors are the sums of base model and adapter, rounded once, and the sums are the trained model.

Two separate questions, so that rounding is never mistaken for a wrong merge. Bytes: every stored value is the sum in
float32, rounded to the stored type. Behaviour: the sums in float32, in transformers, answer like the adapter that PEFT
applies to its base model. What rounding to 16 bits costs is quality, and is only reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.hf_model.tensor_files import Weights, row_chunks
from exporters.proof.behaviour import Expected, Limits, check_behaviour, first_windows, limits_of
from exporters.proof.parity import Comparison, Reference, mean_kl
from exporters.reference.adapted_model import LogitsOfWindows
from exporters.reference.streamed_model import Rounding, StreamedModel
from recipes.problems import printable

MAX_NAMED = 5
Progress = Callable[[int], None]


@dataclass(frozen=True)
class MergeProof:
    """The result.

    Attributes:
        sums: the sums in float32, compared with the adapter over its base model.
        limits: what they may differ by.
        problems: empty for a correct merge.
    """

    sums: Comparison
    limits: Limits
    problems: list[str]

    def record(self, quality: Comparison) -> dict[str, Any]:
        """Plain values; `quality` compares the rounded model with the adapter over its base model."""
        return {
            **quality.record(),
            "proof": {
                **self.sums.record(),
                "limits": {"mean_kl": self.limits.mean_kl, "top1_gap": self.limits.top1_gap},
                "problems": self.problems,
            },
            "passed": not self.problems,
            "problems": self.problems,
        }


def prove_sums(
    config: Path, sums: Weights, adapted: Reference, scratch: Path, threads: int, progress: Progress
) -> tuple[MergeProof, Reference]:
    """Compare the sums in float32 with the adapter over its base model.

    Args:
        config: a folder with the merged model's config.
        sums: base model and adapter, added in float32 and not rounded.
        adapted: the distributions of the adapter over its base model.
        scratch: where to keep the sums' distributions.
        threads: CPU threads.
        progress: called with numbers of positions; their sum is the number of all positions.

    Returns:
        The proof, and the sums' distributions.
    """
    again = first_windows(adapted.windows)
    positions, vocabulary = sum(map(len, adapted.windows[:again])), adapted.logits.shape[1]
    rounding = Rounding({}, np.empty((positions, vocabulary), np.float32), again)
    own = Reference(scratch, adapted.windows, vocabulary)
    StreamedModel(config, sums, threads).logits_into(own.windows, own.logits, progress, rounding)
    cost = mean_kl(own.logits[:positions], rounding.logits)
    routed = any(".experts." in name for name in sums.tensors)
    limits = limits_of("F32", Expected(own, "file", cost, routed))
    found = adapted.compare(own)
    problems = check_behaviour(found, limits, "the merged weights in float32", "the adapter over its base model")
    return MergeProof(found, limits, problems), own


def compare_tensors(merged: Weights, sums: Weights) -> list[str]:
    """The tensors of a merged model that are not the sums rounded to the stored type, each with its first such row."""
    import torch

    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    problems = [f"tensor {printable(name, 200)} is missing" for name in sums.tensors if name not in merged.tensors]
    for name, info in sums.tensors.items():
        stored = merged.tensors.get(name)
        if stored is None:
            continue
        if stored.shape != info.shape:
            problems.append(f"tensor {printable(name, 200)} has shape {stored.shape}; the sum has {info.shape}")
            continue
        for start, stop in row_chunks(info.rows, info.columns):
            exact = torch.from_numpy(sums.read_rows(name, start, stop)).to(types[stored.dtype]).float().numpy()
            off = np.flatnonzero((exact != merged.read_rows(name, start, stop)).any(axis=1))
            if len(off):
                row = start + int(off[0])
                problems.append(f"tensor {printable(name, 200)}: row {row} is not the rounded sum")
                break
    more = len(problems) - MAX_NAMED
    return problems[:MAX_NAMED] + ([f"{more} more tensors"] if more > 0 else [])


def compare_rounded(adapted: Reference, model: LogitsOfWindows, scratch: Reference, progress: Progress) -> Comparison:
    """Compare the rounded model with the adapter over its base model; reuses the space of `scratch`."""
    scratch.compute(model, progress)
    return adapted.compare(scratch)
