"""The tokenizer stage: train, convert, and compare both forms before the commit."""

from __future__ import annotations

from engines.context import Artifact, StageContext, StageResult
from engines.data.stage import input_folder
from engines.tokenizer.convert import write_tokenizer
from engines.tokenizer.parity import check_parity, held_out_snippets
from engines.tokenizer.train import TrainingText, train_model
from recipes.stages.tokenizer import TokenizerStage

SNIPPET_DOCUMENTS = 200


def run(ctx: StageContext[TokenizerStage]) -> StageResult:
    """Train a tokenizer on the train split into `ctx.out`."""
    stage = ctx.stage
    data = input_folder(ctx, "data")
    ctx.phase("choosing text")
    text = TrainingText(data, max_bytes=stage.max_bytes, seed=stage.seed)
    ctx.phase("training")
    model = train_model(
        text,
        vocab_size=stage.vocab_size,
        character_coverage=stage.character_coverage,
        split_digits=stage.split_digits,
        report=ctx.progress,
    )
    ctx.phase("converting")
    processor = write_tokenizer(model, ctx.out)
    ctx.phase("comparing")
    snippets = list(held_out_snippets(data, SNIPPET_DOCUMENTS, stage.seed))
    compared = check_parity(ctx.out, processor, snippets, ctx.progress)
    metrics = {
        "vocab_size": float(processor.vocab_size()),
        "bytes": float(text.bytes),
        "documents": float(text.documents),
        "parity_texts": float(compared),
    }
    return StageResult(metrics, [Artifact(ctx.stage_name, "tokenizer", ".")])
