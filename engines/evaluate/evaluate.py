"""Loss and perplexity of a model on one split of messages or tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from engines.chat.rendering import Waiting
from engines.data.door import DataSource, ReadCounts, read_rows
from engines.data.encoders import same_tokenizer
from engines.data.shards import TokenShard, is_tokens_folder
from engines.data.tokenizer_settings import WHOLE_FILE
from engines.evaluate.four_bits import precision_of
from engines.evaluate.model import LoadedModel
from engines.files import file_sha256
from engines.forward.arrangement import PADDED, arrange
from engines.labels.label import ONE_OF_PAIR
from engines.labels.row import LabelCounts, LabelledRow, LabelRules
from engines.labels.stage_rows import Warnings, examples_of, protocol_of
from engines.labels.vocabulary import TokenizerView
from engines.training.fitting import Fitting
from engines.training.loss import Batches, answer_batches, token_weighted_loss, window_batches
from engines.world import ALONE, World
from recipes.problems import OperatorError

SCORED_OF_PAIR = (
    'score one answer of each pair, in an evaluate stage: columns = {user = "prompt", assistant = "chosen"}'
)
"""What to do about a row of preferences in an evaluation."""


@dataclass(frozen=True)
class Score:
    """The measurements: `loss` is the mean nats per scored token, `perplexity` its exponential."""

    loss: float
    perplexity: float
    tokens: int
    protocol: str
    counts: Mapping[str, int]
    """counts of rows; empty for token windows"""


def make_batches(
    view: TokenizerView,
    data: DataSource,
    *,
    check_tokens: Callable[[TokenShard], None],
    split: str,
    rules: LabelRules,
    batch_size: int,
    max_tokens: int | None,
    spread: bool = False,
    skip_refused: bool = False,
    warn: Callable[[str], None] = lambda _text: None,
    waiting: Waiting | None = None,
    counts: ReadCounts | None = None,
) -> Batches:
    """Batches of one split: answers of messages, or windows of tokens.

    Args:
        view: the model's tokenizer.
        data: rows, or a folder of tokens.
        check_tokens: refuses tokens that another tokenizer encoded.
        split: train, val or test.
        rules: how rows are labelled.
        batch_size: rows or windows per batch.
        max_tokens: stop taking rows or windows when this many tokens are scored.
        spread: take windows from the whole split. Rows are read in order, so that theirs are always the first ones.
        skip_refused: leave out and count a row that is refused.
        warn: takes what the operator should know.
        waiting: as for `label_rows`.
        counts: is filled with what was read.

    Raises:
        OperatorError: the split is missing or empty, another tokenizer than the model's encoded its tokens, or the chat
            template cannot render its messages.
    """
    if is_tokens_folder(data.place):
        shard = TokenShard(data.place, split)
        check_tokens(shard)
        batches = window_batches(shard, rules.max_length, batch_size, max_tokens=max_tokens, spread=spread)
        if not spread and max_tokens is not None and batches.scored_tokens < _most(len(shard), rules.max_length):
            warn(
                f"{batches.scored_tokens} tokens are scored, the first of {len(shard)} of the {split} split;"
                ' max_tokens_from = "spread" takes them from the whole split'
            )
    else:
        labels, warnings = LabelCounts(), Warnings(rules)
        rows = examples_of(
            read_rows(data, split, counts or ReadCounts()),
            view,
            rules,
            labels,
            skip_refused=skip_refused,
            max_tokens=max_tokens,
            refused=warnings.add,
            waiting=waiting,
        )
        batches = answer_batches(_scorable(rows), batch_size, protocol_of(rules))
        batches = replace(batches, counts=labels.metrics())
        for text in warnings.texts(labels):
            warn(text)
    if not batches.scored_tokens:
        found = batches.counts
        raise OperatorError(
            f"{split and f'the {split} split of '}{data.place} has nothing to score ({found.get('rows', 0)} rows, "
            f"{found.get('dropped_rows', 0)} of them without an answer within {rules.max_length} tokens)",
            "choose another split, or a larger max_length",
        )
    return batches


def _most(tokens: int, max_length: int) -> int:
    """Tokens that are scored where every window is: all but the first one of each."""
    return tokens - -(-tokens // max_length)


def _scorable(rows: Iterator[LabelledRow]) -> Iterator[LabelledRow]:
    """The rows; a row of preferences is refused with what an evaluation can do about it.

    Raises:
        OperatorError: as `examples_of`.
    """
    try:
        yield from rows
    except OperatorError as error:
        if error.hint == ONE_OF_PAIR:
            raise OperatorError(error.message, SCORED_OF_PAIR) from error
        raise


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


def score(
    loaded: LoadedModel,
    batches: Batches,
    on_progress: Callable[[int], None] | None = None,
    warn: Callable[[str], None] = lambda _text: None,
    world: World = ALONE,
) -> Score:
    """Token-weighted loss and perplexity over all batches. Rows go through the model as in a training: without padding.

    Args:
        loaded: the model.
        batches: of one split.
        on_progress: as for `token_weighted_loss`.
        warn: takes what the operator should know.
        world: the processes over which the batches are divided; each gets the result of all.
    """
    # Windows have equal lengths, so nothing is padded.
    way = arrange(loaded.model, longest=batches.longest) if batches.longest else PADDED
    loss, tokens = token_weighted_loss(loaded.model, batches, on_progress, way, Fitting(warn), world)
    return Score(loss, perplexity(loss), tokens, batches.protocol + _precision(loaded.model), batches.counts)


def _precision(model: Any) -> str:
    """What a protocol says about weights that are narrower than those of an evaluation during training."""
    kind = precision_of(model)
    return "" if kind == "float32" else f", {kind} weights"


def perplexity(loss: float) -> float:
    """exp(loss); infinity when it exceeds the range of a float."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
