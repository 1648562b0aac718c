"""Pretraining: token shards in, a Hugging Face model folder out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, set_seed

from engines.context import Artifact, StageContext, StageResult
from engines.data.shards import TokenShard
from engines.data.tokenizer_class import check_tokenizer_class, pieces_differ
from engines.data.tokenizer_files import copy_tokenizer
from engines.data.tokens_manifest import check_tokenizer
from engines.data.windows import (
    DocumentWindows,
    WindowDataset,
    collate_documents,
    collate_windows,
    document_batches,
    verify_shard,
)
from engines.events.results import SampledText
from engines.files import refuse_special_files
from engines.forward.arrangement import PADDED, arrange
from engines.judging.text_metrics import lengths, variety
from engines.pretrain.model import build_model
from engines.pretrain.ternary import check_start, keep_rounded, make_ternary
from engines.pretrain.vocabulary import vocabulary_of
from engines.training.beginning import start_folder
from engines.training.inputs import input_folder
from engines.training.loss import Batches, window_batches
from engines.training.sampling import Sample, greedy_sample
from engines.training.saves.parts import save_model
from engines.training.session import Session
from engines.training.start import set_up_process
from engines.training.task import Task, Utilization
from recipes.stages.decoder.model_types import TERNARY
from recipes.stages.decoder.operations import peak_of
from recipes.stages.pretrain import PretrainStage


def run(ctx: StageContext[PretrainStage]) -> StageResult:
    """Train a model from scratch.

    Raises:
        OperatorError: the tokens are missing, damaged or too few.
    """
    set_up_process(ctx.stage)
    ctx.phase("loading")
    data = input_folder(ctx.inputs["data"])
    shard = TokenShard(data, "train")
    verify_shard(shard, lambda done, total: ctx.progress(done, total, "bytes"))
    apart = ctx.stage.document_masking
    dataset = (DocumentWindows if apart else WindowDataset)(data, "train", ctx.stage.max_length)
    refuse_special_files(shard.tokenizer)
    check_tokenizer(data, shard.manifest)
    tokenizer = AutoTokenizer.from_pretrained(str(shard.tokenizer), local_files_only=True)
    if (wrong := pieces_differ(shard.tokenizer, tokenizer)) is not None:
        raise wrong
    for warning in check_tokenizer_class(shard.tokenizer, tokenizer):
        ctx.warn(warning)
    set_seed(ctx.stage.seed)
    start = start_folder(ctx)
    vocab_size = vocabulary_of(shard, start, ctx.warn)
    check_start(start, ctx.stage.linear)
    model = build_model(ctx.stage, vocab_size=vocab_size, bos_id=tokenizer.bos_token_id, eos_id=shard.eos_id)
    if ctx.stage.linear == TERNARY:
        make_ternary(model)
    task = Task(
        model=model,
        dataset=dataset,
        collate=collate_documents if apart else collate_windows,
        examples=len(dataset),
        save_tokenizer=partial(_save_tokenizer, shard.tokenizer),
        val=_val_batches(ctx, data),
        sample=partial(_sample, ctx, model, tokenizer),
        sample_steps=ctx.stage.sample_steps,
        bf16=bool(ctx.stage.bf16),
        fp16=bool(ctx.stage.fp16),
        full=not apart,
        arrangement=arrange(model, longest=ctx.stage.max_length) if apart else PADDED,
        utilization=Utilization(ctx.stage.sizes(vocab_size).training_operations(ctx.stage.max_length), _peak(ctx)),
    )
    session = Session(ctx, task)
    session.run()
    of_samples = _sample_metrics(ctx, model, tokenizer)
    ctx.phase("saving")
    if ctx.stage.linear == TERNARY:
        keep_rounded(model)
    save_model(model, ctx.out)
    if ctx.world.is_first:
        copy_tokenizer(ctx.out, shard.tokenizer)
    return StageResult(
        metrics={**session.result(), **of_samples, "documents": float(dataset.documents)},
        artifacts=[Artifact(name=ctx.stage_name, kind="model", path=".")],
    )


def _peak(ctx: StageContext[PretrainStage]) -> float | None:
    """Operations per second of the device: the stage's, or those of a GPU that is known in bfloat16."""
    if ctx.stage.peak_tflops is not None:
        return ctx.stage.peak_tflops * 1e12
    if not ctx.stage.bf16 or not torch.cuda.is_available():
        return None
    return peak_of(torch.cuda.get_device_name())


def _save_tokenizer(source: Path, target: Path) -> None:
    copy_tokenizer(target, source)


def _val_batches(ctx: StageContext[PretrainStage], data: Path) -> Batches | None:
    stage = ctx.stage
    shard = TokenShard(data, "train")
    if "val" in shard.manifest.splits:
        batches = (document_batches if stage.document_masking else window_batches)(
            TokenShard(data, "val"),
            stage.max_length,
            stage.per_device_eval_batch_size,
            max_tokens=stage.eval_max_tokens,
        )
        if batches.scored_tokens:
            return batches
    if stage.evaluates:
        ctx.warn("the tokens have no val split; evaluation during training is skipped")
    return None


def _sample(ctx: StageContext[PretrainStage], model: Any, tokenizer: Any, step: int, prompt: str = "") -> bool:
    """Continue the prompt, or each of the recipe's, greedily; False without one."""
    prompts = [prompt] if prompt else ctx.stage.sample_prompts
    for each, made in _continued(ctx, model, tokenizer, prompts):
        ctx.emit(SampledText(stage=ctx.stage_name, attempt=ctx.attempt, step=step, prompt=each, text=made.text))
    return bool(prompts)


def _continued(
    ctx: StageContext[PretrainStage], model: Any, tokenizer: Any, prompts: Iterable[str]
) -> Iterator[tuple[str, Sample]]:
    """Each prompt that has tokens, with its greedy continuation."""
    for each in prompts:
        ids = tokenizer(each, return_tensors="pt", return_token_type_ids=False).input_ids.to(model.device)
        if ids.shape[1]:
            yield each, greedy_sample(model, tokenizer, ids, ctx.stage.sample_max_new_tokens)


def _sample_metrics(ctx: StageContext[PretrainStage], model: Any, tokenizer: Any) -> dict[str, float]:
    """How varied and how long the finished model's samples of the recipe's prompts are; empty for a stage that samples
    nothing."""
    if ctx.stage.sample_steps is None:
        return {}
    ctx.phase("sampling")
    made = [one for _, one in _continued(ctx, model, tokenizer, ctx.stage.sample_prompts)]
    if not made:
        return {}
    found = {
        **variety(one.text for one in made),
        **lengths([one.tokens for one in made], [one.ended for one in made], "tokens"),
    }
    return {f"sample_{name}": value for name, value in found.items()}
