"""Compares a merged model with the adapter over its base model: tensor by tensor, and by its distributions in
transformers and float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.context import StageContext, StageFailedError
from exporters.hf_model.empty_model import common_settings
from exporters.hf_model.model_folder import open_weights, read_settings
from exporters.lora.merge import Merged, open_merged
from exporters.lora.peft_folder import folder_for_peft
from exporters.lora.trained_model import TRAINED_OVER, trained_with
from exporters.process.room import available_bytes, default_threads
from exporters.proof.merge_proof import compare_rounded, compare_tensors, prove_sums
from exporters.proof.parity import Reference
from exporters.proof.parity_data import ParityData, read_parity_data
from exporters.reference.adapted_model import adapted_bytes, adapted_model
from exporters.reference.streamed_model import StreamedModel
from recipes import quantities
from recipes.problems import OperatorError, printable
from recipes.stages.merge import MergeStage

_MAX_LENGTH = 256
DIFFERS = "the merged model differs from the adapter over its base model"


def compare_merge(ctx: StageContext[MergeStage], base: Path, adapter: Path, merged: Merged) -> dict[str, Any] | None:
    """Compare the folder `ctx.out` with the adapter over its base model; None, with a warning, if that is impossible.

    A merge that must not give the trained model, because the base was rounded or a tie was kept, is only measured.

    Raises:
        StageFailedError: they differ by more than the rounding to the stored type.
    """
    threads = ctx.stage.threads or default_threads()
    length = min(_MAX_LENGTH, int(common_settings(ctx.out).get("max_position_embeddings", _MAX_LENGTH)))
    have, need = available_bytes(), adapted_bytes(base, ctx.stage.parity_positions, length)
    if have is not None and need > have:
        ctx.warn(
            "the merged model was not compared with the adapter over its base model: that needs "
            f"{quantities.size(need)} of memory, but {quantities.size(have)} are available"
        )
        return None
    data = _held_out(ctx, length)
    if data is None:
        return None
    try:
        return _compare(ctx, base, adapter, merged, data, threads)
    except OperatorError as error:
        ctx.warn(f"the merged model was not compared with the adapter over its base model: {error}")
        return None


def _held_out(ctx: StageContext[MergeStage], length: int) -> ParityData | None:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(ctx.out, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        ctx.warn(f"the merged model was not compared: its tokenizer cannot be read: {printable(str(error), 200)}")
        return None
    return read_parity_data(None, tokenizer, positions=ctx.stage.parity_positions, max_length=length)


def _compare(
    ctx: StageContext[MergeStage], base: Path, adapter: Path, merged: Merged, data: ParityData, threads: int
) -> dict[str, Any]:
    strict = ctx.stage.base_rounding == "none" and not merged.warnings
    vocabulary, done = int(read_settings(ctx.out)["vocab_size"]), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        ctx.progress(done, 3 * data.positions, "positions")

    ctx.phase("comparing with the adapter over its base")
    trained = Reference(ctx.work / "reference.f32", data.windows, vocabulary)
    trained.compute(adapted_model(base, threads, folder_for_peft(adapter, ctx.work), vocabulary), advance)
    sums = open_merged(
        base,
        [(adapter, 1.0)],
        dtype="float32",
        untie=ctx.stage.untie_word_embeddings,
        base_rounding=ctx.stage.base_rounding,
    )
    proof, scratch = prove_sums(ctx.out, sums, trained, ctx.work / "own.f32", threads, advance)
    quality = compare_rounded(trained, StreamedModel(ctx.out, open_weights(ctx.out), threads), scratch, advance)
    ctx.phase("comparing tensors")
    tensors = compare_tensors(open_weights(ctx.out), sums)
    distance = _distance_to_trained(ctx, base, adapter, trained, scratch, threads)
    for path in (ctx.work / "reference.f32", ctx.work / "own.f32"):
        path.unlink()
    problems = [*tensors, *(proof.problems if strict else [])]
    if problems:
        raise StageFailedError(f"{DIFFERS}: {'; '.join(problems)}")
    source = {"source": data.source, "positions": data.positions, "sha256": data.sha256}
    record = proof.record(quality)
    found = {"format": 1, "reference": "the adapter over its base, float32", "data": source, "merged": record}
    if distance is None:  # the adapter over its base is what was trained
        distance = {"kl_to_trained": record["mean_kl"], "top1_to_trained": record["top1"]}
        distance |= {"adapter_kl_to_trained": 0.0, "adapter_top1_to_trained": 1.0}
    return {**found, **distance}


TO_TRAINED = ("kl_to_trained", "top1_to_trained", "adapter_kl_to_trained", "adapter_top1_to_trained")
"""Of the merged model, and of the adapter over its 16-bit base."""


def _distance_to_trained(
    ctx: StageContext[MergeStage], base: Path, adapter: Path, served: Reference, merged: Reference, threads: int
) -> dict[str, Any] | None:
    """How far the merged model, and the adapter over its 16-bit base, are from a model that was trained over a 4-bit
    base; None for an adapter whose base was not quantized.

    Args:
        ctx: the stage.
        base: the 16- or 32-bit base model.
        adapter: the adapter.
        served: the distributions of the adapter over that base.
        merged: the distributions of the merged model.
        threads: CPU threads.
    """
    quantized = trained_with(base, adapter)
    if quantized is None:
        return None
    ctx.phase("comparing with the 4-bit base that was trained on")
    scratch = ctx.work / "trained.f32"
    trained = Reference(scratch, served.windows, served.logits.shape[1])
    weights = replace(quantized, untie=ctx.stage.untie_word_embeddings).weights()
    trained.compute(StreamedModel(ctx.out, weights, threads), lambda _count: None)
    close, over = trained.compare(merged).record(), trained.compare(served).record()
    scratch.unlink()
    return {
        TRAINED_OVER: dict(quantized.quantization),
        "kl_to_trained": close["mean_kl"],
        "top1_to_trained": close["top1"],
        "adapter_kl_to_trained": over["mean_kl"],
        "adapter_top1_to_trained": over["top1"],
        "adapter_over_base_to_trained": over,
    }
