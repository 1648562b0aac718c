"""Compares a merged model with the adapter over its base model: distributions in transformers and float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.context import StageContext, StageFailedError
from exporters.hf_model.model_folder import read_settings
from exporters.lora.merge import Merged
from exporters.lora.peft_folder import folder_for_peft
from exporters.process.room import available_bytes, default_threads
from exporters.proof.parity import Comparison, Reference, compare
from exporters.proof.parity_data import read_parity_data
from exporters.proof.reference_model import TorchLogits, load_reference
from recipes import quantities
from recipes.problems import printable
from recipes.stages.fields import StageFields
from recipes.stages.merge import MergeStage

MERGE_FILE = "parity.json"
EXPECTED_KL, REFUSED_KL = 1e-5, 1e-3
"""Mean KL, nats. Rounding to 16 bits costs at most the first in measurements; above it the merge warns. Rounding never
costs the second; above it the merged weights are not the trained model, and the merge fails."""


def describe_unmerged(
    ctx: StageContext[StageFields], comparison: Comparison, *, strict: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """The record of the comparison of a merged model with the adapter over its base model, and the problems.

    `strict` is for a merge that must give the trained model: not one with a rounded base model or a kept tie.
    """
    problems = []
    if strict and not comparison.mean_kl < REFUSED_KL:
        problems.append(
            "the merged model differs from the adapter over its base model: mean KL is "
            f"{quantities.number(comparison.mean_kl, 3)} nats, the limit is {quantities.exact(REFUSED_KL)} (top-1 "
            f"{quantities.percent(comparison.top1, 2)} on {comparison.positions} positions)"
        )
    elif not comparison.mean_kl < EXPECTED_KL:
        ctx.warn(
            "the merged model differs from the adapter over its base model by a mean KL of "
            f"{quantities.number(comparison.mean_kl, 3)} nats; rounding usually costs at most "
            f"{quantities.exact(EXPECTED_KL)}; merge with dtype = float32 to see whether it is rounding"
        )
    limits = {"mean_kl": REFUSED_KL, "expected_mean_kl": EXPECTED_KL}
    return {**comparison.record(), "limits": limits, "passed": not problems, "problems": problems}, problems


def compare_merge(ctx: StageContext[MergeStage], base: Path, adapter: Path, merged: Merged) -> dict[str, Any] | None:
    """Compare the folder `ctx.out` with the adapter over its base model; None, with a warning, if that is impossible.

    Raises:
        StageFailedError: they differ.
    """
    from transformers import AutoTokenizer

    have, need = available_bytes(), merged.parameters * 4
    if have is not None and need > have:
        ctx.warn(
            "the merged model was not compared with the adapter over its base model: that needs "
            f"{quantities.size(need)} of memory, but {quantities.size(have)} are available"
        )
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(ctx.out, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        ctx.warn(f"the merged model was not compared: its tokenizer cannot be read: {printable(str(error), 200)}")
        return None
    threads, config = ctx.stage.threads or default_threads(), read_settings(ctx.out)
    ctx.phase("comparing with the adapter over its base")
    adapter = folder_for_peft(adapter, ctx.work)
    trained = load_reference(base, threads, adapter=adapter, vocab_size=int(config["vocab_size"]))
    length = min(256, int(config["max_position_embeddings"]))
    data = read_parity_data(None, tokenizer, positions=ctx.stage.parity_positions, max_length=length)
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        ctx.progress(done, 2 * data.positions, "positions")

    scratch = ctx.work / "reference.f32"
    reference = Reference(scratch, data.windows, int(config["vocab_size"]))
    reference.compute(TorchLogits(trained), advance)
    del trained
    comparison = compare(reference, TorchLogits(load_reference(ctx.out, threads)), advance)
    scratch.unlink()
    strict = ctx.stage.base_rounding == "none" and not merged.warnings
    record, problems = describe_unmerged(ctx, comparison, strict=strict)
    if problems:
        raise StageFailedError("; ".join(problems))
    source = {"source": data.source, "positions": data.positions, "sha256": data.sha256}
    return {"format": 1, "reference": "the adapter over its base, float32", "data": source, "merged": record}
