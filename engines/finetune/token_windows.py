"""Continued pretraining on token shards: windows of equal length, every token scored, of the model's own tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.context import StageContext
from engines.data.encoders import same_tokenizer
from engines.data.shards import TokenShard
from engines.data.windows import WindowDataset, verify_shard
from engines.training.loss import Batches, window_batches
from recipes.problems import OperatorError
from recipes.stages.finetune import FinetuneFields


def load_windows(ctx: StageContext[FinetuneFields], data: Path, base: Path, model: Any) -> WindowDataset:
    """The windows of the train split.

    Args:
        ctx: the attempt.
        data: the tokens folder.
        base: the folder of the model that is trained.
        model: the model itself.

    Raises:
        OperatorError: fields of rows are set, the shard is damaged or shorter than a window, or another tokenizer than
            the model's encoded it.
    """
    unread = ctx.stage.unread_with_tokens()
    if unread:
        raise OperatorError(*unread[0])
    shard = TokenShard(data, "train")
    _require_own_tokenizer(shard, base, model)
    verify_shard(shard, lambda done, total: ctx.progress(done, total, "bytes"))
    return WindowDataset(data, "train", ctx.stage.max_length)


def val_windows(ctx: StageContext[FinetuneFields], data: Path) -> Batches | None:
    """Batches of the val split for evaluations during training; None without tokens to score."""
    stage = ctx.stage
    if "val" in TokenShard(data, "train").manifest.splits:
        shard = TokenShard(data, "val")
        batches = window_batches(
            shard, stage.max_length, stage.per_device_eval_batch_size, max_tokens=stage.eval_max_tokens
        )
        if batches.scored_tokens:
            return batches
    if stage.evaluates:
        ctx.warn("the tokens have no val split; evaluation during training is skipped")
    return None


def counts_of(dataset: WindowDataset, max_length: int) -> dict[str, int]:
    """The counts of rows that a finetune stage reports, of documents that fill windows."""
    windows = len(dataset)
    counted = {"rows": dataset.documents, "examples": windows, "tokens": windows * max_length}
    none = dict.fromkeys(("truncated_rows", "dropped_rows", "refused_rows", "skipped_rows"), 0)
    return {**none, **counted, "scored_tokens": windows * (max_length - 1)}


def _require_own_tokenizer(shard: TokenShard, base: Path, model: Any) -> None:
    """Refuse tokens whose ids would mean other pieces to the model.

    Raises:
        OperatorError: they are those of another tokenizer, or larger than the model's vocabulary.
    """
    name = shard.manifest.tokenizer_file
    if not (base / name).is_file():
        raise OperatorError(
            f"data — {base} has no {name}, so its tokenizer cannot be compared with the one of the tokens",
            "prepare the tokens with the tokenizer of this model, from its folder",
        )
    if not same_tokenizer(base / name, shard.tokenizer / name):
        raise OperatorError(
            f"data — the tokens are not those of the tokenizer in {base}: {name} differs",
            "prepare the tokens with the tokenizer of this model",
        )
    rows = int(model.get_input_embeddings().weight.shape[0])
    if shard.vocab_size > rows:
        raise OperatorError(
            f"data — the tokens have a vocabulary of {shard.vocab_size} pieces, and the model's embedding has {rows}",
            "use the tokenizer that belongs to the model",
        )
