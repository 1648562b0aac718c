"""The vocabulary of a model that is trained on tokens, and whether weights to start from belong to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from engines.data.encoders import same_tokenizer
from engines.data.shards import TokenShard
from engines.json_text import read_object
from recipes.problems import OperatorError


def vocabulary_of(shard: TokenShard, start: Path | None, warn: Callable[[str], None]) -> int:
    """The rows of the embedding: one for each token, or those of the model to start from, which may have more.

    Args:
        shard: the tokens.
        start: the folder with the first weights, or a checkpoint; None for random ones.
        warn: takes what the operator should know.

    Raises:
        OperatorError: the weights belong to another tokenizer, so their rows would mean other tokens.
    """
    if start is None:
        return shard.vocab_size
    name = shard.manifest.tokenizer_file
    if not (start / name).is_file():
        warn(f"start_from — {start} has no {name}, so whether its weights belong to the tokens' tokenizer is unknown")
    elif not same_tokenizer(start / name, shard.tokenizer / name):
        raise OperatorError(
            f"start_from — the tokens are not those of the tokenizer in {start}: {name} differs",
            "prepare the tokens with the tokenizer of that model",
        )
    if not (start / "config.json").is_file():
        return shard.vocab_size
    rows = read_object(start / "config.json").get("vocab_size")
    return max(shard.vocab_size, rows) if isinstance(rows, int) else shard.vocab_size
