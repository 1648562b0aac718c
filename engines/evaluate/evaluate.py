"""Loss and perplexity of a model on one split of messages or tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from engines.artifacts.data_folder import TOKENS_JSON
from engines.chat.rendering import Waiting
from engines.data.door import DataSource, ReadCounts, read_conversations
from engines.data.encoders import WHOLE_FILE, same_tokenizer
from engines.data.shards import TokenShard
from engines.evaluate.model import LoadedModel
from engines.files import file_sha256
from engines.training.loss import AnswerStats, Batches, answer_batches, token_weighted_loss, window_batches
from recipes.problems import OperatorError


@dataclass(frozen=True)
class Score:
    """The measurements: `loss` is the mean nats per scored token, `perplexity` its exponential."""

    loss: float
    perplexity: float
    tokens: int
    protocol: str
    stats: AnswerStats

    def counts(self) -> dict[str, int]:
        """The counts of rows; empty for token windows."""
        return asdict(self.stats) if self.stats.rows else {}


def is_tokens_folder(data: Path) -> bool:
    """Whether a data folder contains token shards; otherwise it contains messages."""
    return (data / TOKENS_JSON).is_file()


def make_batches(
    loaded: LoadedModel,
    data: DataSource,
    *,
    split: str,
    max_length: int,
    batch_size: int,
    max_tokens: int | None,
    waiting: Waiting | None = None,
    counts: ReadCounts | None = None,
) -> Batches:
    """Batches of one split: answers of messages, or windows of tokens. `waiting`: as for `encode_answers`; `counts` is
    filled with what was read.

    Raises:
        OperatorError: the split is missing or empty, another tokenizer than the model's encoded its tokens, or the chat
            template cannot render its messages.
    """
    if is_tokens_folder(data.place):
        shard = TokenShard(data.place, split)
        check_tokenizer(loaded, shard)
        batches = window_batches(shard, max_length, batch_size, max_tokens=max_tokens)
    else:
        rows = (row.as_dicts() for row in read_conversations(data, split, counts))
        batches = answer_batches(rows, loaded.tokenizer, max_length, batch_size, max_tokens=max_tokens, waiting=waiting)
    if not batches.scored_tokens:
        found = batches.stats
        raise OperatorError(
            f"{split and f'the {split} split of '}{data.place} has nothing to score "
            f"({found.rows} rows, {found.dropped} of them without an answer within {max_length} tokens)",
            "choose another split, or a larger max_length",
        )
    return batches


def check_tokenizer(loaded: LoadedModel, shard: TokenShard) -> None:
    """Refuse a model whose tokenizer did not encode the tokens: their ids would mean other pieces.

    Raises:
        OperatorError: the tokenizer's file is missing or differs, or the vocabulary is larger than the model's.
    """
    name = shard.manifest.tokenizer_file
    file = next((folder / name for folder in loaded.tokenizer_folders if (folder / name).is_file()), None)
    if file is None:
        raise OperatorError(
            f"the model's folder has no {name}, so its tokenizer cannot be compared with the one of the tokens",
            "evaluate on messages, or evaluate the model that was trained on these tokens",
        )
    same = file_sha256(file) == shard.manifest.tokenizer_sha256
    if not same and not (name == WHOLE_FILE and same_tokenizer(file, shard.tokenizer / name)):
        raise OperatorError(
            f"{shard.path} was encoded with another tokenizer than the model's ({file})",
            "prepare tokens with the model's own tokenizer",
        )
    rows = int(loaded.model.get_input_embeddings().weight.shape[0])
    if shard.vocab_size > rows:
        raise OperatorError(
            f"the tokens have a vocabulary of {shard.vocab_size} pieces, the model has {rows}",
            "evaluate the model that was trained on these tokens",
        )


def score(loaded: LoadedModel, batches: Batches, on_progress: Callable[[int], None] | None = None) -> Score:
    """Token-weighted loss and perplexity over all batches."""
    loss, tokens = token_weighted_loss(loaded.model, batches, on_progress)
    return Score(loss, perplexity(loss), tokens, batches.protocol, batches.stats)


def perplexity(loss: float) -> float:
    """exp(loss); infinity when it exceeds the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
