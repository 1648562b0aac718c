"""Control tokens that a chosen chat template writes and the base model does not have: added to both, and trained."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken

from engines.labels.templates import NamedTemplate


def use_template(model: Any, tokenizer: Any, template: NamedTemplate) -> list[int]:
    """Make a template the tokenizer's, with its end token; returns the ids of tokens that were added for it.

    New tokens begin as the mean of all others. A vocabulary that has no free rows for them is resized.
    """
    known = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    missing = [mark for mark in template.marks if mark not in known]
    tokenizer.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in missing], special_tokens=True)
    ids = [int(tokenizer.convert_tokens_to_ids(mark)) for mark in missing]
    if ids:
        add_rows(model, ids)
    tokenizer.chat_template = template.text
    if template.end:
        tokenizer.eos_token = template.end
    return ids


def fit_vocabulary(model: Any, rows: int) -> None:
    """Resize a model's embeddings to at least so many rows; a tied head stays tied. Draws no random numbers."""
    if model.get_input_embeddings().weight.shape[0] < rows:
        model.resize_token_embeddings(rows, mean_resizing=False)


@torch.no_grad()
def add_rows(model: Any, ids: list[int]) -> None:
    """Begin the rows of new tokens as the mean of all others."""
    others = model.get_input_embeddings().weight.shape[0]
    fit_vocabulary(model, max(ids) + 1)
    for module in ends_of(model).values():
        weight = module.weight
        old = [row for row in range(min(others, weight.shape[0])) if row not in ids]
        weight[ids] = weight[old].float().mean(dim=0).to(weight.dtype)


def ends_of(model: Any) -> dict[str, Any]:
    """The modules with a row for each token, by the last part of their names; one if the head shares its matrix."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    wanted = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    return {name.rpartition(".")[2]: module for name, module in model.named_modules() if module in wanted}
