"""What transformers does with special tokens: those that it adds to a text, and those that end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.artifacts.generation_config import end_ids, read_generation_config


@dataclass(frozen=True)
class AddedTokens:
    """Ids before and after a text."""

    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()


def added_tokens(tokenizer: Any) -> AddedTokens:
    """What a transformers tokenizer adds to every text.

    It encodes a text both ways: settings in tokenizer_config.json are not always followed, and the post-processor of
    tokenizer.json is only one of the places that decide.
    """
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return AddedTokens(tuple(whole[:at]), tuple(whole[at + len(bare) :]))
    return AddedTokens()


def answer_ends(folder: Path, config: Mapping[str, Any], tokenizer: Any) -> list[int]:
    """Every token at which transformers ends an answer, and the tokenizer's own end token; in order.

    Args:
        folder: the model's folder, with or without generation_config.json.
        config: the model's settings.
        tokenizer: the model's.
    """
    found = {tokenizer.eos_token_id, *end_ids(read_generation_config(folder)), *end_ids(config)}
    return sorted(token for token in found if token is not None)
