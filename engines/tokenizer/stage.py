"""The tokenizer stage: train, write the files of transformers, and compare both before the commit."""

from __future__ import annotations

from engines.context import Artifact, StageContext, StageResult
from engines.data.encoders import Encoder, SentencePieceEncoder, WholeEncoder
from engines.data.stage import input_folder
from engines.tokenizer.byte_level import train_byte_level, write_byte_level
from engines.tokenizer.convert import write_tokenizer
from engines.tokenizer.parity import check_parity, held_out_snippets
from engines.tokenizer.train import TrainingText, train_model
from recipes.stages.tokenizer import BYTE_LEVEL, TokenizerStage

SNIPPETS = 1500
"""Cuts of held-out text whose ids are compared, beside the hard strings."""


def run(ctx: StageContext[TokenizerStage]) -> StageResult:
    """Train a tokenizer on the train split into `ctx.out`."""
    stage = ctx.stage
    data = input_folder(ctx, "data")
    ctx.phase("choosing text")
    text = TrainingText(data, max_bytes=stage.max_bytes, seed=stage.seed)
    encoder = _byte_level(ctx, text) if stage.algorithm == BYTE_LEVEL else _sentencepiece(ctx, text)
    ctx.phase("comparing")
    compared = check_parity(ctx.out, encoder, held_out_snippets(data, SNIPPETS, stage.seed), ctx.progress)
    metrics = {
        "vocab_size": float(encoder.vocab_size),
        "bytes": float(text.bytes),
        "documents": float(text.documents),
        "parity_texts": float(compared),
    }
    return StageResult(metrics, [Artifact(ctx.stage_name, "tokenizer", ".")])


def _sentencepiece(ctx: StageContext[TokenizerStage], text: TrainingText) -> Encoder:
    stage = ctx.stage
    ctx.phase("training")
    model = train_model(
        text,
        vocab_size=stage.vocab_size,
        character_coverage=stage.character_coverage,
        split_digits=stage.split_digits,
        report=ctx.progress,
    )
    ctx.phase("converting")
    write_tokenizer(model, ctx.out)
    return SentencePieceEncoder(ctx.out)


def _byte_level(ctx: StageContext[TokenizerStage], text: TrainingText) -> Encoder:
    stage = ctx.stage
    ctx.phase("training")
    content = train_byte_level(text, vocab_size=stage.vocab_size, split_digits=stage.split_digits, report=ctx.progress)
    ctx.phase("converting")
    write_byte_level(content, ctx.out)
    return WholeEncoder(ctx.out)
